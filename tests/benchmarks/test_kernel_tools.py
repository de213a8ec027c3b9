"""What the GPU report learns of the kernels themselves: sanitizers, counters, variants, launches.

NVIDIA's tools are scripts here, which write what the real ones write.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fassd_kernels
from benchmarks import tools, variants
from benchmarks.plan import Item
from benchmarks.probes import is_cuda_kernel, launch_times, measure_runner
from benchmarks.report import problems, render
from benchmarks.rows import is_slower_choice
from benchmarks.session import Session
from benchmarks.tools import count_launches, findings, parse_counters, sanitize
from benchmarks.variants import (
    Variant,
    fitting,
    known_variants,
    measure_shape,
    measure_variants,
    variants_text,
)
from fassd.bench.candidates import UnavailableError
from fassd.bench.stopwatch import Sampling

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

needs_cpu_kernels = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason=fassd_kernels.backends()["cpu"].reason
)

# --- stand-ins for NVIDIA's tools -----------------------------------------------------------------


@pytest.fixture
def install_tool(tmp_path, monkeypatch) -> Callable[[str, str], Path]:
    """Put a script on an otherwise empty search path; its arguments go to ``NAME.arguments``."""
    monkeypatch.setattr(tools, "TOOLKIT", tmp_path / "nowhere")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, body: str) -> Path:
        path = folder / name
        noted = tmp_path / f"{name}.arguments"
        path.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {noted}\n{body}')
        path.chmod(0o755)
        return noted

    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return write


# Everything behind the options is the program that is watched: it begins with Python's path.
WATCH = """
if [ "$1" = --help ]; then echo "  --kernel-regex arg  Filter"; exit 0; fi
while [ $# -gt 0 ]; do
  case "$1" in
    --log-file) log="$2"; shift 2;;
    *python*) break;;
    *) shift;;
  esac
done
"""

MEMCHECK = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at void fassd::cuda::convolution_kernel<HalfMath>(Convolution)+0x70 in conv.cuh:42
=========     by thread (7,0,0) in block (1,0,0)
=========     Address 0x7f0000 is out of bounds
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cuLaunchKernel [0x1] in libcuda.so
=========
========= Invalid __global__ write of size 2 bytes
=========     at fassd::cuda::upsample_kernel()+0x20
=========     by thread (0,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 12 errors
========= ERROR SUMMARY: 10 errors were not printed. Use --print-limit option to adjust the number
"""
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at fassd::cuda::pair_kernel()+0x90 in pair.cuh:7
=========     and Read access at fassd::cuda::pair_kernel()+0xa0 in pair.cuh:9 [32 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
SUITE = """
import os
def test_table(): assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
def test_layouts(): raise AssertionError("left out")
"""


def test_a_sanitizers_findings_are_counted_and_quoted(tmp_path, install_tool):
    planted, suite = tmp_path / "planted", tmp_path / "test_suite.py"
    planted.write_text(MEMCHECK)
    suite.write_text(SUITE)
    noted = install_tool("compute-sanitizer", f'{WATCH}cp {planted} "$log"\nexec "$@"\n')
    data = sanitize(tmp_path, 60.0, "memcheck", str(suite), ["-ktest_table"])
    arguments = noted.read_text().splitlines()
    assert data["counts"] == {"passed": 1} and data["finished"]
    assert data["findings"] == 12 and len(data["quoted"]) == 2
    first = data["quoted"][0].splitlines()
    assert first[0] == "Invalid __global__ read of size 4 bytes"
    assert "convolution_kernel" in first[1] and not any("Host Frame" in line for line in first)
    assert arguments[:2] == ["--tool", "memcheck"]
    assert arguments[arguments.index("--kernel-regex") + 1] == f"kns={tools.OURS}"
    item = {"name": "sanitizer/memcheck", "part": "sanitizer", "status": "done", "data": data}
    report = report_of(item)
    assert problems(report) == ["sanitizer/memcheck: 12 findings"]
    page = render(report)
    assert "| memcheck | 1 | 0 | 12 |" in page and "Invalid __global__ write of size 2" in page


def test_the_search_for_unwritten_memory_sees_all_kernels(tmp_path, install_tool, monkeypatch):
    install_tool("compute-sanitizer", WATCH)
    calls: list[Any] = []

    def run(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments[-2:])
        return {"counts": {"passed": 1}}

    monkeypatch.setattr(tools, "conformance", run)
    assert sanitize(tmp_path, 60.0, "initcheck", "tests", [])["findings"] == 0
    ((under, environment),) = calls
    assert under[1:3] == ["--tool", "initcheck"]
    assert not any(argument.startswith("kns=") for argument in under)
    # The suite fills new memory with NaN, which would count as written.
    assert environment["CONFORMANCE_UNPOISONED"] == "1"


def test_the_suite_can_leave_new_memory_unwritten(tmp_path):
    """Its own fixture, in a run of its own."""
    folder = ROOT / "tests" / "conformance"
    (tmp_path / "test_memory.py").write_text(
        "import torch\n"
        "def test_new_memory(poisoned_memory):\n"
        "    assert not torch.utils.deterministic.fill_uninitialized_memory\n"
    )
    environment = {"CONFORMANCE_UNPOISONED": "1"}
    plugin = ["-p", "conformance.conftest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    search = os.pathsep.join([str(folder.parent), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": search, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_races_are_counted():
    found = findings(RACECHECK)
    assert found["findings"] == 1
    assert found["quoted"][0].startswith("Error: Race reported between Write access at fassd")
    assert found["quoted"][0].endswith("[32 hazards]")


def test_what_was_printed_counts_where_the_tool_was_stopped():
    assert findings(MEMCHECK.partition("========= ERROR")[0])["findings"] == 2
    assert findings("") == {"findings": 0, "quoted": []}


def test_a_tool_that_cannot_watch_is_no_failure_of_ours(tmp_path, install_tool):
    trouble = "========= Error: Unable to attach: no permission"
    install_tool("compute-sanitizer", f'{WATCH}echo "{trouble}" > "$log"\nexit 1\n')
    with pytest.raises(UnavailableError, match="Unable to attach"):
        sanitize(tmp_path, 60.0, "memcheck", str(tmp_path / "none.py"), [])


def session_in(folder: Path) -> Session:
    state = {"device": "cpu", "quick": True, "run": "a", "identity": {}, "started": 0.0}
    paths = {"output": str(folder / "out"), "work": str(folder / "work")}
    chosen = {"first": False, "only": [], "budget_s": 540.0}
    header = {"device": "a", "mode": "full", "commit": "b"}
    return Session({**state, **paths, **chosen, "header": header}, lambda: 0.0)


@pytest.mark.parametrize(
    ("task", "arguments", "name"),
    [
        ("sanitizer", {"tool": "memcheck", "suite": "tests", "options": []}, "compute-sanitizer"),
        ("counters", {"network": "fassd_net"}, "ncu"),
    ],
)
def test_a_missing_tool_is_said_to_be_missing(tmp_path, install_tool, task, arguments, name):
    record = session_in(tmp_path).perform(Item("a", task, task, arguments), 10.0)
    assert record["status"] == "unavailable"
    assert record["reason"].startswith(f"{name} is not installed")


def test_an_item_with_an_environment_has_a_process_of_its_own(tmp_path, monkeypatch):
    run = session_in(tmp_path)
    item = next(item for item in run.plan if item.environment)
    calls: list[Any] = []

    def child(command: list[str], log: Path, limit_s: float, environment: dict[str, str]) -> int:
        calls.append(environment)
        if environment["FASSD_GPU_REPORT_ITEM"] == item.name and len(calls) == 1:
            run.save(item, {"status": "done", "data": {"by": "the child"}})
        return 3

    monkeypatch.setattr("benchmarks.session.run_logged", child)
    assert run.perform(item, 10.0)["data"] == {"by": "the child"}
    assert item.environment.items() <= calls[0].items()
    record = run.perform(item, 10.0)
    assert record["status"] == "failed" and "code 3" in record["reason"]
    unknown = replace(item, environment={"FASSD_KERNELS_NO_SUCH": "1"})
    record = run.perform(unknown, 10.0)
    assert record["status"] == "unavailable" and "FASSD_KERNELS_NO_SUCH" in record["reason"]


# --- counters -------------------------------------------------------------------------------------

STALLS = ("long_scoreboard", "no_instruction", "selected", "barrier_not_issued")
NAMES = [
    "ID",
    "Kernel Name",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "gpu__time_duration.sum",
    "launch__registers_per_thread",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
    *(f"smsp__average_warps_issue_stalled_{stall}_per_issue_active.ratio" for stall in STALLS),
]


def ncu_page(durations: list[str], unit: str = "ns") -> str:
    """As ``ncu --csv --page raw`` writes it."""
    units = ["%", unit, "register/thread", "%", "%", "%", "%", "inst"]
    lines = [NAMES, ["", "", *units, *["inst"] * len(STALLS)]]
    for index, duration in enumerate(durations):
        figures = ["41.5", duration, "128", "33.25", "61.5", "52.0", "24.9", "1,048,576"]
        figures += ["3.0", "1.0", "9.0", "8.0"]  # of warps in each state
        lines.append([str(index), f"convolution_kernel<{index}>", *figures])
    text = "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)
    return f"==PROF== Connected to process 7\n==PROF== Disconnected\n{text}\n"


def test_counters_are_read_from_ncus_page():
    (launch,) = parse_counters(ncu_page(["12,345"]))
    assert launch == {
        "index": 0,
        "kernel": "convolution_kernel<0>",
        "us": pytest.approx(12.345),
        "sm": 52.0,
        "dram": 41.5,
        "l2": 33.25,
        "occupancy": 24.9,
        "issue_slots_busy": 61.5,
        "instructions": 1048576.0,
        "registers": 128.0,
        "blocks": None,
        "stall": "long_scoreboard",
        "stall_share": 0.75,
        "no_instruction_share": 0.25,
    }
    (longer,) = parse_counters(ncu_page(["1.5"], "msecond"))
    assert longer["us"] == 1500.0
    assert parse_counters("==PROF== nothing\n") == []


def test_the_counters_of_all_launches_are_kept(tmp_path, install_tool):
    planted = tmp_path / "planted"
    durations = [str(1000 * (1 + index % 7)) for index in range(60)]
    planted.write_text(ncu_page(durations))
    noted = install_tool("ncu", f'{WATCH}cp {planted} "$log"\n')
    data = count_launches(tmp_path, 10.0, network="fassd_net", batch=1)
    assert (data["launches"], data["us"]) == (60, pytest.approx(sum(map(float, durations)) / 1e3))
    assert [launch["index"] for launch in data["rows"]] == list(range(60))
    arguments = noted.read_text().splitlines()
    assert arguments[:4] == ["--clock-control", "none", "--profile-from-start", "off"]
    sections = {b for a, b in itertools.pairwise(arguments) if a == "--section"}
    assert sections >= {"SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "WarpStateStats"}
    assert json.loads(arguments[-1]) == {"network": "fassd_net", "batch": 1}
    item = {"name": "counters/fassd_net", "part": "counters", "status": "done", "data": data}
    figures = "52% | 42% | 33% | 25% | 62% | 1048576 | long_scoreboard | 75% | 25%"
    row = f"| 6 | convolution_kernel<6> | 7.000 | {figures}"
    page = render(report_of(item))
    assert f"{row} | 128 | - |" in page
    # The page has the slowest ones.
    assert page.count("| convolution_kernel<") == 12 and "convolution_kernel<0>" not in page


def test_counters_that_were_read_before_the_limit_are_kept(tmp_path, install_tool):
    planted = tmp_path / "planted"
    planted.write_text(ncu_page(["1000", "2000"]))
    install_tool("ncu", f'{WATCH}cp {planted} "$log"\nexec sleep 60\n')
    data = count_launches(tmp_path, 1.0, network="fassd_net")
    assert data["launches"] == 2 and data["outcome"] == "was killed at its limit"


def test_counters_that_may_not_be_read_are_no_failure(tmp_path, install_tool):
    refusal = "==ERROR== ERR_NVGPUCTRPERM - no permission"
    install_tool("ncu", f'{WATCH}echo "{refusal}" > "$log"\nexit 1\n')
    with pytest.raises(UnavailableError, match="ncu: ERR_NVGPUCTRPERM"):
        count_launches(tmp_path, 10.0, network="fassd_net")
    install_tool("ncu", "echo broken\nexit 3\n")
    with pytest.raises(RuntimeError, match="code 3 and saw no launch:\nbroken"):
        count_launches(tmp_path, 10.0, network="fassd_net")


# --- variants -------------------------------------------------------------------------------------


def test_the_variants_are_those_that_are_compiled():
    halves = known_variants("halves")
    source = (ROOT / "csrc" / "cuda" / "convolution_launch.cuh").read_text()
    entries = re.findall(r"entry<Math, (\d+), (\d+), (\d+)(, true)?>\(\)", source)
    assert set(halves) == {Variant(int(w), int(m), int(n), bool(s)) for w, m, n, s in entries}
    assert Variant(8, 2, 8) in halves and Variant(4, 4, 2, True) in halves
    assert known_variants("floats")[0].text == "8,1,8,0"


def test_a_variant_is_forced_for_as_long_as_it_is_asked_for(monkeypatch):
    monkeypatch.delenv(variants.VARIABLE, raising=False)
    with Variant(4, 2, 8, True).forced():
        assert os.environ[variants.VARIABLE] == "4,2,8,1"
        with Variant(8, 2, 8).forced():
            assert os.environ[variants.VARIABLE] == "8,2,8,0"
        assert os.environ[variants.VARIABLE] == "4,2,8,1"
    assert variants.VARIABLE not in os.environ


@pytest.fixture
def model() -> Any:
    from fassd.bench.costs import cuda as predict

    try:
        device = predict.find_device("H200")
    except ImportError as error:
        pytest.skip(str(error))
    return lambda dtype: predict.Model(device, dtype)


def convolution(arithmetic: int, **more: Any) -> Any:
    from fassd.bench.costs.cuda import Convolution

    size = (16, 32)
    given = {"kernel": (3, 3), "out_size": size, **more}
    return Convolution(1, size, (10, 18), 24, arithmetic=arithmetic, **given)


def test_sliding_variants_fit_plain_3x3_alone(model):
    limits = model(torch.float16).limits
    plain, dilated = (fitting(convolution(0, dilation=d), limits) for d in ((1, 1), (2, 2)))
    assert {variant.sliding for variant in plain} == {False, True}
    assert {variant.sliding for variant in dilated} == {False}
    assert dilated[Variant(4, 1, 3)].n_tiles == 3


def measured(model: Any) -> dict[str, Any]:
    shape = convolution(2, stride=(2, 2), out_size=(8, 16))
    sampling = Sampling(rounds=2, sample_ms=0.1)
    return measure_shape(shape, model(torch.float32).limits, "float32", CPU, "cpu", sampling)


@needs_cpu_kernels
def test_every_variant_of_a_shape_is_timed_and_compared(model):
    record = measured(model)
    assert record["shape"] == "1x16x32, 10+18>24, 3x3, stride 2x2"
    names = [variant["variant"] for variant in record["variants"]]
    assert set(names) <= {variant.text for variant in known_variants("floats")}
    assert record["planned"] in names and record["best"] in names
    assert all(v["match"] and v["rel_error"] < 1e-5 for v in record["variants"])
    assert all(v["timing"]["ms"] > 0 and v["predicted_cycles"] > 0 for v in record["variants"])


@needs_cpu_kernels
def test_a_wrong_variant_is_flagged(model, monkeypatch):
    make = variants.call_of

    def with_a_mistake(*arguments: Any) -> Callable[..., Tensor]:
        call = make(*arguments)

        def run(*images: Tensor) -> Tensor:
            wrong = os.environ.get(variants.VARIABLE) == "8,1,8,0"
            return call(*images) * (1.001 if wrong else 1.0)

        return run

    monkeypatch.setattr(variants, "call_of", with_a_mistake)
    record = {**measured(model), "count": 2}
    wrong = [variant["variant"] for variant in record["variants"] if not variant["match"]]
    assert wrong == ["8,1,8,0"] and record["best"] != "8,1,8,0"
    data = {"network": "fassd_net", "dtype": "float32", "shapes": [record], "left": 0}
    item = {"name": "variants/a", "part": "variants", "status": "done", "data": data}
    shape = "1x16x32, 10+18>24, 3x3, stride 2x2"
    assert problems(report_of(item)) == [f"variants/a: variant 8,1,8,0 is wrong on {shape}"]


@needs_cpu_kernels
def test_a_variant_that_is_refused_leaves_the_others(model, monkeypatch):
    make = variants.call_of

    def with_a_refusal(*arguments: Any) -> Callable[..., Tensor]:
        call = make(*arguments)

        def run(*images: Tensor) -> Tensor:
            if os.environ.get(variants.VARIABLE) == "4,1,4,0":
                raise RuntimeError("launch refused\nby the driver")
            return call(*images)

        return run

    monkeypatch.setattr(variants, "call_of", with_a_refusal)
    record = {**measured(model), "count": 1}
    out = [variant for variant in record["variants"] if "timing" not in variant]
    assert [(one["variant"], one["match"]) for one in out] == [("4,1,4,0", False)]
    assert record["best"] not in (None, "4,1,4,0")
    data = {"network": "a", "dtype": "float32", "shapes": [record], "left": 0}
    item = {"name": "variants/a", "part": "variants", "status": "done", "data": data}
    (problem,) = problems(report_of(item))
    assert problem.endswith("RuntimeError: launch refused") and "1 shapes" in render(
        report_of(item)
    )


@needs_cpu_kernels
def test_variants_that_find_no_time_are_counted(model):
    place = {"batch": 1, "height": 64, "width": 64, "dtype": "float32"}
    sampling = Sampling(rounds=1, sample_ms=0.1)
    data = measure_variants(CPU, "cpu", "fassd_net_l2", sampling, -1.0, **place)
    assert data["shapes"] == [] and data["left"] > 30


def test_the_page_says_what_the_fastest_variants_would_win():
    def variant(name: str, ms: float) -> dict[str, Any]:
        return {"variant": name, "match": True, "timing": {"ms": ms}}

    two = [variant("8,2,8,0", 0.010), variant("4,1,8,0", 0.008)]
    slower = {"shape": "a", "count": 3, "planned": "8,2,8,0", "best": "4,1,8,0", "variants": two}
    right = {**slower, "shape": "b", "count": 1, "planned": "4,1,8,0"}
    data = {"network": "fassd_net", "dtype": "float16", "shapes": [right, slower], "left": 4}
    text = variants_text(data)
    assert "take 38.00 us as planned and 32.00 us with the fastest variants" in text
    assert "4 shapes were left" in text
    assert "| a | 3 | 8,2,8,0 | 10.00 | 4,1,8,0 | 8.000 | 80% |" in text and "| b |" not in text


# --- launches, predicted and measured -------------------------------------------------------------

MANGLED = "_ZN5fassd4cuda18convolution_kernelI8HalfMathEEvv"


def test_kernels_of_ours_are_known_by_their_namespace():
    assert is_cuda_kernel("void fassd::cuda::(anonymous namespace)::stem_kernel<__half>(Stem)")
    assert is_cuda_kernel(MANGLED)
    assert not is_cuda_kernel("void at::native::elementwise_kernel<128, 4>(int)")


def timeline_of(*names: str) -> SimpleNamespace:
    """Two replays; every kernel takes 3 microseconds, and follows the one before by 1."""
    from fassd.bench.timeline import Kernel

    kernels = [Kernel(name, 4e-6 * i, 4e-6 * i + 3e-6) for i, name in enumerate(names)]
    return SimpleNamespace(replays=[kernels, kernels], seconds=[1e-5, 1e-5])


def test_launches_are_measured_beside_their_prediction(model):
    from fassd.bench.costs import cuda as predict

    whole = predict.predict_network("fassd_net_l2", 64, 64, predict.find_device("H200"))
    prediction = predict.replace(whole, launches=whole.launches[1:3])
    name = f"void fassd::cuda::{prediction.launches[0].kernel}<>"
    data = launch_times(prediction, timeline_of(name, name))
    assert (data["planned"], data["seen"], data["foreign"]) == (2, 2, {})
    assert sum(row["measured_s"] for row in data["rows"]) == pytest.approx(7e-6)
    assert data["measured_s"] == pytest.approx(1e-5)
    known = {"network": "fassd_net_l2", "backend": "cuda", "dtype": "float16"}
    item = {"name": "profile/cuda", "part": "profile", "status": "done", "data": {**known, **data}}
    page = render(report_of(item))
    assert problems(report_of(item)) == [] and "predicted us | measured us |" in page
    # One kernel more: its name is told, and all times are kept.
    copied = "at::native::copy"
    other = launch_times(prediction, timeline_of(name, copied, name))
    assert other["foreign"] == {copied: 1} and other["mismatch"].startswith("launch 2")
    assert [kernel["kernel"] for kernel in other["kernels"]] == [name, copied, name]
    assert sum(kernel["measured_s"] for kernel in other["kernels"]) == pytest.approx(11e-6)
    assert {row["label"]: row["count"] for row in other["rows"]} == {name: 2, copied: 1}
    item["data"] = {**known, **other}
    (problem,) = problems(report_of(item))
    assert "others: 1 of at::native::copy" in problem
    page = render(report_of(item))
    assert f"| {copied} | - | - | - | 1 | - | - | 4.000 |" in page and other["mismatch"] in page


def test_one_kernel_of_another_name_loses_no_time(model):
    from fassd.bench.costs import cuda as predict

    whole = predict.predict_network("fassd_net_l2", 64, 64, predict.find_device("H200"))
    prediction = predict.replace(whole, launches=whole.launches[1:3])
    name = f"void fassd::cuda::{prediction.launches[0].kernel}<>"
    data = launch_times(prediction, timeline_of(name, "void fassd::cuda::renamed_kernel<>"))
    assert (data["planned"], data["seen"], data["foreign"]) == (2, 2, {})
    assert data["measured_s"] == pytest.approx(1e-5) and len(data["kernels"]) == 2
    assert len(data["rows"]) == 2 and "renamed_kernel" in data["mismatch"]


# --- choice of backends, dependent launches -------------------------------------------------------


def timed(name: str, ms: float, match: bool = True) -> dict[str, Any]:
    timing = {"ms": ms, "q1_ms": 0.995 * ms, "q3_ms": 1.005 * ms, "n": 15, "method": "graph"}
    return {"name": name, "status": "done", "match": match, "rel_error": 0.0, "timing": timing,
            "plain": timing}  # fmt: skip


@pytest.mark.parametrize(
    ("forms", "slower"),
    [
        ((timed("native", 0.5), timed("triton", 0.6), timed("auto", 0.49)), False),
        ((timed("native", 0.5), timed("triton", 0.6), timed("auto", 0.505)), False),
        ((timed("native", 0.5), timed("triton", 0.6), timed("auto", 0.55)), True),
        ((timed("native", 0.5), timed("triton", 0.4, match=False), timed("auto", 0.5)), False),
        ((timed("native", 0.5), timed("auto", 0.9, match=False)), False),
    ],
)
def test_a_choice_that_loses_to_a_single_backend_is_a_problem(forms, slower):
    place = {"batch": 1, "height": 1024, "width": 2048, "dtype": "float16"}
    case = {"part": "networks", "subject": "fassd_net", **place}
    data = {**case, "arithmetic": "float16", "candidates": list(forms)}
    item = {"name": "networks/choice", "part": "networks", "status": "done", "data": data,
            "case": {**case, "group": "choice"}}  # fmt: skip
    assert is_slower_choice(data) is slower

    def lost(mode: str) -> list[str]:
        found = problems({**report_of(item), "mode": mode})
        return [problem for problem in found if "for each call" in problem]

    assert len(lost("full")) == slower
    assert lost("quick") == []  # figures of a rehearsal mean nothing


# --- labels ---------------------------------------------------------------------------------------


@needs_cpu_kernels
def test_the_runner_is_timed_and_its_labels_compared(monkeypatch):
    place = {"batch": 2, "height": 64, "width": 96, "dtype": "float32"}
    data = measure_runner(CPU, "cpu", "fassd_net_l2", 0.01, **place)
    assert data["match"] and data["rel_error"] < 1e-4
    assert data["fps"] > 0 and data["latency_ms"] > 0 and data["frames"] > 0
    item = {"name": "runner/a", "part": "runner", "status": "done", "data": data}
    assert "| fassd_net_l2 | cpu | 2x64x96 | float32 |" in render(report_of(item))
    finish = fassd_kernels.Runner.finish
    monkeypatch.setattr(fassd_kernels.Runner, "finish", lambda *a: finish(*a) ^ 1)
    item["data"] = measure_runner(CPU, "cpu", "fassd_net_l2", 0.01, **place)
    assert problems(report_of(item)) == ["runner/a: the labels do not match the reference"]


def report_of(*items: dict[str, Any]) -> dict[str, Any]:
    return {
        "device": "NVIDIA H200",
        "mode": "full",
        "commit": "abc",
        "date": "2026-01-01T00:00:00+00:00",
        "budget_s": 540.0,
        "elapsed_s": 500.0,
        "items": list(items),
    }
