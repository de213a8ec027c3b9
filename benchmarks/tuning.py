"""Letting the package measure its tile sizes and its backends on this card before it is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.process import LAUNCH, run_logged, tail

CONFIGS = "FASSD_KERNELS_CONFIGS"
"""Environment variable: the folder whose table overrides the package's; tuning writes there."""

MARGIN_S = 30.0
"""Seconds that tuning takes beyond its budget, to start, to end its last measurement, to write."""


def tune(
    logs: Path,
    configs: Path,
    limit_s: float,
    model: str,
    batch: int,
    height: int,
    width: int,
    dtype: str,
    backends: bool = False,
) -> dict[str, Any]:
    """Tune for a network at one size, batch and dtype, into `configs`.

    Args:
        logs: the folder of logs; this one's is ``tune.log``, of backends ``choices.log``.
        configs: the folder of tables; those of backends are in a folder of their own below.
        limit_s: seconds.
        model, batch, height, width, dtype: what to tune for.
        backends: find the fastest backend of each call, instead of the Triton kernels' tile sizes.

    Returns:
        ``command``, and for each table its number of rows.

    Raises:
        RuntimeError: it failed, or wrote no table; the message says how its log ends.
        TimeLimitError: it took too long.
    """
    log = logs / ("choices.log" if backends else "tune.log")
    folder, rows = (configs / "backends", "median_us") if backends else (configs, "configurations")
    options = ["--model", model, "--size", f"{height}x{width}", "--dtype", dtype]
    options += ["--batch", str(batch), "--budget", f"{max(limit_s - MARGIN_S, 1):.0f}"]
    options += ["--backends"] if backends else []
    command = [sys.executable, str(LAUNCH), "fassd_kernels.tune", *options]
    code = run_logged(command, log, limit_s, {CONFIGS: str(configs)})
    if code != 0:
        raise RuntimeError(f"tuning ended with code {code}:\n{tail(log)}")
    tables = {
        str(path.relative_to(configs)): len(json.loads(path.read_text())[rows])
        for path in sorted(folder.glob("*.json"))
    }
    if not tables:
        raise RuntimeError(f"tuning wrote no table into {folder}:\n{tail(log)}")
    return {"log": log.name, "command": f"fassd_kernels.tune {' '.join(options)}", "tables": tables}
