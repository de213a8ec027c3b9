"""The gate of test_cuda_build.py bites: logs, budgets and code with a fault planted in them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from install import wheels
from install.cuda_budget import Budget, Limits, excesses, looseness
from install.cuda_expected import Loop, loops_of, unmeant
from install.cuda_resources import (
    Kernel,
    kernels_of,
    readable,
    resident_warps,
    threads_of,
    warnings_of,
)
from install.cuda_sass import INSTRUCTION_CACHE, Code, oversized, parse
from install.wheels import compiled_key

CONVOLUTION = (
    "_ZN5fassd4cuda18convolution_kernelINS0_8HalfMathI6__halfEELi4ELi2ELi2ELb1EEE"
    "vNS0_11ConvolutionE"
)
NORMALIZE = (
    "_ZN5fassd4cuda45_GLOBAL__N__deb5b94b_12_normalize_cu_84e5e0be16normalize_kernelIdEE"
    "vNS1_7PictureENS1_13NormalizationEPT_l"
)
NAME = "convolution_kernel<HalfMath<__half>, 4, 2, 2, true>"
LOG = f"""
[2/3] nvcc -c csrc/cuda/convolution_half.cu
ptxas info    : Compiling entry function '{CONVOLUTION}' for 'sm_80'
ptxas info    : Function properties for {CONVOLUTION}
    32 bytes stack frame, 40 bytes spill stores, 48 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 32 bytes cumulative stack size
ptxas info    : Compile time = 60.4 ms
ptxas info    : Compiling entry function '{NORMALIZE}' for 'sm_90'
ptxas info    : Function properties for {NORMALIZE}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 6144 bytes smem
"""


def test_a_spill_is_read_from_the_log() -> None:
    assert kernels_of(LOG) == [
        Kernel(NAME, "sm_80", registers=96, stack=32, spills=88, shared=0),
        Kernel("normalize_kernel<double>", "sm_90", registers=32, stack=0, spills=0, shared=6144),
    ]


def test_names_are_readable() -> None:
    assert readable([CONVOLUTION, NORMALIZE]) == [NAME, "normalize_kernel<double>"]


@pytest.mark.parametrize(
    ("line", "warns"),
    [
        ("csrc/cuda/stem.cu(12): warning #177-D: variable 'x' was declared but unused", True),
        ("/tmp/source/csrc/checks.h:40:3: warning: unused variable 'y' [-Wunused-variable]", True),
        ("ptxas warning : Value of threads per SM for entry x is out of range", True),
        ("nvcc warning : Support for offline compilation is deprecated", True),
        ("/venv/torch/csrc/stable/tensor.h(7): warning #20012-D: of somebody else", False),
        ("ptxas info    : Compiling entry function 'warning_kernel' for 'sm_80'", False),
    ],
)
def test_a_warning_is_found(line: str, warns: bool) -> None:
    for shown in (line, f"  {line}"):  # pip indents
        log = f"[1/3] c++\n{shown}\nptxas info    : 0 bytes gmem"
        assert warnings_of(log) == [shown] * warns


# Pairs of figures from NVIDIA's occupancy calculator.
@pytest.mark.parametrize(
    ("arch", "registers", "threads", "warps"),
    [
        ("sm_80", 32, 256, 64),
        ("sm_80", 33, 256, 48),
        ("sm_80", 128, 256, 16),
        ("sm_80", 129, 128, 12),
        ("sm_80", 129, 256, 8),
        ("sm_80", 168, 128, 12),
        ("sm_80", 169, 128, 8),
        ("sm_86", 32, 256, 48),
        ("sm_75", 32, 256, 32),
        ("sm_75", 255, 128, 8),
        ("sm_90", 64, 128, 32),
    ],
)
def test_resident_warps(arch: str, registers: int, threads: int, warps: int) -> None:
    assert resident_warps(arch, registers, threads) == warps


def test_threads_of_a_name() -> None:
    assert threads_of(NAME) == 128
    assert threads_of("pair_kernel<Tf32Math, 8, 4>") == 256
    assert threads_of("stem_kernel<__half, false, 2>") == 256
    assert threads_of("mean_kernel<float>") == 256


KERNEL = Kernel(NAME, "sm_80", registers=128, shared=64)


def budget(registers: int = 128, warps: int = 16, shared: int = 64, name: str = NAME) -> Budget:
    return Budget("13.0", {name: {"sm_80": Limits(registers, warps, shared)}})


def test_what_fits_passes() -> None:
    assert not excesses([KERNEL], budget()) + looseness([KERNEL], budget())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (budget(registers=127), "takes 128 registers, 127 are allowed"),
        (budget(warps=20), "has 16 warps at once, 20 are wanted"),
        (budget(shared=0), "takes 64 bytes of shared memory, 0 are allowed"),
        (budget(name="other"), "is not in cuda_budget.json"),
        (Budget("13.0"), "is not in cuda_budget.json"),
    ],
)
def test_an_excess_is_told(limits: Budget, message: str) -> None:
    first = excesses([KERNEL], limits)[0]
    assert first.startswith(f"{NAME} for sm_80 {message}")
    assert "python -m install.cuda_budget" in first


def test_a_kernel_that_has_gone_is_told() -> None:
    both = budget()
    both.kernels["gone"] = {"sm_80": Limits(32, 64, 0), "sm_120": Limits(32, 48, 0)}
    (problem,) = excesses([KERNEL], both)
    assert problem.startswith("gone for sm_80 was not compiled")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (budget(registers=137), "takes 128 of 137 registers"),
        (budget(warps=12), "has 16 warps at once, not 12"),
        (budget(shared=128), "takes 64 of 128 bytes of shared memory"),
    ],
)
def test_a_loose_budget_is_told(limits: Budget, message: str) -> None:
    (problem,) = looseness([KERNEL], limits)
    assert problem.startswith(f"{NAME} for sm_80 {message}")
    assert not looseness([KERNEL], budget(registers=136))


def test_a_budget_is_written_and_updated(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    old = budget()
    old.kernels[NAME]["sm_120"] = Limits(100, 20, 0)
    old.kernels["gone"] = {"sm_120": Limits(32, 48, 0)}
    old.update([Kernel(NAME, "sm_80", registers=96), Kernel("new<1>", "sm_80", registers=40)])
    old.write(path)
    assert Budget.read(path) == Budget(
        "13.0",
        {
            NAME: {"sm_80": Limits(96, 20, 0), "sm_120": Limits(100, 20, 0)},
            "new<1>": {"sm_80": Limits(40, 48, 0)},
        },
    )


def sliding_loop(pixels: int = 4, products: int = 12, more: str = "") -> str:
    """A disassembly of the convolution of two rows of two fragments, as it is meant."""
    lines = [
        "LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", "LDG.E.128 R4, desc[UR4][R2.64]",
        "STG.E.128 desc[UR4][R2.64], R4", "LDS.128 R4, [R1]", *["STS.64 [R1], R4"] * 8,
        ".L_x_1:", *["LDSM.16.M88.4 R4, [R8]"] * pixels, *["LDSM.16.MT88.4 R12, [R9]"] * 3,
        *["HMMA.16816.F32 R4, R8, R12, R4"] * products, *filter(None, [more]),
        "@P0 BRA `(.L_x_1)", "EXIT",
    ]  # fmt: skip
    code = [line if line.startswith(".L") else f"    /*0010*/   {line} ;" for line in lines]
    return "\n".join([f".text.{CONVOLUTION}:", *code])


def problems(disassembly: str, threads: int = 128) -> list[str]:
    ((_, code),) = parse(disassembly).items()
    code.threads = threads
    return unmeant("sm_80", NAME, code)


def test_instructions_as_meant_pass() -> None:
    assert problems(sliding_loop()) == []


@pytest.mark.parametrize(
    ("disassembly", "message"),
    [
        (sliding_loop(pixels=6), "has 6 of LDSM"),
        (sliding_loop(products=13), "has 13 of HMMA, 12 are meant"),
        (sliding_loop(more="LDG.E R4, desc[UR4][R2.64]"), "0 are meant"),
        (sliding_loop(more="IMAD.WIDE R4, R5, 0x2, R6"), "0 are meant"),
        (sliding_loop(more="LDL R4, [R1]"), "LDL|STL occurs 1 times, at most 0"),
        (sliding_loop(more="DFMA R4, R6, R8, R10"), "occurs 1 times, at most 0"),
        (sliding_loop(more="LD.E R4, [R2]"), "occurs 1 times, at most 0"),
        (sliding_loop(more="LDGSTS.E [R1], desc[UR4][R2.64]"), "occurs 1 times, at most 0"),
        (sliding_loop().replace("HMMA.16816.F32", "HMMA.1688.F32"), "HMMA"),
        (sliding_loop().replace("LDGSTS", "LDG"), "LDGSTS"),
        (sliding_loop().replace("STG.E.128", "STG.E.64"), "STG"),
        (sliding_loop().replace("STS.64", "STS"), "STS"),
    ],
)
def test_an_instruction_that_is_not_meant_is_told(disassembly: str, message: str) -> None:
    found = problems(disassembly)
    assert any(message in each for each in found), found
    assert all(each.startswith(f"{NAME} for sm_80: ") for each in found)


def test_loops_of_a_name() -> None:
    assert loops_of(NAME) == [Loop(2, 2, sliding=True)]
    assert loops_of("pair_kernel<HalfMath<__nv_bfloat16>, 8, 16>") == [Loop(1, 16)]
    assert loops_of("stem_kernel<__half, true, 4>") == []
    assert loops_of("convolution_kernel<FloatMath, 8, 1, 4, false>") == []
    assert loops_of("upsample_kernel<__half>") == []


def test_other_blocks_than_the_name_says_are_told() -> None:
    (problem,) = problems(sliding_loop(), threads=256)
    assert "256 threads, not 128" in problem


def test_code_beyond_the_instruction_cache_is_told() -> None:
    whole = INSTRUCTION_CACHE // 16
    codes = {
        ("sm_90", NAME): Code(["NOP"] * whole),
        ("sm_90", "large"): Code(["NOP"] * (whole + 64)),
    }
    assert oversized(codes) == ["large for sm_90: 129 KiB of code, the cache holds 128"]


def test_innermost_loops() -> None:
    code = Code(
        ["LDS R1, [R2]", "FFMA R1, R1, R1, R1", "BRA `(.L_x_2)", "BRA `(.L_x_1)", "BRA `(.L_x_3)"],
        {".L_x_1": 0, ".L_x_2": 1, ".L_x_3": 5},
    )
    assert code.loops() == [range(1, 3)]
    assert code.bodies("FFMA") == [["FFMA R1, R1, R1, R1", "BRA `(.L_x_2)"]]
    assert code.bodies("LDS") == []


def test_the_key_tells_builds_apart() -> None:
    few = {"TORCH_CUDA_ARCH_LIST": "8.0", "MAX_JOBS": "2"}
    assert compiled_key(few) == compiled_key({**few, "MAX_JOBS": "1"})
    assert compiled_key(few) != compiled_key({**few, "TORCH_CUDA_ARCH_LIST": "9.0"})


@pytest.mark.parametrize(
    ("change", "again"), [("csrc/cuda/image.cuh", True), ("fassd/__init__.py", False)]
)
def test_what_is_compiled_decides_whether_to_begin_anew(
    change: str, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip_wheel(source: Path, **_: str) -> subprocess.CompletedProcess[str]:
        objects = source / "build" / "temp" / "objects"
        said = "found" if objects.exists() else "compiled"
        objects.parent.mkdir(parents=True, exist_ok=True)
        objects.touch()
        shutil.make_archive(str(source / "dist" / "net"), "zip", source / "fassd" / "data")
        (source / "dist" / "net.zip").rename(source / "dist" / "net.whl")
        return subprocess.CompletedProcess([], 0, said)

    sources = wheels.source_copy(tmp_path / "sources")
    monkeypatch.setattr(wheels, "ROOT", sources)
    monkeypatch.setattr(wheels, "pip_wheel", pip_wheel)
    monkeypatch.setattr(wheels, "build_environment", dict)
    kept = tmp_path / "kept"
    assert wheels.build(kept).compile_log == wheels.build(kept).compile_log == "compiled"
    (sources / change).write_text("// other\n")
    assert wheels.build(kept).log == ("compiled" if again else "found")
    assert (kept / "tree" / change).read_text() == "// other\n"


def test_what_was_compiled_in_one_folder_serves_in_another(tmp_path: Path) -> None:
    """Object, list of headers, and warnings; not for other sources, nor asked otherwise."""
    compiler = tmp_path / "tests/install/c++"
    compiler.parent.mkdir(parents=True)
    shutil.copy(Path(wheels.__file__).with_name("c++"), compiler)

    def compiled(name: str, value: int, *options: str) -> tuple[bytes, str, str]:
        root = tmp_path / name
        for folder in ("csrc", "fassd_kernels", "out"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "fassd_kernels/schemas.def").touch()
        (root / "csrc/own.h").write_text(f"static int value = {value}, unused = 3;\n")
        source, target = root / "csrc/a.cpp", root / "out/a.o"
        source.write_text('#include "own.h"\nint f() { return value; }\n')
        asked = ["-MMD", "-MF", f"{target}.d", "-c", "-c", source, "-o", target, "-Wall", *options]
        command = [compiler, *asked, "-DTORCH_EXTENSION_NAME=_C", f"-fmacro-prefix-map={root}/="]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        told = Path(f"{target}.d").read_text()
        assert told.startswith(f"{target}: ") and f"{root}/csrc/own.h" in told
        assert f"{root}/csrc/own.h:1:23: warning: " in done.stderr
        return target.read_bytes(), told.replace(str(root), ""), done.stderr.replace(str(root), "")

    kept = tmp_path / "build" / "objects"
    first = compiled("one", 1)
    (folder,) = kept.iterdir()
    (folder / "object").write_bytes(b"kept")
    assert compiled("two", 1) == (b"kept", *first[1:])
    other = compiled("two", 2)
    assert other[0] not in (first[0], b"kept")
    (again,) = kept.iterdir()
    assert again != folder
    assert compiled("two", 2, "-DMORE")[0] != b"kept" and not (again / "object").exists()
