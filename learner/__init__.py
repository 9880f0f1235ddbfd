"""Everything that learns: the maths of the objective, batches, the optimiser step, weight publishing."""
