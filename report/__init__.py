"""The pages for analysts."""
