"""Several phases in one file, and answers generated as a data set."""
