"""Words that the other folders speak: messages, settings, errors, weights, metrics. Imports none of ours."""
