"""Commands for the operator and the privacy officer: keys, recovery, erasure, retention."""
