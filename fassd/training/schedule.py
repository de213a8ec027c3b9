"""Learning rate over time."""

from __future__ import annotations

__all__ = ["poly_learning_rate"]


def poly_learning_rate(
    step: int, base: float, total_steps: int, power: float = 0.9, warmup_steps: int = 0
) -> float:
    """The rate in force at optimizer step `step`: base * (1 - (step + 1) / total) ** power.

    The authors' scheduler was advanced once before the first step, hence the 1: of their 90,000
    steps the first has 0.02 * (1 - 1/90000) ** 0.9, and the last one 0.

    Args:
        step: 0-based.
        base: the largest rate.
        total_steps: of the run.
        power: 1 is linear.
        warmup_steps: over which a factor rises from near 0 to 1.

    Raises:
        ValueError: `step` is not in 0 .. total_steps - 1.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must be from 0 to {total_steps - 1}, got {step}")
    rate = base * (1 - (step + 1) / total_steps) ** power
    return rate * min(1.0, (step + 1) / (warmup_steps + 1))
