"""Run files and overrides in, checked settings out."""
