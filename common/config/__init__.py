"""The settings of runs, evaluations and generations, as closed trees that check themselves."""
