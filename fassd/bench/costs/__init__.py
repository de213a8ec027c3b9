"""Costs of a network, computed and not measured: operations, bytes, and the time they need."""

LAUNCH_S = 1.5e-6
"""Seconds from launch to launch within a CUDA graph."""

DRAM_EFFICIENCY = 0.85
"""Fraction of the data sheet's bandwidth that a copy reaches."""
