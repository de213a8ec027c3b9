"""Letting the Triton backend measure its tile sizes on this card before it is timed."""

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
) -> dict[str, Any]:
    """Tune for a network at one size, batch and dtype, into `configs`; the log is ``tune.log``.

    Returns:
        ``command``, and for each table in `configs` its number of configurations.

    Raises:
        RuntimeError: it failed, or wrote no table; the message says how its log ends.
        TimeLimitError: it took too long.
    """
    log = logs / "tune.log"
    options = ["--model", model, "--size", f"{height}x{width}", "--dtype", dtype]
    options += ["--batch", str(batch), "--budget", f"{max(limit_s - MARGIN_S, 1):.0f}"]
    command = [sys.executable, str(LAUNCH), "fassd_kernels.tune", *options]
    code = run_logged(command, log, limit_s, {CONFIGS: str(configs)})
    if code != 0:
        raise RuntimeError(f"tuning ended with code {code}:\n{tail(log)}")
    tables = {
        path.name: len(json.loads(path.read_text())["configurations"])
        for path in sorted(configs.glob("*.json"))
    }
    if not tables:
        raise RuntimeError(f"tuning wrote no table into {configs}:\n{tail(log)}")
    return {"log": log.name, "command": f"fassd_kernels.tune {' '.join(options)}", "tables": tables}
