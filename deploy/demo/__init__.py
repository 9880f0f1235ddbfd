"""The demonstration: a small instruction data set of our own, a teacher and a student that fit in it."""
