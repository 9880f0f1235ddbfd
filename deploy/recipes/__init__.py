"""Run files to copy, and small scripts that make what they read."""
