"""What is run beside training: predictions, benchmarks, gradients, plots."""
