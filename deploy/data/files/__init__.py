"""Readers of local files, by their endings: each yields records as they stand, and guesses nothing."""
