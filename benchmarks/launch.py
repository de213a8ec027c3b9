"""``python launch.py MODULE ARGS``: run a module of the repository against the installed package.

Started from the repository, Python would import ``fassd_kernels`` from the source tree, which has
no compiled extensions. Here the packages are imported first, from where they are installed (from
the source tree only if they are not), and the repository is put in front afterwards, for
``benchmarks`` and ``tests``.
"""

import importlib
import runpy
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def prefer_installed() -> None:
    """Import the packages, then put the repository first on the path."""
    here = {"", str(ROOT), str(ROOT / "benchmarks")}
    sys.path[:] = [entry for entry in sys.path if entry not in here] + [str(ROOT)]
    for package in ("fassd", "fassd_kernels"):
        try:
            importlib.import_module(package)
        except Exception:  # what does not need the package still runs; what does, says so
            traceback.print_exc()
    sys.path.insert(0, sys.path.pop())


if __name__ == "__main__":
    prefer_installed()
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
