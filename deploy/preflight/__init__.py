"""Everything that is checked before machines are reserved, and the plan of what will run where."""
