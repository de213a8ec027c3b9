"""How a configuration is chosen: the user's table, the package's, the model; never an error.

Whether kernels are interpreted or compiled makes no difference here: it is asked once.
"""

from __future__ import annotations

import json
import warnings
from itertools import product
from pathlib import Path

import pytest
import torch
from triton_backend.conftest import compiled

import fassd
from fassd.bench.costs.triton import plan_network
from fassd_kernels.triton import configurations
from fassd_kernels.triton.configurations import (
    Config,
    Problem,
    candidates,
    choose,
    file_name,
    is_sane,
    overriding,
    read_table,
    resident,
    table_of,
    write_table,
)
from fassd_kernels.triton.device import INTERPRETER, KNOWN, Device, device_named

pytestmark = compiled

PROBLEM = Problem("spatial", 131072, 512, (63, 10), 18, 0, 9, (1, 1), torch.float16, registers=True)
UNKNOWN = Device("A GPU of the future", "cuda", 75, 20, 64 * 1024, 1e11, (1e13, 1e12), 1 << 20)
TUNED = Config(128, 16, 16, 4, 2)


@pytest.fixture(autouse=True)
def no_tables_of_mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASSD_KERNELS_CONFIGS", str(tmp_path))
    table_of.cache_clear()
    yield
    table_of.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", fassd.list_models())
def test_every_network_finds_its_configurations(name, dtype):
    """On every GPU: what asks for one is the same on all."""
    problems = []
    for device in (device_named("MI300X"), UNKNOWN):
        planned = [p.launch for p in plan_network(name, 256, 512, device, 2, dtype)]
        planned = [launch for launch in planned if launch.problem is not None]
        for launch in planned:
            assert launch.options["num_warps"] == choose(launch.problem, device).num_warps
        problems.append([launch.problem for launch in planned])
    assert problems[0] == problems[1] and len(problems[0]) > 20
    for problem, device in product(set(problems[0]), [*KNOWN, UNKNOWN]):
        found = candidates(problem, device)
        assert found and all(map(is_sane, found))
        assert all(resident(config, problem, device) >= 1 for config in found)


@pytest.mark.parametrize("width", [1, 31, 300, 5000])
@pytest.mark.parametrize("dilation", [1, 12, 200])
@pytest.mark.parametrize("family", ["spatial", "pointwise", "asymmetric"])
@pytest.mark.parametrize("narrow", [True, False])
def test_no_problem_is_without_one(width, dilation, family, narrow):
    for dtype in (torch.float16, torch.float32):
        for channels in (1, 4000):
            problem = Problem(
                family, width * 7, width, (channels,), channels, channels, 3,
                (dilation, dilation), dtype, narrow=narrow, extra="resized",
            )  # fmt: skip
            for device in (*KNOWN, UNKNOWN, INTERPRETER):
                assert is_sane(choose(problem, device))


def test_the_key_names_everything_that_matters():
    changes = dict(
        family="pointwise", pixels=9, width=9, in_channels=(73,), out_channels=9, middle=9, taps=3,
        dilation=(2, 1), dtype=torch.bfloat16, registers=False, narrow=True, extra="pool",
    )  # fmt: skip
    assert set(changes) == set(PROBLEM.__dataclass_fields__)
    keys = {PROBLEM.key}
    for name, value in changes.items():
        keys.add(Problem(**{**PROBLEM.__dict__, name: value}).key)
    assert len(keys) == 1 + len(changes)
    assert PROBLEM.key == "spatial 131072px/512 63+10>18 taps=9 dilation=1x1 float16 registers"


def test_the_users_table_overrides_the_packages(tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(configurations, "SHIPPED", shipped)
    path = shipped / file_name(UNKNOWN.name)
    by_model = choose(PROBLEM, UNKNOWN)
    write_table(path, UNKNOWN.name, {PROBLEM.key: TUNED}, {})
    assert choose(PROBLEM, UNKNOWN) == TUNED != by_model
    mine = Config(64, 32, 16, 4, 1)
    write_table(tmp_path / path.name, UNKNOWN.name, {PROBLEM.key: mine}, {"torch": "2.13"})
    assert choose(PROBLEM, UNKNOWN) == mine
    with overriding({PROBLEM.key: TUNED}):
        assert choose(PROBLEM, UNKNOWN) == TUNED
    assert choose(PROBLEM, UNKNOWN) == mine
    assert json.loads((tmp_path / path.name).read_text())["torch"] == "2.13"
    assert [p.name for p in tmp_path.glob(".*.part")] == []


GOOD = {"block_m": 64, "block_n": 16, "block_k": 16, "num_warps": 4, "num_stages": 2,
        "block_middle": 0, "recompute": 0, "max_registers": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "Expecting value"),
        ("[]", "is not a table"),
        ('{"format": 99, "configurations": {}}', "format is 99; expected 1"),
        (json.dumps({"format": 1, "configurations": {"x": {"block_m": 64}}}), "expected block_k"),
        (json.dumps({"format": 1, "configurations": {"x": {**GOOD, "block_n": 24}}}), "powers"),
        (json.dumps({"format": 1, "configurations": {"x": {**GOOD, "block_k": 0}}}), "powers"),
        (json.dumps({"format": 1, "configurations": {"x": {**GOOD, "num_warps": -4}}}), "expected"),
        (json.dumps({"format": 1, "configurations": {"x": {**GOOD, "num_stages": "2"}}}), "expect"),
    ],
)
def test_a_table_that_is_none(tmp_path, content, said):
    path = tmp_path / file_name(UNKNOWN.name)
    path.write_text(content)
    with pytest.warns(RuntimeWarning, match=f"is not a table of configurations .*{said}|{said}"):
        config = choose(PROBLEM, UNKNOWN)
    assert config == candidates(PROBLEM, UNKNOWN)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"block_middle": 16},  # of a convolution alone
        {"max_registers": 7},
        {"recompute": 2},
        {"block_k": 256, "num_stages": 5},  # more shared memory than there is
    ],
    ids=str,
)
def test_a_row_that_cannot_run_is_passed_over(tmp_path, change):
    content = {"format": 1, "configurations": {PROBLEM.key: {**GOOD, **change}}}
    (tmp_path / file_name(UNKNOWN.name)).write_text(json.dumps(content))
    assert choose(PROBLEM, UNKNOWN) == candidates(PROBLEM, UNKNOWN)[0]


@pytest.mark.parametrize(
    "trouble", [PermissionError("not yours"), RuntimeError("no home"), ImportError("no package")]
)
def test_a_folder_that_cannot_be_looked_into(monkeypatch, trouble):
    def fail() -> Path:
        raise trouble

    monkeypatch.setattr(configurations, "user_folder", fail)
    assert choose(PROBLEM, UNKNOWN) == candidates(PROBLEM, UNKNOWN)[0]


def test_a_good_row_is_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"format": 1, "configurations": {"x": GOOD}}))
    assert read_table(path) == {"x": Config(64, 16, 16, 4, 2)}


def test_shipped_tables_are_sane_and_do_not_spill():
    """One is written where a GPU is at hand; until then there is none to examine."""
    for path in sorted(configurations.SHIPPED.glob("*.json")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_table(path)
