"""The command `minillm`, and what it shows."""
