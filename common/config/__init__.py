"""The settings of runs and evaluations, as closed trees that check themselves."""
