"""Everything that runs a model forward: sampling answers, scoring them, evaluating them."""
