"""How good an answer is: text scores, and what the paper measures."""
