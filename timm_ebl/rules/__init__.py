"""Learning rules, baselines, the backward pass of a loss, and the slow reference of them all."""
