"""What pip builds: with isolation and without, with a compiler and without, and its ABI."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from install.installed import SEARCH, repaired
from install.wheels import ROOT, Built

TRY_IT = """
import warnings, torch, fassd, fassd_kernels
print(fassd_kernels.__file__)
model = fassd.create_model("fassd_net_l2").eval()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    fast = fassd_kernels.accelerate(model)
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 96)
        assert torch.allclose(fast(x), model(x), atol=1e-3)
print(fassd_kernels.backends())
"""


def in_wheel(built: Built, code: str, *arguments: str, folder: Path | None = None) -> str:
    """What code prints in a process that sees the wheel and this environment's torch alone."""
    # -S: an editable install of this package would otherwise lend the wheel its extensions.
    path = os.pathsep.join([str(built.contents), sysconfig.get_path("purelib")])
    result = subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=folder or built.contents,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    return result.stdout


def run_from(built: Built) -> str:
    """The report of the unpacked wheel, and before it that a network runs in it."""
    printed = in_wheel(built, TRY_IT)
    assert printed.startswith(str(built.contents)), "the wheel was not what was tried"
    return printed


def undefined_symbols(library: Path) -> list[str]:
    """Demangled names that the library wants from others, without symbol versions."""
    command = ["nm", "--dynamic", "--undefined-only", "--demangle", str(library)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.strip().partition(" ")[2].split("@")[0] for line in out.splitlines()]


def libraries(built: Built) -> list[Path]:
    return sorted(built.contents.glob("fassd_kernels/*.so"))


def test_isolated_build_does_not_download_torch(built: Built) -> None:
    assert not re.search(r"(Collecting|Downloading|Using cached|Processing).*\btorch\b", built.log)
    record = json.loads((built.contents / "fassd_kernels" / "_build.json").read_text())
    import torch

    assert record["torch"] == torch.__version__


def test_wheel_serves_every_later_python(built: Built) -> None:
    assert "-cp310-abi3-" in built.wheel.name
    assert all(path.name.endswith(".abi3.so") for path in libraries(built))
    assert libraries(built)


def test_wheel_works(built: Built) -> None:
    assert re.search(r"^cpu +available: C\+\+", run_from(built), re.M)


def test_progress_is_shown(built: Built) -> None:
    compiled = re.findall(
        r"fassd_kernels._C: (\d+) of (\d+) compiled, \d+ s: csrc/", built.compile_log
    )
    assert [int(k) for k, _ in compiled] == list(range(1, int(compiled[-1][1]) + 1))


def test_it_passes_the_audit(built: Built, tmp_path: Path) -> None:
    """But for PyTorch's, it needs libraries alone that every system of a manylinux policy has."""
    for tool in ("auditwheel", "patchelf"):
        if shutil.which(tool, path=SEARCH) is None:
            pytest.skip(f"{tool} is not installed")
    made = repaired(built.wheel, tmp_path / "repaired")
    assert re.search(r"-cp310-abi3-(manylinux_\d+_\d+_\w+\.?)+\.whl$", made.name)
    with zipfile.ZipFile(made) as archive:
        names = [Path(name).name for name in archive.namelist()]
    assert sorted(name for name in names if ".so" in name) == [p.name for p in libraries(built)]


def test_a_sample_of_the_conformance_suite(built: Built, tmp_path: Path) -> None:
    """Of the wheel alone, a few operators; `make wheels` runs more, beside other PyTorches."""
    shutil.copytree(ROOT / "tests" / "conformance", tmp_path / "tests" / "conformance")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    names = ("conv_act", "hardblock", "upsample_confidence")
    sample = [f"tests/conformance/test_{name}.py" for name in names]
    sample += ["-q", "--backend", "cpu", "--every", "64", "-k", "test_table"]
    out = in_wheel(built, code, *sample, folder=tmp_path).splitlines()[-1]
    assert re.match(r"\d+ passed", out), out


def test_only_stable_symbols_are_used(built: Built) -> None:
    """The binary must load in every torch >= 2.11: only the C shim, no C++ of torch's."""
    shim = re.compile(r"(aoti_torch_|torch_)\w+")
    for library in libraries(built):
        wanted = undefined_symbols(library)
        unstable = [s for s in wanted if re.search(r"\b(at|c10|torch|caffe2)::", s)]
        assert not unstable, (library.name, unstable)
        python = {s for s in wanted if re.match(r"_?Py", s)}
        assert python <= {"PyModule_Create2"}, (library.name, python)
        assert any(shim.fullmatch(s) for s in wanted), "the audit looks at nothing"


def test_shim_is_not_newer_than_torch_2_11() -> None:
    """The version asked of torch's headers, which hide whatever came later."""
    import torch

    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    (target,) = re.findall(r'^TORCH_TARGET = "0x([0-9a-f]{16})"$', setup, re.M)
    assert (int(target[:2], 16), int(target[2:4], 16)) <= (2, 11)
    assert tuple(int(p) for p in re.findall(r"\d+", torch.__version__)[:2]) >= (2, 11)


def test_without_a_compiler_the_reference_runs(built_without_compiler: Built) -> None:
    assert not libraries(built_without_compiler)
    warning = r"the compiled kernels were not built: no C\+\+ compiler: no-such-compiler"
    assert len(re.findall(warning, built_without_compiler.log)) == 1
    report = run_from(built_without_compiler)
    assert re.search(r"^cpu +not available: not built: no C\+\+ compiler", report, re.M)
    assert re.search(r"^reference +available", report, re.M)


def test_weights_cards_and_presets_are_in_the_wheel(built: Built) -> None:
    for pattern in (
        "weights/*.safetensors",
        "weights/README.md",
        "data/cards/*.yaml",
        "bench/report/templates/*",
    ):
        own = sorted(path.name for path in (ROOT / "fassd").glob(pattern))
        assert own and own == sorted(path.name for path in built.contents.glob(f"fassd/{pattern}"))
    presets = {path.stem for path in built.contents.glob("fassd/training/presets/*.yaml")}
    assert presets == {"demo", "membrane", "paper", "paper-l1", "paper-l2", "streets"}


def test_the_backend_of_torch_compile_is_registered(built: Built) -> None:
    (file,) = built.contents.glob("*.dist-info/entry_points.txt")
    text = file.read_text()
    entry = "fassd_kernels = fassd_kernels.graphs.backend:compile_graph"
    assert f"[torch_dynamo_backends]\n{entry}" in text
