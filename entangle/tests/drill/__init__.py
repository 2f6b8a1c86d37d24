"""Deliberate faults, many times over. `make drill` runs these tests alone."""
