"""Data sets: the catalogue, loading from the Hub and from folders, transforms."""
