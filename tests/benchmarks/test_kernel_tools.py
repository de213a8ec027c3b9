"""Programs that the GPU report starts: the build, the suite, NVIDIA's tools, the tuner.

NVIDIA's tools are scripts here, which write what the real ones write.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tools
from benchmarks.gpu_report import judged
from benchmarks.probes import count_launches, parse_counters
from benchmarks.report import PARTS
from benchmarks.tools import CONFIGS, ProgramError, Visit, conformance, findings, memcheck, tune
from fassd.bench.candidates import UnavailableError
from fassd.bench.cases import Bench
from fassd.models.clock import Sampling


def visit(folder: Path, limit_s: float = 60.0) -> Visit:
    return Visit(Bench(torch.device("cpu"), Sampling()), folder, folder, limit_s)


# --- the build and the tuner ----------------------------------------------------------------------


class Started:
    """A stand-in for `run_logged`: notes the calls, writes a log and a table, ends with a code."""

    def __init__(self, code: int = 0, table: str = "", content: Any = None) -> None:
        self.code, self.table, self.content = code, table, content
        self.calls: list[Any] = []

    def __call__(self, command: list[str], log: Path, limit_s: float, environment: Any) -> int:
        self.calls.append((" ".join(command), log.name, limit_s, environment))
        log.write_text("compiling\nthe last line\n")
        if self.table:
            path = Path(environment[CONFIGS]) / self.table
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(self.content))
        return self.code


PLACE = {"batch": 1, "height": 1024, "width": 2048, "dtype": "float16"}
OPTIONS = "--model fassd_net --size 1024x2048 --dtype float16 --batch 1 --budget 30"


@pytest.mark.parametrize(
    ("part", "name", "content", "options"),
    [
        ("tune", "a.json", {"configurations": {"a": {}, "b": {}}}, OPTIONS),
        # These have a table of their own.
        ("choices", "backends/a.json", {"median_us": {"a": 1, "b": 2}}, f"{OPTIONS} --backends"),
    ],
)
def test_tuning_gets_its_budget_and_folder(tmp_path, monkeypatch, part, name, content, options):
    run = Started(0, name, content)
    monkeypatch.setattr(tools, "run_logged", run)
    data = PARTS[part].measure(visit(tmp_path), model="fassd_net", **PLACE)
    assert data["tables"] == {name: 2}
    ((command, *rest),) = run.calls
    assert command.endswith(f"fassd_kernels.tune {options}")
    assert rest == ["tuning.log", 60.0, {CONFIGS: str(tmp_path)}]
    shown = f"| `{data['command']}` | {name} | 2 |"
    assert shown in PARTS[part].section([data])


@pytest.mark.parametrize(("code", "message"), [(3, "code 3:\ncompiling"), (0, "no table")])
def test_tuning_that_fails_says_how_its_log_ends(tmp_path, monkeypatch, code, message):
    monkeypatch.setattr(tools, "run_logged", Started(code))
    with pytest.raises(ProgramError, match=message) as caught:
        tune(visit(tmp_path), model="fassd_net", **PLACE)
    assert "the last line" in str(caught.value)


def test_the_kernels_are_built_for_the_card_on_all_cores(tmp_path, monkeypatch):
    run = Started()
    monkeypatch.setattr(tools, "run_logged", run)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert tools.build(visit(tmp_path))["architecture"] == "9.0"
    ((command, log, limit_s, environment),) = run.calls
    assert command.endswith(" setup.py build_ext --inplace") and (log, limit_s) == ("build.log", 60)
    wanted = {"FASSD_KERNELS_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    assert environment == {**wanted, "MAX_JOBS": str(os.cpu_count())}
    run.code = 1
    with pytest.raises(ProgramError, match="build ended with code 1"):
        tools.build(visit(tmp_path))


# --- the conformance suite ------------------------------------------------------------------------


SUITE = """
import time, pytest
def pytest_addoption(parser): pass
def test_right(): pass
def test_wrong(): assert 1 == 2, "one is not two"
def test_left_out(): pytest.skip("not here")
@pytest.fixture
def broken(): raise ValueError("broken")
def test_error(broken): pass
"""


def test_the_suite_is_counted(tmp_path):
    suite = tmp_path / "test_suite.py"
    suite.write_text(SUITE)
    data = conformance(visit(tmp_path), str(suite), [])
    assert data["counts"] == {"passed": 1, "failed": 1, "skipped": 1, "error": 1}
    assert data["finished"]
    assert [failure["test"].split("::")[1] for failure in data["failures"]] == [
        "test_wrong",
        "test_error",
    ]
    assert "one is not two" in data["failures"][0]["message"]


def test_a_suite_that_crashes_has_counted_what_it_did(tmp_path):
    suite = tmp_path / "test_crash.py"
    suite.write_text("import os\ndef test_a(): pass\ndef test_b(): os._exit(77)\n")
    data = conformance(visit(tmp_path), str(suite), [])
    assert data["counts"] == {"passed": 1} and not data["finished"]
    record = judged(data)
    assert record["status"] == "failed" and "code 77" in record["reason"]


def test_a_suite_that_takes_too_long_is_cut_between_two_tests(tmp_path, monkeypatch):
    suite = tmp_path / "test_slow.py"
    suite.write_text("import time\ndef test_a(): time.sleep(2)\ndef test_b(): pass\n")
    monkeypatch.setattr(tools, "GRACE_S", 29.5)  # of 60 s, one is left for the tests
    data = conformance(visit(tmp_path), str(suite), [])
    assert data["counts"] == {"passed": 1} and "crash" not in data
    assert judged(data)["reason"] == "stopped after 1 tests"


def test_a_suite_without_tests_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tools, "run_logged", Started(5))
    with pytest.raises(ProgramError, match="no test was run:\ncompiling"):
        conformance(visit(tmp_path), str(tmp_path / "nothing.py"), [])


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


FORWARD = {"network": "fassd_net", "batch": 1}

# Everything behind the options is the program that is watched: it begins with Python's path.
WATCH = """
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


def test_findings_of_memcheck_are_counted_and_quoted(tmp_path, install_tool):
    planted = tmp_path / "planted"
    planted.write_text(MEMCHECK)
    noted = install_tool("compute-sanitizer", f'{WATCH}cp {planted} "$log"\n')
    data = memcheck(visit(tmp_path), **FORWARD)
    arguments = noted.read_text().splitlines()
    assert data["findings"] == 12 and len(data["quoted"]) == 2
    first = data["quoted"][0].splitlines()
    assert first[0] == "Invalid __global__ read of size 4 bytes"
    assert "convolution_kernel" in first[1] and not any("Host Frame" in line for line in first)
    assert arguments[:2] == ["--tool", "memcheck"] and json.loads(arguments[-1]) == FORWARD
    assert PARTS["memcheck"].faults(data) == ["12 findings"]
    page = PARTS["memcheck"].section([data])
    assert "fassd_net: 12 findings" in page and "Invalid __global__ write of size 2" in page


def test_what_was_printed_counts_where_the_tool_was_stopped():
    assert findings(MEMCHECK.partition("========= ERROR")[0])["findings"] == 2
    assert findings("") == {"findings": 0, "quoted": []}


def test_a_tool_that_cannot_watch_is_no_failure_of_ours(tmp_path, install_tool):
    trouble = "========= Error: Unable to attach: no permission"
    install_tool("compute-sanitizer", f'{WATCH}echo "{trouble}" > "$log"\nexit 1\n')
    with pytest.raises(UnavailableError, match="Unable to attach"):
        memcheck(visit(tmp_path), **FORWARD)
    install_tool("compute-sanitizer", "exit 3\n")
    with pytest.raises(ProgramError, match="memcheck ended with code 3"):
        memcheck(visit(tmp_path), **FORWARD)


@pytest.mark.parametrize(("part", "name"), [("memcheck", "compute-sanitizer"), ("counters", "ncu")])
def test_a_missing_tool_is_said_to_be_missing(tmp_path, install_tool, part, name):
    with pytest.raises(UnavailableError, match=f"^{name} is not installed"):
        PARTS[part].measure(visit(tmp_path), **FORWARD)


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
    data = count_launches(visit(tmp_path), **FORWARD)
    assert (data["launches"], data["us"]) == (60, pytest.approx(sum(map(float, durations)) / 1e3))
    assert [launch["index"] for launch in data["rows"]] == list(range(60))
    arguments = noted.read_text().splitlines()
    assert arguments[:4] == ["--clock-control", "none", "--profile-from-start", "off"]
    sections = {b for a, b in itertools.pairwise(arguments) if a == "--section"}
    assert sections >= {"SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "WarpStateStats"}
    assert json.loads(arguments[-1]) == FORWARD
    figures = "52% | 42% | 33% | 25% | 62% | 1048576 | long_scoreboard | 75 | 25"
    row = f"| 6 | convolution_kernel<6> | 7.000 | {figures}"
    page = PARTS["counters"].section([data])
    assert f"{row} | 128 | - |" in page
    # The page has the slowest ones.
    assert page.count("| convolution_kernel<") == 12 and "convolution_kernel<0>" not in page


def test_counters_that_were_read_before_the_limit_are_kept(tmp_path, install_tool):
    planted = tmp_path / "planted"
    planted.write_text(ncu_page(["1000", "2000"]))
    install_tool("ncu", f'{WATCH}cp {planted} "$log"\nexec sleep 60\n')
    data = count_launches(visit(tmp_path, 1.0), network="fassd_net")
    assert data["launches"] == 2 and data["outcome"] == "was killed at its limit"


def test_counters_that_may_not_be_read_are_no_failure(tmp_path, install_tool):
    refusal = "==ERROR== ERR_NVGPUCTRPERM - no permission"
    install_tool("ncu", f'{WATCH}echo "{refusal}" > "$log"\nexit 1\n')
    with pytest.raises(UnavailableError, match="ncu: ERR_NVGPUCTRPERM"):
        count_launches(visit(tmp_path), network="fassd_net")
    install_tool("ncu", "echo broken\nexit 3\n")
    with pytest.raises(RuntimeError, match="code 3 and saw no launch:\nbroken"):
        count_launches(visit(tmp_path), network="fassd_net")
