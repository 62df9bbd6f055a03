"""Relaxations: energy models, minimisers, orders of update, and the record of where they end."""
