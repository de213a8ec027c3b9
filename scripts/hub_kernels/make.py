"""Write the kernels as a repository of Hugging Face's `kernels`, from the sources here.

    python scripts/hub_kernels/make.py OUT

OUT holds what `kernel-builder` takes (``build.toml``, ``CARD.md``, ``csrc``, ``torch-ext`` with the
Python package) and ``build/VARIANT``: that package with the extensions that are built here, which
``kernels.get_local_kernel(OUT)`` loads. The package is `fassd_kernels` with `fassd.models` inside
it, its imports made relative, as the hub asks of a kernel.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAME = "fassd-kernels"
VERSION = 1
LICENSE = "Apache-2.0"

LEFT_OUT = ("__main__.py", "tune.py", "tuning/*", "models/hub.py")
"""Of the package: programs, and what needs more than PyTorch and NumPy."""

IMPORT = re.compile(
    r"^( *)from (fassd_kernels|fassd(?=\.models| import models$))([\w.]*) import ", re.MULTILINE
)


def package() -> dict[str, str]:
    """The files of the kernel's package: their texts by their paths in it."""
    files: dict[str, str] = {}
    for folder, place in (("fassd_kernels", ""), ("fassd/models", "models/")):
        for path in sorted((ROOT / folder).rglob("*")):
            name = place + path.relative_to(ROOT / folder).as_posix()
            kept = path.suffix in (".py", ".def") or path.match("configs/**/*.json")
            if kept and not any(Path(name).match(pattern) for pattern in LEFT_OUT):
                files[name] = (
                    relative(path.read_text(), name) if path.suffix == ".py" else path.read_text()
                )
    files["layers.py"] = (HERE / "layers.py").read_text()
    files["__init__.py"] += "\nfrom . import layers as layers\n"
    return files


def relative(text: str, name: str) -> str:
    """A file's text with imports that hold wherever the package lies.

    Args:
        text: text of a file of `fassd_kernels` or `fassd.models`.
        name: its path in the kernel's package.
    """
    dots = "." * name.count("/") + "."

    def shorter(match: re.Match[str]) -> str:
        return f"{match[1]}from {dots}{match[3].removeprefix('.')} import "

    text = IMPORT.sub(shorter, text)
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        if any(each.partition(".")[0] in ("fassd", "fassd_kernels") for each in names):
            raise ValueError(f"{name}, line {node.lineno}: an import that is not made relative")
    return text


def stable_abi() -> str:
    """The oldest version of PyTorch that the extensions load in."""
    major, minor = re.findall(
        r'^TORCH_TARGET = "0x(..)(..)', (ROOT / "setup.py").read_text(), re.M
    )[0]
    return f"{int(major, 16)}.{int(minor, 16)}"


def build_toml() -> str:
    """What kernel-builder is told."""

    def listed(*patterns: str) -> str:
        found = sorted(p.relative_to(ROOT).as_posix() for each in patterns for p in ROOT.glob(each))
        return json.dumps(
            [name for name in found if not name.endswith("registration.cpp")], indent=2
        )

    common = listed("csrc/*.cpp", "csrc/*.h", "csrc/plan/*", "csrc/cpu/*")
    flags = json.dumps(["-std=c++17", "-O3", "-fvisibility=hidden"])
    return f"""[general]
name = "{NAME}"
version = {VERSION}
edition = 5
license = "{LICENSE}"
backends = ["cpu", "cuda"]

[general.hub]
repo-id = "OWNER/{NAME}"

[torch]
pyext = ["py", "def", "json"]
include = ["."]
src = ["torch-ext/torch_binding.cpp"]
stable-abi = "{stable_abi()}"
cxx-flags = {flags}

[kernel.{NAME.replace("-", "_")}_cpu]
backend = "cpu"
depends = ["torch"]
cxx-flags = {flags}
src = {common}

[kernel.{NAME.replace("-", "_")}_cuda]
backend = "cuda"
depends = ["torch"]
cxx-flags = {flags}
cuda-flags = ["-std=c++17", "-O3"]
src = {listed("csrc/*.cpp", "csrc/*.h", "csrc/plan/*", "csrc/cpu/*", "csrc/cuda/*")}
"""


def variants() -> Iterator[tuple[str, dict[str, object], list[Path]]]:
    """What is built here: a variant's name, its backend, and its extensions."""
    built = ROOT / "fassd_kernels"
    system = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    place = f"{system}-{platform.system().lower()}"
    prefix = f"torch-stable-abi{stable_abi().replace('.', '')}"
    cpu, cuda = (sorted(built.glob(f"{name}.*so")) for name in ("_C", "_C_cuda"))
    if cpu:
        yield f"{prefix}-cpu-{place}", {"type": "cpu"}, cpu
    if cpu and cuda:
        record = json.loads((built / "_build.json").read_text())
        toolkit = "".join(record["nvcc"].split(".")[:2])
        archs = [arch.removesuffix("+PTX") for arch in record["architectures"].split(";")]
        yield f"{prefix}-cu{toolkit}-{place}", {"type": "cuda", "archs": archs}, cpu + cuda


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make(out: Path) -> list[str]:
    """Write the repository into a new folder; the names of its variants.

    Raises:
        FileExistsError: the folder is there.
        FileNotFoundError: no extension is built.
    """
    made = list(variants())
    if not made:
        raise FileNotFoundError("fassd_kernels/_C is not built here: pip install -e . builds it")
    out.mkdir(parents=True)
    files, module = package(), NAME.replace("-", "_")
    own = {"_C.py": (HERE / "extension.py").read_text()}
    write(out / "torch-ext" / module, {**files, **own, "_C_cuda.py": own["_C.py"]})
    write(out, {"build.toml": build_toml(), "CARD.md": (HERE / "CARD.md").read_text()})
    shutil.copy(HERE / "torch_binding.cpp", out / "torch-ext")
    shutil.copytree(ROOT / "csrc", out / "csrc")
    (out / "fassd_kernels").mkdir()  # where the C++ sources include it from
    shutil.copy(ROOT / "fassd_kernels/schemas.def", out / "fassd_kernels")
    for variant, backend, extensions in made:
        folder = out / "build" / variant
        write(folder, files)
        for each in (*extensions, ROOT / "fassd_kernels/_build.json"):
            shutil.copy(each, folder)
        digest = hashlib.sha256()
        for path in sorted(folder.rglob("*")):
            digest.update(path.read_bytes() if path.is_file() else b"")
        metadata = {
            "name": NAME,
            "id": f"_{module}_{backend['type']}_{digest.hexdigest()[:12]}",
            "version": VERSION,
            "license": LICENSE,
            "python-depends": [],
            "backend": backend,
        }
        write(folder, {"metadata.json": json.dumps(metadata, indent=2)})
    return [variant for variant, _, _ in made]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    try:
        print("\n".join(make(parser.parse_args().out)))
    except OSError as error:
        sys.exit(f"{error}")
