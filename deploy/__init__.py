"""What stands a run up on machines and drives it: command line, plan, driver, run files."""
