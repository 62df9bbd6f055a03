"""A comparison of rules: many runs of `train_ebl.py`, and the table that they make."""
