"""`fassd bench layers`: operations of every fused call, predictions, and the report."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import fassd
import fassd_kernels
from fassd.bench import layers as layer_report
from fassd.bench import stopwatch
from fassd.bench.costs.counts import analyze
from fassd.bench.costs.roofline import (
    CallConvolution,
    CallWork,
    Machine,
    convolutions,
    measure_machine,
    predict,
)
from fassd.bench.jobs import Job
from fassd.bench.layers import HEAD, run_layers, trace
from fassd.bench.report.charts import layer_figure, png
from fassd_kernels import ops
from fassd_kernels.tuning.calls import OperatorCall, around_operators

MACHINE = Machine(macs_per_s=1e9, bytes_per_s=1e9)
SMALL = Job("fassd_net", size=(64, 96), repeats=3, warmup=1)


def calls_of(name, size=(64, 96), batch=1, dtype=torch.float32):
    model = fassd_kernels.accelerate(fassd.create_model(name).eval(), dtype=dtype, output="labels")
    with torch.no_grad():
        return trace(model, torch.zeros(batch, 3, *size))


# --- prediction -----------------------------------------------------------------------------------

WINOGRAD = CallConvolution((6, 8, 3, 3), pixels=1000)


@pytest.mark.parametrize(
    ("convolution", "saving"),
    [
        (WINOGRAD, 4),
        (CallConvolution((5, 8, 3, 3), 1), 1),
        (CallConvolution((6, 5, 3, 3), 1), 1),
        (CallConvolution((24, 25, 3, 1), 1, dilation=(1, 9)), 2),
        (CallConvolution((24, 25, 1, 3), 1, dilation=(3, 8)), 2),
        (CallConvolution((24, 25, 3, 1), 1, dilation=(2, 1)), 1),
        (CallConvolution((24, 25, 1, 3), 1, dilation=(1, 12)), 1),
        (CallConvolution((24, 23, 1, 3), 1), 1),
        (CallConvolution((24, 25, 1, 3), 1, stride=(1, 2)), 1),
        (CallConvolution((6, 8, 1, 1), 1), 1),
        (CallConvolution((6, 8, 3, 3), 1, stride=(2, 2)), 1),
        (CallConvolution((6, 8, 3, 3), 1, dilation=(12, 12)), 1),
    ],
)
def test_products_that_winograds_form_saves(convolution, saving):
    assert convolution.saving == saving


def test_prediction_by_hand():
    assert WINOGRAD.macs == 432_000
    direct = CallConvolution((2, 8, 1, 1), pixels=1000)
    work = CallWork((WINOGRAD, direct), bytes=100_000, dtype=torch.float32)
    assert work.macs == 448_000
    prediction = predict(work, MACHINE)
    assert prediction.arithmetic == pytest.approx((432_000 / 4 + 16_000) / 1e9)
    assert prediction.memory == pytest.approx(1e-4)
    assert prediction.seconds == prediction.arithmetic
    slow = predict(work, Machine(1e9, 1e8))
    assert slow.seconds == slow.memory == pytest.approx(1e-3)
    half = predict(CallWork((WINOGRAD,), 0, torch.float16), MACHINE)
    assert half.arithmetic == pytest.approx(432_000 / 4 / 1e9)


def test_convolutions_of_calls_by_hand():
    def image(*shape):
        return torch.empty(shape, device="meta")

    inputs, weight = [image(2, 3, 7, 9)], image(16, 3, 3, 3)
    strided = OperatorCall.of("conv_act", inputs, weight, None, stride=(2, 2), pool=2)
    assert convolutions(strided) == [CallConvolution((16, 3, 3, 3), 2 * 4 * 5, (2, 2))]
    low, skip = [image(1, 5, 2, 3)], [image(1, 7, 4, 6), image(1, 1, 4, 6)]
    joined = OperatorCall.of("upsample_conv1x1", low, skip, image(9, 13, 1, 1))
    assert [x.macs for x in convolutions(joined)] == [9 * 5 * 6, 9 * 8 * 24]
    weights = [image(4, 8, 1, 1), image(4, 8, 3, 3), image(4, 8, 1, 1), image(8, 12, 1, 1)]
    pyramid = OperatorCall.of("aspp", image(2, 8, 5, 5), weights, dilations=[12])
    first, dilated, pooled, fuse = convolutions(pyramid)
    assert dilated == CallConvolution((4, 8, 3, 3), 50, dilation=(12, 12))
    assert (first.pixels, pooled.pixels, fuse.pixels) == (50, 2, 50)
    assert convolutions(OperatorCall.of("upsample_argmax", image(1, 19, 4, 4), (8, 8))) == []


def test_the_machine_does_something():
    machine = measure_machine(repeats=1)
    assert machine.macs_per_s > 1e8 and machine.bytes_per_s > 1e7


# --- calls of whole networks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["fassd_net", "fassd_net_l2", "fc_hardnet_70", "baseline_aspp_mda"]
)
def test_macs_are_those_of_the_plain_network_less_what_upsampling_later_saves(name):
    size, batch = (113, 130), 2
    calls = calls_of(name, size, batch)
    saving = 0
    for call in calls:
        if call.kind == "up, conv 1x1":
            low, skip = call.input_shapes
            pixels = math.prod(skip[2:]) - math.prod(low[2:])
            saving += batch * call.output_shape[1] * low[1] * pixels
    plain = analyze(fassd.create_model(name), size, batch).conv_macs
    assert saving > 0
    assert sum(call.work.macs for call in calls) == plain - saving


def test_calls_are_named_after_their_modules():
    calls = calls_of("fassd_net", (128, 256))
    model = fassd.create_model("fassd_net")
    by_name = {call.name: call for call in calls}
    assert len(by_name) == len(calls) == 24
    assert [c.name for c in calls[-4:]] == ["mda.2", "denseBlocksUp.2", "finalConv", HEAD]
    assert by_name["base.0"].kind == "conv 3x3, stride 2"
    assert by_name["base.0"].output_shape == (1, 16, 64, 128)
    assert by_name["base.5"].kind == "conv 1x1, pool"
    assert by_name["base.5"].work.macs == 48 * 64 * 32 * 64  # before the pooling
    for name in ("mda.1", "denseBlocksUp.0", "DAPF"):
        weights = [m.weight for m in model.get_submodule(name).modules() if hasattr(m, "stride")]
        pixels = math.prod(by_name[name].output_shape[2:])
        assert by_name[name].work.macs == pixels * sum(w.numel() for w in weights)
    head = by_name[HEAD]
    assert head.work.macs == 0 and head.kind == "upsample argmax"
    assert head.work.bytes == 4 * 19 * 32 * 64 + 128 * 256


def test_bytes_follow_the_dtype():
    single, half = (
        {call.name: call for call in calls_of("fassd_net_l2", dtype=dtype)}
        for dtype in (torch.float32, torch.float16)
    )
    assert half["base.4"].work.dtype == torch.float16
    assert single["base.4"].work.bytes == 2 * half["base.4"].work.bytes


def test_the_wrapper_goes_even_after_an_error():
    real = ops.operator
    with pytest.raises(RuntimeError), around_operators(lambda *_, **__: torch.empty(0)):
        assert ops.operator is not real
        raise RuntimeError
    assert ops.operator is real


# --- the report -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_report, "measure_machine", lambda: Machine(2e11, 5e10))
        return run_layers(SMALL)


def test_times_are_parts_of_the_whole(report):
    assert len(report.network.seconds) == SMALL.repeats
    for round_, whole in enumerate(report.network.seconds):
        parts = sum(layer.timing.seconds[round_] for layer in report.layers)
        assert 0 < parts <= whole


def test_table_tells_totals_and_fits(report):
    for width in (80, 100):
        console = Console(width=width, highlight=False)
        with console.capture() as text:
            console.print(report)
        lines = text.get().splitlines()
        assert max(map(len, lines)) <= width and "…" not in text.get()
        macs = sum(layer.call.work.macs for layer in report.layers)
        (total,) = (line for line in lines if line.startswith("total"))
        assert f"{1e-9 * macs:.3f}" in total
        assert any(line.startswith("denseBlocksUp.2") for line in lines)
    assert "400 GFLOP/s" in text.get() and "50.0 GB/s" in text.get()


def test_json(report):
    record = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert record["machine"] == {"macs_per_s": 2e11, "bytes_per_s": 5e10}
    assert [row["name"] for row in record["layers"]] == [x.call.name for x in report.layers]
    first, layer = record["layers"][0], report.layers[0]
    assert first["input_shapes"] == [[1, 3, 64, 96]]
    assert first["predicted_s"] == max(first["arithmetic_floor_s"], first["memory_floor_s"])
    assert first["seconds"] == list(layer.timing.seconds)


def test_plot_has_a_bar_for_every_call(report):
    same = stopwatch.CallTimes((1e-3,))  # bars of one length
    alike = replace(report, layers=[replace(x, timing=same) for x in report.layers])
    with Image.open(io.BytesIO(png(layer_figure(alike.to_json())))) as image:
        picture = np.asarray(image.convert("RGB"))
    blue = (picture == [0x56, 0xB4, 0xE9]).all(2)
    bars = (np.diff(blue.astype(int), axis=0) == 1).sum(0)  # those that a column of pixels meets
    assert np.median(bars[bars > 0]) == len(report.layers)  # but for the legend's sample
