"""Installing the package that is measured, into the Python that measures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT
from benchmarks.process import run_logged, tail


def install(logs: Path, limit_s: float) -> dict[str, Any]:
    """Install the checkout, where nvcc is with its CUDA kernels; the log is ``install.log``.

    Raises:
        RuntimeError: pip failed; the message holds the end of its log.
        TimeLimitError: it took too long.
    """
    log = logs / "install.log"
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    environment = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    code = run_logged([*pip, "--no-input", "--verbose", str(ROOT)], log, limit_s, environment)
    if code != 0:
        raise RuntimeError(f"pip ended with code {code}:\n{tail(log)}")
    return {"log": log.name}


def is_installed() -> bool:
    """Whether this Python has the package, outside the repository, with its C++ extension."""
    program = (
        f"import sys; sys.path[:] = [entry for entry in sys.path if entry != {str(ROOT)!r}]; "
        "import fassd_kernels; sys.exit(fassd_kernels.ops.CPU_MISSING is not None)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True)
    return done.returncode == 0
