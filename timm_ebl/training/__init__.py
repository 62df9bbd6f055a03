"""Training: configuration, what it builds, the loop, checkpoints and run folders."""
