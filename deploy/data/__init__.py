"""From files and hub data sets to prompts, given answers and blocks of text."""
