"""The driver of a training run, and all that it writes."""
