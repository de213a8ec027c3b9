"""Costs of a network, computed and not measured: operations, bytes, and the time they need."""

LAUNCH_S = 1.5e-6
"""Seconds from launch to launch within a CUDA graph."""

DRAM_EFFICIENCY = 0.85
"""Fraction of the data sheet's bandwidth that a copy reaches."""

SUMS: tuple[tuple[str, str, float, int], ...] = (
    ("MB", "bytes", 1e-6, 1),
    ("cache\nMB", "loaded", 1e-6, 0),
    ("GFLOP", "operations", 1e-9, 2),
    ("padded\nGFLOP", "issued", 1e-9, 2),
    ("instr.\nM", "instructions", 1e-6, 2),
    ("copy\nM", "copy_instructions", 1e-6, 2),
    ("product\nM", "product_instructions", 1e-6, 2),
    ("epilogue\nM", "epilogue_instructions", 1e-6, 2),
    ("memory\nus", "memory_floor", 1e6, 1),
    ("arithmetic\nus", "arithmetic_floor", 1e6, 1),
    ("floor\nus", "floor", 1e6, 1),
    ("issue\nus", "issue", 1e6, 1),
    ("predicted\nus", "predicted", 1e6, 1),
    ("measured\nus", "measured", 1e6, 1),
)
"""Columns of a table of launches: title, attribute to sum, unit, and digits."""
