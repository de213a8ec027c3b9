"""The build backend: setuptools, plus one question asked of the interpreter outside.

The extensions need PyTorch's headers to compile. Under build isolation pip hides the packages of
the environment that it installs into and would download PyTorch, gigabytes of it, a second time.
These hooks ask the outer interpreter where its torch is and use that one; only where there is none
do they ask the frontend for one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from setuptools import build_meta

TORCH = "torch>=2.11"
# In a fresh interpreter, without PYTHONPATH: prints where its packages are, if torch is one.
PROBE = """
import importlib.util, json, sys
print(json.dumps([sys.version_info[:2], sys.path if importlib.util.find_spec("torch") else []]))
"""


def outer_interpreters() -> list[str]:
    """Interpreters that may be the environment being installed into, the likeliest first."""
    found = [sys.executable]  # pip runs the hooks with the environment's own interpreter
    if os.environ.get("VIRTUAL_ENV"):
        found.append(os.path.join(os.environ["VIRTUAL_ENV"], "bin", "python"))
    if os.environ.get("CONDA_PREFIX"):
        found.append(os.path.join(os.environ["CONDA_PREFIX"], "bin", "python"))
    return found


def paths_with_torch() -> list[str]:
    """The ``sys.path`` of the first outer interpreter of this Python version that has torch."""
    for python in outer_interpreters():
        try:
            # -I: pip hides the environment through PYTHONPATH, which this ignores.
            probe = subprocess.run(
                [python, "-I", "-c", PROBE], capture_output=True, text=True, check=True, timeout=60
            )
            version, paths = json.loads(probe.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            continue
        if paths and tuple(version) == sys.version_info[:2]:
            return paths
    return []


def expose_torch() -> bool:
    """Make torch importable here; return whether it is."""
    try:
        import torch  # noqa: F401
    except ImportError:
        paths = paths_with_torch()
        # At the end: what the frontend installed for the build comes first.
        sys.path.extend(path for path in paths if path not in sys.path)
        return bool(paths)
    return True


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [] if expose_torch() else [TORCH]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return get_requires_for_build_wheel(config_settings)


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    return []


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    expose_torch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    expose_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


# Neither compiles anything, so neither needs torch.
build_sdist = build_meta.build_sdist
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
