"""How fast, measured here."""
