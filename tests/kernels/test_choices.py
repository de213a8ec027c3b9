"""Choice of backend from measured tables, and how these are made.

A GPU is needed for the clock only: here the backends of a CPU compete, and times are made up.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from conformance import cases
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

import fassd
from fassd_kernels import choices, ops, tune
from fassd_kernels.accelerate import accelerate
from fassd_kernels.backends import backends
from fassd_kernels.choices import best, fastest, read_table, shape_key, table_of, user_path
from fassd_kernels.modules import Fused
from fassd_kernels.operators import OPERATORS
from fassd_kernels.triton.device import KNOWN, describe_device
from fassd_kernels.tuning import backends as measuring
from fassd_kernels.tuning import trials
from fassd_kernels.tuning.backends import BackendCase
from fassd_kernels.tuning.calls import OperatorCall, record_network
from fassd_kernels.tuning.trials import Repeats, Timer

GPU = "Voodoo 5 6000 (AGP)"
VOODOO = replace(KNOWN[0], name=GPU, l2=1 << 10)
compiled = pytest.mark.skipif(
    not backends()["cpu"].available, reason=f"the C++ kernels: {backends()['cpu'].reason}"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables of our own, and a GPU on which CPU tensors seem to be."""
    monkeypatch.setenv("FASSD_KERNELS_CONFIGS", str(tmp_path / "user"))
    monkeypatch.setattr(choices, "SHIPPED", tmp_path / "package")
    monkeypatch.setattr(choices, "describe_gpu", lambda device: type("Named", (), {"name": GPU}))
    table_of.cache_clear()
    return tmp_path


CUDA = torch.device("cuda", 0)
CANDIDATES = ("cuda", "triton", "reference")


# --- keys -----------------------------------------------------------------------------------------


def test_keys_can_be_read() -> None:
    x, half = torch.empty(2, 8, 5, 6), torch.empty(2, 8, 5, 6, dtype=torch.float16)
    weight = torch.empty(12, 16, 3, 1)
    conv = {"weight": weight, "bias": None, "stride": [2, 1], "activation": "relu", "packed": None}
    assert shape_key("conv_act", [x, x], conv) == (
        "conv_act 2x8x5x6+2x8x5x6 > 12x3x1 stride=2,1 dilation=1,1 activation=relu pool=1 float32"
    )
    assert shape_key("conv_act", [half], {"weight": weight, "residual": half, "dilation": 3}) == (
        "conv_act 2x8x5x6 > 12x3x1 stride=1,1 dilation=3,3 activation=none pool=1 residual float16"
    )
    assert shape_key("mda", [x], {"weights": [weight, weight], "dilation": 4}) == (
        "mda 2x8x5x6 > 12x3x1+12x3x1 dilation=4 float32"
    )
    assert shape_key("dapf", [x], {"weights": (weight,), "dilations": [12, 24, 36]}) == (
        "dapf 2x8x5x6 > 12x3x1 dilations=12,24,36 float32"
    )
    assert shape_key("upsample_argmax", [x], {"size": (50, 60)}) == (
        "upsample_argmax 2x8x5x6 size=50,60 float32"
    )
    frame = torch.empty(1, 5, 6, 3, dtype=torch.uint8)
    assert shape_key("normalize", [frame], {"dtype": torch.float16, "mean": [0.0] * 3}) == (
        "normalize 1x5x6x3 dtype=float16 uint8"
    )


def test_defaults_may_be_left_out() -> None:
    x, weight = torch.empty(1, 8, 5, 6), torch.empty(4, 8, 3, 3)
    bare = shape_key("conv_act", [x], {"weight": weight})
    given = {"stride": (1, 1), "dilation": [1, 1], "activation": "none", "pool": 1}
    assert shape_key("conv_act", [x], {"weight": weight, "residual": None, **given}) == bare
    for name, value in (("stride", 2), ("dilation", [1, 2]), ("activation", "relu"), ("pool", 2)):
        assert shape_key("conv_act", [x], {"weight": weight, name: value}) != bare


def test_tf32_is_another_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.empty(1, 8, 5, 6), torch.empty(4, 8, 3, 3)
    full = shape_key("conv_act", [x], {"weight": weight})
    half = shape_key("conv_act", [x.half()], {"weight": weight})
    monkeypatch.setattr(choices, "tf32_requested", lambda: True)
    assert shape_key("conv_act", [x], {"weight": weight}) == f"{full} tf32"
    assert shape_key("conv_act", [x.half()], {"weight": weight}) == half


def test_every_operator_and_option_has_its_place() -> None:
    """An argument that is added to a schema must be sorted in, or keys would not tell it."""
    free = {
        *("bias", "vertical_bias", "horizontal_bias", "biases", "scales", "shifts"),
        *("slope", "vertical_slope", "horizontal_slope", "slopes"),
        *("packed", "residual", "mean", "std", "temperature"),
    }
    for row in OPERATORS.values():
        schema = getattr(torch.ops.fassd_kernels, row.name).default._schema
        sorted_in = {*row.images, *row.weights, *(name for name, _ in row.options)}
        assert {argument.name for argument in schema.arguments} - free == sorted_in, row.name
        defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        for option, default in row.options:
            if option in defaults:
                now = defaults[option]
                assert (tuple(now) if isinstance(now, list) else now) == default


def test_no_key_where_a_compiler_looks_on() -> None:
    def scaled(x: Tensor) -> Tensor:
        return x * (2.0 if shape_key("upsample", [x], {"size": (4, 4)}) == "" else 3.0)

    x = torch.ones(1, 2, 3, 3)
    assert torch.equal(torch.compile(scaled, fullgraph=True, backend="eager")(x), x * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of tracing itself
        traced = torch.jit.trace(scaled, x, check_trace=False)
    assert torch.equal(traced(x), x * 2)
    assert torch.equal(scaled(x), x * 3)


# --- choice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("medians", "expected"),
    [
        ({"cuda": 3.0, "triton": 2.0, "reference": 9.0}, "triton"),
        ({"cuda": 2.0, "triton": 2.0, "reference": 2.0}, "cuda"),
        ({"cuda": 2.04, "triton": 2.0, "reference": 9.0}, "cuda"),  # within 2%
        ({"cuda": 2.05, "triton": 2.0, "reference": 9.0}, "triton"),
        ({"cuda": 2.05, "triton": 2.03, "reference": 2.0}, "triton"),
        ({"cuda": 9.0, "triton": 8.0, "reference": 1.0}, "reference"),
        ({"cuda": None, "triton": 8.0, "reference": 9.0}, "triton"),  # wrong, however fast
        ({"cuda": None, "triton": None, "reference": None}, None),
        ({"triton": 1.0, "reference": 9.0}, None),  # cuda might be faster still
        ({"cuda": 3.0, "triton": 2.0, "reference": 9.0, "cpu": 0.1}, "triton"),
        ({}, None),
    ],
)
def test_the_fastest(medians: dict[str, float | None], expected: str | None) -> None:
    assert fastest(medians, CANDIDATES) == expected


def test_the_choice_is_never_slower_than_the_best() -> None:
    generator = torch.Generator().manual_seed(0)
    for times in torch.rand(200, 3, generator=generator).tolist():
        medians = dict(zip(CANDIDATES, times, strict=True))
        chosen = fastest(medians, CANDIDATES)
        assert chosen is not None and medians[chosen] <= 1.02 * min(times)


def test_tables(folder: Path) -> None:
    assert best(CUDA, "a", CANDIDATES) is None
    package = folder / "package" / "voodoo-5-6000-agp.json"
    row = {"cuda": 2.0, "triton": 3.0, "reference": 4.0}
    choices.write_table(package, GPU, {"a": row, "b": row}, {})
    assert best(CUDA, "a", CANDIDATES) == "cuda"
    assert best(CUDA, "c", CANDIDATES) is None and best(CUDA, "", CANDIDATES) is None
    assert best(torch.device("cpu"), "a", CANDIDATES) is None
    assert best(CUDA, "a", CANDIDATES[1:]) == "triton"  # cuda cannot run it
    assert user_path(GPU) == folder / "user" / "backends" / "voodoo-5-6000-agp.json"
    choices.write_table(
        user_path(GPU), GPU, {"a": {**row, "triton": 1.00049, "cuda": None}}, {"torch": "2"}
    )
    assert best(CUDA, "a", CANDIDATES) == "triton" and best(CUDA, "b", CANDIDATES) == "cuda"
    assert json.loads(user_path(GPU).read_text()) == {
        "format": 1,
        "gpu": GPU,
        "torch": "2",
        "median_us": {"a": {"cuda": None, "triton": 1.0, "reference": 4.0}},
    }
    assert [path.name for path in user_path(GPU).parent.iterdir()] == [user_path(GPU).name]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ('{"format": 2, "median_us": {}}', "format is 2; expected 1"),
        ('{"format": 1}', "'median_us'"),
        ('{"format": 1, "median_us": {"a": 3}}', "'int' object has no attribute 'values'"),
        ('{"format": 1, "median_us": {"a": {"cuda": "x"}}}', "'a' is {'cuda': 'x'}; expected"),
        ('{"format": 1, "median_us": {"a": {"cuda": 0}}}', "microseconds above 0, or null"),
        ('{"format": 1, "median_us": {"a": {"cuda": NaN}}}', "microseconds above 0, or null"),
        ('{"format": 1, "median_us": {"a": {"cuda": true}}}', "microseconds above 0, or null"),
    ],
)
def test_a_damaged_table_is_passed_over(content: str, said: str) -> None:
    path = user_path(GPU)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.warns(RuntimeWarning, match="is not a table of backends") as caught:
        assert best(CUDA, "a", CANDIDATES) is None
        assert best(CUDA, "a", CANDIDATES) is None
    assert len(caught) == 1 and said in str(caught[0].message)


def test_without_a_home_there_is_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(choices, "user_folder", nowhere)
    assert best(CUDA, "a", CANDIDATES) is None


# --- measuring ------------------------------------------------------------------------------------


def call_of(case: Any) -> OperatorCall:
    """A call of the conformance suite."""
    case = case.to(torch.float32)
    return OperatorCall(case.operator, case.arguments)


def timer_of(seconds: Sequence[float | str]) -> Timer:
    """A clock that knows beforehand; it does run what it times."""

    def timer(candidates: Sequence[Repeats]) -> Sequence[float | str]:
        for repeats in candidates:
            assert len(repeats) >= 2
            first, last = repeats[0](), repeats[-1]()
            assert torch.equal(first, last)  # on copies of the same images
            assert first.data_ptr() != last.data_ptr()
        return seconds[-len(candidates) :]  # what is wrong comes first

    return timer


def measured(
    call: OperatorCall, seconds: Mapping[str, float | str], budget: float = 60
) -> list[BackendCase]:
    cases = measuring.cases_of([call], VOODOO, lambda call: list(seconds))
    return measuring.tune(cases, VOODOO, budget, timer_of(list(seconds.values())))


@compiled
def test_the_fastest_right_one_is_chosen() -> None:
    call = call_of(cases.conv_act(1, (16,), 16, (4, 9)))
    (case,) = measured(call, {"cpu": 2e-6, "reference": 3e-6})
    assert case.best == "cpu" == best(CUDA, call.key, ["cpu", "reference"])
    assert read_table(user_path(GPU)) == {call.key: {"cpu": 2.0, "reference": 3.0}}
    assert all(0 < trial.error < 2e-6 for trial in case.trials)
    # Another run replaces the row and leaves other rows.
    other = call_of(cases.upsample_argmax())
    measured(other, {"cpu": 5e-6, "reference": 4e-6})
    measured(call, {"cpu": 2e-6, "reference": 1e-6})
    assert best(CUDA, call.key, ["cpu", "reference"]) == "reference"
    assert best(CUDA, other.key, ["cpu", "reference"]) == "reference"
    assert json.loads(user_path(GPU).read_text())["torch"] == torch.__version__


def broken(monkeypatch: pytest.MonkeyPatch, mistake: Callable[[Tensor], Tensor]) -> None:
    """Let the CPU's kernels make a mistake."""
    real = ops.operator

    def operator(name: str, backend: str) -> Callable[..., Tensor]:
        function = real(name, backend)
        return (lambda **named: mistake(function(**named))) if backend == "cpu" else function

    monkeypatch.setattr(ops, "operator", operator)


def not_finite(x: Tensor) -> Tensor:
    x[0, 0, 0, 0] = float("nan")
    return x


@compiled
@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda x: x * (1 + 1e-5), "wrong: off by 1e-05"),
        (not_finite, "wrong: off by nan"),
        (lambda x: x[..., 1:], "wrong: shape (1, 16, 4, 8), not (1, 16, 4, 9)"),
        (lambda x: {}["luck"], "KeyError: 'luck'"),
    ],
    ids=["slightly off", "not finite", "too small", "fails"],
)
def test_what_is_wrong_is_never_chosen(
    monkeypatch: pytest.MonkeyPatch, mistake: Callable[[Tensor], Tensor], said: str
) -> None:
    call = call_of(cases.conv_act(1, (16,), 16, (4, 9)))
    broken(monkeypatch, mistake)
    (case,) = measured(call, {"cpu": 1e-6, "reference": 9e-6})
    assert case.trials[0].reason == said
    assert read_table(user_path(GPU)) == {call.key: {"cpu": None, "reference": 9.0}}
    assert best(CUDA, call.key, ["cpu", "reference"]) == "reference"
    console = Console(width=160, file=io.StringIO())
    with console.capture() as capture:
        console.print(trials.render([case], "title"))
    cpu, reference = (
        next(line for line in capture.get().splitlines() if f" {name} " in line)
        for name in ("cpu", "reference")
    )
    assert said in cpu and "chosen" not in cpu
    assert " 9.0 " in reference and "chosen" in reference


@compiled
def test_labels_are_compared_as_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in five hundred that differ by one: nothing as a norm, and yet too many."""
    call = OperatorCall("upsample_argmax", {"input": torch.randn(1, 5, 10, 10), "size": (50, 50)})

    def some_differ(labels: Tensor) -> Tensor:
        labels.view(-1)[::500] ^= 1
        return labels

    broken(monkeypatch, some_differ)
    (case,) = measured(call, {"cpu": 1e-6, "reference": 9e-6})
    assert case.trials[0].reason == "wrong: off by 0.002"
    assert case.trials[1].error <= 1e-3 and case.best == "reference"


@compiled
def test_pixels_that_are_not_written_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of another backend's right result, just freed, must not be taken for one."""
    call = call_of(cases.conv_act(1, (16,), 16, (4, 9)))
    poisoned: list[int] = []
    real = trials.poison

    def poison(count: int, device: torch.device) -> None:
        poisoned.append(count)
        real(count, device)

    monkeypatch.setattr(trials, "poison", poison)
    measured(call, {"cpu": 1e-6, "reference": 9e-6})
    assert len(poisoned) == 2 and min(poisoned) >= 16 * 4 * 9 * 4
    buffer = torch.empty(16, dtype=torch.uint8)
    buffer.fill_(0xFF)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert buffer.view(dtype).isnan().all()


@compiled
def test_what_cannot_be_captured_is_out() -> None:
    call = call_of(cases.conv_act(1, (16,), 16, (4, 9)))
    (case,) = measured(call, {"cpu": 5e-6, "reference": "cannot be captured: RuntimeError"})
    assert case.medians == {"cpu": 5.0, "reference": None} and case.best == "cpu"


@compiled
def test_out_of_time_and_nothing_to_choose() -> None:
    call = call_of(cases.conv_act(1, (16,), 16, (4, 9)))
    assert measured(call, {"cpu": 1e-6, "reference": 1e-6}, budget=-1) == []
    assert measured(call, {"cpu": 1e-6}) == []
    assert not user_path(GPU).exists()


@compiled
@pytest.mark.parametrize("operator", cases.SAMPLES)
def test_every_operator_can_be_measured(operator: str) -> None:
    """Weights are laid out as the fused modules have it, images keep their strides."""
    for sample in cases.SAMPLES[operator]:
        call = call_of(sample)
        (case,) = measured(call, {"cpu": 2e-6, "reference": 1e-6})
        assert [trial.reason for trial in case.trials] == ["", ""]


# --- what a network calls -------------------------------------------------------------------------


@compiled
def test_the_keys_of_a_network_are_those_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded has the keys that a module would ask with."""
    calls = record_network("fassd_net_l2", 64, 96, dtype=torch.float32, backend="cpu")
    recorded = [call.key for call in calls]
    asked: list[str] = []
    real = Fused.backend_for

    def backend_for(
        self: Fused, x: Tensor, images: Any = (), arguments: Any = None, operator: str = ""
    ) -> str:
        if images:
            asked.append(shape_key(operator or self.operator, images, arguments or {}))
        return real(self, x, images, arguments or {}, operator)

    monkeypatch.setattr(Fused, "backend_for", backend_for)
    fast = accelerate(fassd.create_model("fassd_net_l2").eval(), output="labels")
    with torch.no_grad():
        fast(torch.randn(1, 3, 64, 96))
    *of_modules, last = recorded  # the network itself calls the last
    assert asked == of_modules and len(recorded) > 15
    assert {key.split()[0] for key in asked} >= {"conv_act", "dapf", "mda", "hardblock"}
    assert last == "upsample_argmax 1x19x8x12 size=64,96 float32"


def test_candidates_are_those_that_can_run_it() -> None:
    x = torch.empty(1, 2, 3, 3)
    names = measuring.candidates_for(OperatorCall("upsample", {"input": x, "size": (4, 4)}))
    assert names == [b.name for b in backends() if b.takes("cpu") and b.available]
    double = measuring.candidates_for(
        OperatorCall("upsample", {"input": x.double(), "size": (4, 4)})
    )
    assert "reference" in double and "triton" not in double


@compiled
def test_the_recorder_has_kernels_for_everything() -> None:
    assert measuring.recorder(torch.device("cpu"), torch.float32) == "cpu"
    with pytest.raises(ValueError, match="no backend has kernels for a whole network"):
        measuring.recorder(torch.device("meta"), torch.float32)


# --- command --------------------------------------------------------------------------------------


def test_the_command_lists_what_it_would_measure() -> None:
    pytest.importorskip("triton")
    network = ("--model", "fassd_net_l2", "--size", "128x256", "--gpu", "L4")
    command = (sys.executable, "-m", "fassd_kernels.tune", "--backends", "--dry-run", *network)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *keys, last = done.stdout.splitlines()
    assert last == f"{len(set(keys))} calls" and len(keys) > 15
    assert all(key.endswith("float16") for key in keys)
    assert "conv_act 1x3x128x256 > 16x3x3 stride=2,2 dilation=1,1 activation=relu" in keys[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no GPU is seen"),
        (("--dry-run", "--gpu", "voodoo"), "gpu is 'voodoo'; expected one of"),
        (("--dry-run", "--model", "resnet"), "resnet"),
        (("--size", "7"), "'7' is not a size; write height x width"),
    ],
)
def test_bad_options(arguments: tuple[str, ...], said: str) -> None:
    app = typer.Typer()
    app.command()(tune.main)
    done = CliRunner().invoke(app, ["--backends", *arguments])
    assert done.exit_code == 2 and said in " ".join(done.stderr.replace("│", " ").split())


@compiled
def test_the_command_says_what_was_found_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = cases.conv_act(1, (16,), 16, (4, 9)), cases.upsample_argmax()
    calls = [call_of(sample) for sample in samples]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tune, "record_network", lambda *_, **__: calls)
    monkeypatch.setattr(tune, "describe_device", lambda _: VOODOO)
    monkeypatch.setattr(measuring, "recorder", lambda *_: "cpu")
    broken(monkeypatch, not_finite)
    timer = timer_of([1e-6, 9e-6])
    real = measuring.tune
    monkeypatch.setattr(measuring, "tune", lambda found, *_: real(found[:1], VOODOO, 60, timer))
    app = typer.Typer()
    app.command()(tune.main)
    done = CliRunner().invoke(app, ["--backends"])
    assert done.exit_code == 0, done.output
    *_, path = done.stdout.splitlines()
    assert path == str(user_path(GPU)) and f"on {GPU}" in done.stdout
    assert "out of time: 1 calls are left to the order of the backends" in done.stdout
    assert done.stderr == "1 backends gave wrong numbers and are out\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real kernels against a real clock: the row has a time for everything that was right."""
    monkeypatch.undo()
    monkeypatch.setattr(BackendCase, "save", lambda self: None)
    monkeypatch.setattr(choices, "user_folder", lambda: Path(choices.__file__).parent / "none")
    place = torch.device("cuda", torch.cuda.current_device())
    try:
        recorder = measuring.recorder(place, torch.float16)
    except ValueError as error:
        pytest.skip(str(error))
    calls = record_network("fassd_net_l2", 128, 256, place=place, backend=recorder)
    found = measuring.cases_of(calls, describe_device(place))
    assert measuring.tune(found, describe_device(place), 600) == found
    for case in found:
        assert all(not trial.reason for trial in case.trials), case
        times = {trial.candidate: trial.seconds for trial in case.trials}
        assert case.best is not None
        assert times[case.best] <= 1.02 * min(times.values())
        assert all(1e-7 < seconds < 1e-1 for seconds in times.values())
