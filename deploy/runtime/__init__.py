"""Reaching a Ray cluster, and the actors of a run on it."""
