"""Builds the extensions ``fassd_kernels._C`` and, with nvcc, ``fassd_kernels._C_cuda``.

Everything else about the package is in pyproject.toml. Environment:

* ``FASSD_KERNELS_CUDA``: ``1`` builds ``_C_cuda`` (an error where that is impossible), ``0`` does
  not; unset, it is built where torch is a CUDA build and nvcc is found, or where
  ``TORCH_CUDA_ARCH_LIST`` is set.
* ``TORCH_CUDA_ARCH_LIST``: the architectures; unset, those of the GPUs seen, else a default list.
* ``FASSD_KERNELS_SANITIZE``: ``1`` builds ``_C`` with AddressSanitizer and
  UndefinedBehaviorSanitizer, for ``make sanitize``.
* ``CXX``, ``MAX_JOBS``: as for any PyTorch extension.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# The binary uses no newer part of the stable ABI than torch 2.11's, so it loads in every later one.
TORCH_TARGET = "0x020b000000000000"
WINDOWS = sys.platform == "win32"
if WINDOWS:
    # The vectors of csrc/cpu are Clang's and GCC's, so of Windows' compilers only clang-cl serves.
    COMPILER, STANDARD = "clang-cl", ["/std:c++17", "/O2", "/EHsc"]
else:
    # GCC and Clang, on Linux and macOS. Error messages name the source file, not the folder that it
    # was built in.
    COMPILER, STANDARD = "c++", ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall"]
    STANDARD += [f"-fmacro-prefix-map={ROOT}/="]
SANITIZE = []
if os.environ.get("FASSD_KERNELS_SANITIZE", "0") not in ("", "0"):
    # A finding ends the process; line numbers, not all the debugger wants. The kernels run as fast
    # as with -O1, what they are checked with being what takes its time, and compile in a fifth.
    SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O0"]
# Turing, Ampere (server, workstation, Jetson Orin), Ada, Hopper, Blackwell (server, workstation):
# those that the kernels are tested for.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "12.0")
# What is built where no GPU is seen; the PTX of the last serves what comes after. GPUs of 8.6 and
# 8.9 run the code for 8.0, whose instructions are theirs. A Jetson does not.
DEFAULT_ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0", "12.0")
JETSON = "8.7"


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def compiler() -> str:
    return os.environ.get("CXX", COMPILER)


def compiler_version() -> str:
    try:
        command = [*shlex.split(compiler()), "--version"]
        return first_line(subprocess.run(command, capture_output=True, text=True).stdout)
    except OSError:
        return "none"


def compiler_missing() -> str:
    """Why a C++17 extension cannot be compiled here; empty if it can. Found out by trying."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <Python.h>\n#include <optional>\nstd::optional<int> probe;\n")
        includes = {sysconfig.get_path(name) for name in ("include", "platinclude")}
        command = [*shlex.split(compiler()), STANDARD[0], "-c", str(source), "-o", os.devnull]
        try:
            probe = subprocess.run(
                [*command, *(f"-I{path}" for path in includes)], capture_output=True, text=True
            )
        except OSError as error:
            return f"no C++ compiler: {compiler()}: {error.strerror}"
    return f"{compiler()} cannot compile: {first_line(probe.stderr)}" if probe.returncode else ""


def torch_missing() -> str:
    """Why the torch at hand cannot be compiled against; empty if it can."""
    try:
        import torch
    except ImportError:
        return "torch was not there when the package was built"
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    return "" if version >= (2, 11) else f"torch is {torch.__version__}; at least 2.11 is needed"


def toolkit(nvcc: str) -> str:
    """The folder of the CUDA toolkit that an nvcc belongs to; nvcc may be a link or a wrapper."""
    command = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
    told = subprocess.run(command, capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", told, re.M)
    return os.path.realpath(top.group(1).strip() if top else Path(nvcc).resolve().parents[1])


def cuda_home() -> str | None:
    """The CUDA toolkit to build with. A torch without CUDA does not look for one, so this does."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            return os.environ[variable]
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    return toolkit(nvcc) if nvcc else None


def cuda_missing() -> str:
    """Why ``_C_cuda`` is not built; empty if it is. Exits if it was asked for and cannot be."""
    import torch
    from torch.utils import cpp_extension

    asked = os.environ.get("FASSD_KERNELS_CUDA", "")
    if asked not in ("", "0", "1"):
        sys.exit(f"FASSD_KERNELS_CUDA is {asked!r}; expected 0, 1 or nothing")
    if asked == "0":
        return "turned off by FASSD_KERNELS_CUDA=0 when the package was built"
    requested = asked == "1" or bool(os.environ.get("TORCH_CUDA_ARCH_LIST"))
    if not requested and torch.version.cuda is None:
        return "not built: torch was a build without CUDA (FASSD_KERNELS_CUDA=1 builds it anyway)"
    home = cuda_home()
    if home and Path(home, "bin", "nvcc").exists():
        major = nvcc_version().partition(".")[0]
        if not requested and torch.version.cuda.partition(".")[0] != major:
            return f"not built: nvcc is {nvcc_version()}, torch's CUDA {torch.version.cuda}"
        cpp_extension.CUDA_HOME = home
        return ""
    if requested:
        sys.exit("_C_cuda was asked for, but nvcc was not found: set CUDA_HOME or PATH")
    return "not built: nvcc was not found when the package was built"


def nvcc_version() -> str:
    home = cuda_home()
    nvcc = shutil.which(str(Path(home, "bin", "nvcc"))) if home else None
    if nvcc is None:
        return "none"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release [\d.]+, V([\d.]+)", text)
    return match.group(1) if match else first_line(text)


def seen_architectures() -> list[str]:
    """Compute capabilities of the GPUs of this machine, whether or not torch can use them."""
    import torch

    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        found = ""
    seen = {cap for cap in found.split() if re.fullmatch(r"\d+\.\d+", cap)}
    if not seen and torch.cuda.is_available():  # where nvidia-smi is missing or does not say
        devices = range(torch.cuda.device_count())
        seen = {"{}.{}".format(*torch.cuda.get_device_capability(device)) for device in devices}
    return sorted(seen, key=float)


def default_architectures() -> list[str]:
    """What to build for where no GPU is seen."""
    release = [int(part) for part in re.findall(r"\d+", nvcc_version())[:2]] or [0, 0]
    wanted = [*DEFAULT_ARCHITECTURES, *([JETSON] if platform.machine() == "aarch64" else [])]
    return [arch for arch in sorted(wanted, key=float) if float(arch) < 10 or release >= [12, 8]]


def architectures() -> str:
    """The value of TORCH_CUDA_ARCH_LIST to build for."""
    return ";".join(seen_architectures() or default_architectures()) + "+PTX"


def sources(*patterns: str) -> list[str]:
    # setuptools wants paths relative to setup.py.
    return sorted(
        str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)
    )


def cpu_extension():
    from torch.utils.cpp_extension import CppExtension

    return CppExtension(
        "fassd_kernels._C",
        # The plans of the CUDA kernels are plain C++, and are asked for without a GPU.
        sources("csrc/*.cpp", "csrc/cpu/*.cpp", "csrc/plan/*.cpp"),
        depends=sources("csrc/*.h", "csrc/*/*.h", "csrc/plan/*.def", "fassd_kernels/schemas.def"),
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        extra_compile_args={"cxx": STANDARD + SANITIZE},
        extra_link_args=SANITIZE,
        export_symbols=["fassd_kernels_checksum"] if WINDOWS else [],
        py_limited_api=True,
    )


def cuda_extension():
    from torch.utils.cpp_extension import CppExtension, include_paths, library_paths

    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
    # libtorch depends on libtorch_cuda where there is one, and is kept as a dependency although no
    # symbol of its own is used: so the same binary loads in every CUDA build of torch, and links
    # where torch has no CUDA. The CUDA runtime is linked statically for the same reason.
    links = ["-Wl,--no-as-needed", "-ltorch", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    return CppExtension(
        "fassd_kernels._C_cuda",
        sources(
            "csrc/checks.cpp",
            "csrc/sizes.cpp",
            "csrc/plan/plan.cpp",
            "csrc/plan/fusion.cpp",
            "csrc/plan/work.cpp",
            "csrc/cuda/registration.cpp",
            "csrc/cuda/*.cu",
        ),
        depends=sources(
            *("csrc/*.h", "csrc/plan/*.h", "csrc/plan/*.def", "csrc/cuda/*.cuh"),
            "fassd_kernels/schemas.def",
        ),
        include_dirs=include_paths("cuda"),
        library_dirs=library_paths("cuda"),
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), ("USE_CUDA", None)],
        extra_compile_args={
            "cxx": STANDARD,
            "nvcc": ["-std=c++17", "-O3", "-Xptxas", "-v", "-Xcompiler", "-fvisibility=hidden"],
        },
        extra_link_args=links,
        py_limited_api=True,
    )


def say(line: str) -> None:
    """Show progress, to the terminal if there is one: pip keeps what is printed to itself."""
    try:
        with open("/dev/tty", "w") as terminal:
            terminal.write(f"\r{line}\x1b[K\n")
    except OSError:
        print(line, flush=True)


def written(objects: dict[Path, str]) -> dict[Path, float]:
    """When objects were last written, of those that there are."""
    return {path: path.stat().st_mtime for path in objects if path.exists()}


@contextlib.contextmanager
def progress(name: str, objects: dict[Path, str]) -> Iterator[None]:
    """Says which sources of an extension have been compiled, and after how long, as it is built.

    Args:
        name: of the extension.
        objects: its object files, and the sources that they are made of.
    """
    start, done, before = time.monotonic(), threading.Event(), written(objects)
    told: set[Path] = set()

    def look() -> None:
        now = written(objects)
        for path in sorted(now.keys() - told):
            if now[path] != before.get(path):
                told.add(path)
                took = f"{time.monotonic() - start:.0f} s"
                say(f"{name}: {len(told)} of {len(objects)} compiled, {took}: {objects[path]}")

    def watch() -> None:
        while not done.wait(1):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        look()


def plan() -> tuple[list, dict, dict[str, str]]:
    """Extensions, command classes, and the record that ``fassd_kernels.backends()`` reads."""
    record = {"compiler": compiler_version()}
    reason = torch_missing() or compiler_missing()
    if reason:
        record |= {"cpu_missing": f"not built: {reason}", "cuda_missing": f"not built: {reason}"}
        if os.environ.get("FASSD_KERNELS_CUDA") == "1":
            sys.exit(f"_C_cuda was asked for and cannot be built: {reason}")
        return [], {}, record
    import torch
    from torch.utils.cpp_extension import BuildExtension

    class build_extensions(BuildExtension):
        """PyTorch's, which says what it has compiled."""

        def build_extension(self, ext) -> None:
            objects = {
                Path(self.build_temp, source).with_suffix(".o"): source for source in ext.sources
            }
            if ext.name.endswith("_cuda"):
                listed = os.environ["TORCH_CUDA_ARCH_LIST"]
                say(f"{ext.name}: for compute capability {listed} (TORCH_CUDA_ARCH_LIST)")
            with progress(ext.name, objects):
                super().build_extension(ext)

    record |= {"torch": torch.__version__, "nvcc": nvcc_version()}
    extensions = [cpu_extension()]
    record["cuda_missing"] = cuda_missing()
    if not record["cuda_missing"]:
        extensions.append(cuda_extension())
        record["architectures"] = os.environ["TORCH_CUDA_ARCH_LIST"]
    return extensions, {"build_ext": build_extensions}, record


class build_package(build_py):
    """Copies the Python files, and leaves the record of the build beside them."""

    def run(self) -> None:
        if not self.editable_mode:
            # What an earlier build left there, a file since removed or a CUDA extension since
            # turned off, must not come along. Objects are kept: compiling stays incremental.
            for package in ("fassd", "fassd_kernels"):
                shutil.rmtree(Path(self.build_lib, package), ignore_errors=True)
        super().run()
        if "cpu_missing" in record:
            warnings.warn(
                f"the compiled kernels were {record['cpu_missing']}. "
                "fassd_kernels will run on its reference operators.",
                stacklevel=1,
            )
        package = ROOT if self.editable_mode else Path(self.build_lib)
        path = package / "fassd_kernels" / "_build.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1))


os.chdir(ROOT)
building = not {"egg_info", "dist_info", "sdist", "clean"} & set(sys.argv)
extensions, commands, record = plan() if building else ([], {}, {})
setup(
    ext_modules=extensions,
    cmdclass={**commands, "build_py": build_package},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions else {},
)
