"""How well models answer: tasks, answers, statistics, results."""
