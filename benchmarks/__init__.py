"""Measurements: what the peers cost, what the kernels cost, and how near the floor that is."""
