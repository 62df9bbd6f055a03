"""Energies: interactions between layers, and perturbations."""
