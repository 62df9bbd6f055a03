"""The door to the kernels: products of a weight with states, as fast and as exact as they go."""
