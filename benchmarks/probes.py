"""Single measurements of the GPU report: facts, first checks, ceilings, a stream, each launch.

``python -m benchmarks.probes '{"network": "fassd_net", "batch": 1, "height": 1024, "width": 2048,
"dtype": "float16"}'`` is one forward through the CUDA kernels, for NVIDIA's tools to watch.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import output_of
from fassd.bench import machine
from fassd.bench.candidates import NATIVE, TRITON, UnavailableError, require_operators
from fassd.bench.cases import Planned, planned_launches
from fassd.bench.stopwatch import Call, Inputs, Run, Sampling, interleaved, warm_up
from fassd.bench.subjects import (
    NETWORK_NEEDS,
    NORMALIZE,
    Case,
    Labelled,
    Normalize,
    fused_network,
    subject_of,
)
from fassd.evaluation.agreement import TOLERANCES, compare, relative_error

# --- facts ----------------------------------------------------------------------------------------

SMI_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Facts about this machine, for people, and the state of each backend; sizes in bytes."""
    import fassd_kernels

    nvcc = re.search(r"release ([\d.]+)", output_of(["nvcc", "--version"]))
    facts = {
        **machine.environment(device),
        **(gpu_facts(device) if device.type == "cuda" else {}),
        "triton": version_of("triton"),
        "cudnn": torch.backends.cudnn.version() or "none",
        "nvcc": nvcc[1] if nvcc else "none",
        "tf32 in convolutions (torch.backends.cudnn.allow_tf32)": torch.backends.cudnn.allow_tf32,
        "float32 matrix products": torch.get_float32_matmul_precision(),
        "fassd_kernels": str(Path(fassd_kernels.__file__).parent),
    }
    backends = [
        {"name": b.name, "available": b.available, "reason": b.reason}
        for b in fassd_kernels.backends()
    ]
    return {"facts": facts, "backends": backends}


def gpu_facts(device: torch.device) -> dict[str, Any]:
    card = torch.cuda.get_device_properties(device)
    return {
        "compute capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "L2 bytes": card.L2_cache_size,
        "memory bytes": card.total_memory,
        **{f"nvidia-smi {name}": value for name, value in smi(f"GPU-{card.uuid}").items()},
    }


def smi(card: str) -> dict[str, str]:
    """What nvidia-smi says of a card; nothing where it is not there or does not answer."""
    query = f"--query-gpu={','.join(SMI_FIELDS)}"
    answer = output_of(["nvidia-smi", f"--id={card}", query, "--format=csv,noheader"])
    values = [value.strip() for value in answer.split(",")]
    return dict(zip(SMI_FIELDS, values, strict=True)) if len(values) == len(SMI_FIELDS) else {}


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


# --- first checks: on the stream that it is given, and inside a CUDA graph ------------------------

SHAPE = (1, 256, 512, 3)
SLEEP_CYCLES = 50_000_000
"""Some 25 ms on a GPU: who does not wait for the stream reads the picture before it is there."""


def smoke(device: torch.device, backend: str) -> dict[str, Any]:
    """Run `normalize` of a backend in every way that a user may launch it.

    Returns:
        ``checks``: for each check and dtype the relative error.

    Raises:
        UnavailableError: the backend is not there.
        RuntimeError: a result is wrong; the message names the checks.
    """
    checks: list[dict[str, Any]] = []
    for name in ("float32", "float16"):
        subject = subject_of(Case("operators", NORMALIZE, *SHAPE[1:3], name), device, "")
        call = subject.candidate(backend).call
        ways = {"plain call": plain_call}
        if device.type == "cuda":
            ways.update({"non-default stream": on_a_stream, "CUDA graph": in_a_graph})
        for way, run in ways.items():
            output, image = run(call, device)
            error = relative_error(output, subject.reference(image))
            match = error <= TOLERANCES["operators"][name]
            check = f"{backend}, normalize, {name}, {way}"
            checks.append({"check": check, "rel_error": f"{error:.2e}", "match": match})
    wrong = [check["check"] for check in checks if not check["match"]]
    if wrong:
        raise RuntimeError(f"wrong result: {'; '.join(wrong)}")
    return {"checks": checks}


def picture(device: torch.device) -> Tensor:
    return torch.randint(256, SHAPE, dtype=torch.uint8, device=device)


def plain_call(call: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    image = picture(device)
    return call(image), image


def on_a_stream(call: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """The picture arrives late, on the same side stream that the call is made on."""
    image, late = picture(device), picture(device)
    torch.cuda.synchronize(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP_CYCLES)
        image.copy_(late)
        output = call(image)
    torch.cuda.synchronize(device)
    return output, late


def in_a_graph(call: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Captured on one picture, replayed on another."""
    image = picture(device)
    call(image)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call(image)
    image.copy_(picture(device))
    output.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize(device)
    return output, image


# --- ceilings -------------------------------------------------------------------------------------

COPY_BYTES = 2 << 30
"""Size of the buffer that is copied; a few dozen times the L2 cache of today's cards."""

MATRIX_SIDE = 8192

FORMATS = {
    "float16": (torch.float16, "highest"),
    "bfloat16": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
    "float32": (torch.float32, "highest"),
}
"""Name of a rate -> dtype of the matrices and `torch.set_float32_matmul_precision`."""


def measure_ceilings(
    device: torch.device, sampling: Sampling, copy_bytes: int, matrix_side: int
) -> dict[str, Any]:
    """Copy bandwidth (read + written) in bytes/s, and matrix rates in operations/s.

    Through PyTorch's own calls, on random data: a matrix product of zeros runs measurably faster
    than one of real numbers (less switching, higher clocks).

    Args:
        device: what to measure.
        sampling: samples per figure.
        copy_bytes: size of the source buffer of the copy; halved until two of them fit.
        matrix_side: of the square matrices; a product counts 2 * side^3 operations.
    """
    return {
        "copy": copy_bandwidth(device, sampling, copy_bytes),
        "matrix": {name: matrix_rate(name, device, sampling, matrix_side) for name in FORMATS},
    }


def copy_bandwidth(device: torch.device, sampling: Sampling, size: int) -> dict[str, Any]:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        while 2 * size > free // 2:
            size //= 2
    source = torch.randint(-(2**62), 2**62, (size // 8,), dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    run = Run(lambda: target.copy_(source), 1, method(device), lambda: [target])
    timing = interleaved({"copy": run}, device, sampling)["copy"]
    if not torch.equal(source, target):
        raise RuntimeError("the copy differs from its source")
    moved = 2 * source.numel() * source.element_size()
    return {
        "bytes_per_s": moved / timing.median,
        "buffer_bytes": moved // 2,
        "timing": timing.record(),
    }


def matrix_rate(name: str, device: torch.device, sampling: Sampling, side: int) -> dict[str, Any]:
    dtype, precision = FORMATS[name]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty(side, side, device=device, dtype=dtype)

    def multiply() -> Tensor:
        return torch.matmul(a, b, out=product)

    with float32_precision(precision):
        run = Run(multiply, 1, method(device), lambda: [product])
        timing = interleaved({name: run}, device, sampling)[name]
    if not torch.isfinite(product).all():
        raise RuntimeError(f"the {name} matrix product has elements that are not finite")
    return {
        "operations_per_s": 2 * side**3 / timing.median,
        "side": side,
        "timing": timing.record(),
    }


def method(device: torch.device) -> str:
    return "events" if device.type == "cuda" else "clock"


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Matrix products of float32 run in tf32 inside, if `precision` is ``high``."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# --- from pictures in memory to labels there ------------------------------------------------------


def measure_runner(
    device: torch.device, backend: str, network: str, seconds: float, **place: Any
) -> dict[str, Any]:
    """Frames per second of a stream through `fassd_kernels.Runner`, copies included.

    Args:
        device: where the network runs.
        backend: of ours.
        network: its name.
        seconds: how long the stream runs, at least.
        place: batch, height, width and dtype.

    Returns:
        ``fps``, ``latency_ms`` of a single call, ``frames``; and, of the labels of one picture,
        ``rel_error``, ``tolerance`` and ``match``.

    Raises:
        UnavailableError: the backend is not there.
    """
    from fassd_kernels import Runner

    require_operators(backend, NETWORK_NEEDS, device)
    case = Case("networks", network, **place)
    subject = subject_of(case, device, "")
    assert isinstance(subject.module, Labelled)
    fast = fused_network(subject.module.to(device), case.torch_dtype, backend)
    batch = None if case.batch == 1 else case.batch
    runner = Runner(fast, (case.height, case.width), case.torch_dtype, device, batch)
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(256, runner.shape, dtype=torch.uint8, generator=generator)
    record: dict[str, Any] = {"network": network, "backend": backend, **place}
    with warnings.catch_warnings():
        # One that runs without its graph is not what is to be measured.
        warnings.filterwarnings("error", "GraphRunner: ", RuntimeWarning)
        labels = runner(frame)
        speed = runner.measure(seconds)
    assert isinstance(labels, torch.Tensor)
    pictures = frame.view(case.batch, *runner.size, 3).to(device)
    scores = subject.reference(Normalize().to(device)(pictures))
    limit = TOLERANCES["networks"][case.dtype]
    compare([labels.view(case.batch, *runner.size).to(device)], [scores], limit, record)
    return {
        **record,
        "fps": speed.fps,
        "latency_ms": 1e3 * speed.latency_s,
        "frames": speed.frames,
    }


# --- launches, as planned and as the GPU saw them -------------------------------------------------

REPLAYS = 20
"""Of a network's graph, whose median a launch's time is."""


def profile_network(device: torch.device, backend: str, **case: Any) -> dict[str, Any]:
    """See whether an accelerated network is our launches and nothing else, and time each.

    Args:
        device: a GPU.
        backend: of ours.
        case: fields of a `fassd.bench.subjects.Case`; the input is channels_last.

    Returns:
        ``planned`` and ``seen``, numbers of launches, and the ``foreign`` ones by name; of the
        CUDA backend also ``kernels``, the time of each in order, and ``rows``, see `launch_times`.

    Raises:
        UnavailableError: the backend or the profiler is not there.
    """
    network = Case("networks", **case)
    require_operators(backend, NETWORK_NEEDS, device)
    if device.type != "cuda":
        raise UnavailableError("only a GPU's launches can be profiled")
    profile = profile_triton if backend == "triton" else profile_cuda
    known = {"network": network.subject, "backend": backend, "dtype": network.dtype}
    return {**known, **profile(network, device)}


def accelerated_call(network: Case, device: torch.device, form: str) -> tuple[Call, Inputs]:
    """A network in one of our forms, warmed up, and an input in its layout."""
    subject = subject_of(network, device, "")
    call = subject.candidate(form).call
    (x,) = subject.inputs(0)
    inputs = (x.to(memory_format=torch.channels_last),)
    with torch.no_grad():
        warm_up(call, [inputs])
    return call, inputs


def profile_triton(network: Case, device: torch.device) -> dict[str, Any]:
    call, inputs = accelerated_call(network, device, TRITON)
    planned = planned_launches(call, inputs)
    seen = seen_launches(call, inputs)
    return {"planned": len(planned), "seen": len(seen), "foreign": foreign(seen, planned)}


def seen_launches(call: Call, inputs: Inputs) -> list[str]:
    """Names of everything that the GPU did for a call: kernels, copies, fills.

    Raises:
        UnavailableError: the profiler is shown nothing.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with torch.no_grad(), profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call(*inputs)
        torch.cuda.synchronize(inputs[0].device)
    seen = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
    if not seen:
        raise UnavailableError("torch.profiler saw no kernel: CUPTI may not be permitted here")
    return seen


def foreign(seen: Sequence[str], planned: Sequence[Planned]) -> dict[str, int]:
    """Of the launches that were `seen`, those of no planned kernel, with their number."""
    ours = tuple({launch.kernel for launch in planned})
    return dict(Counter(name for name in seen if not name.startswith(ours)))


def profile_cuda(network: Case, device: torch.device) -> dict[str, Any]:
    """Each launch as the time model has it, and as replays of the network's graph had it."""
    from fassd.bench import timeline
    from fassd.bench.costs import cuda as predict

    try:
        target = predict.find_device(torch.cuda.get_device_name(device))
        prediction = predict.predict_network(
            network.subject, network.height, network.width, target,
            batch=network.batch, dtype=network.torch_dtype,
        )  # fmt: skip
        seen = timeline.time_network(prediction, REPLAYS, classes=19, alpha=2)
    except ImportError as error:
        raise UnavailableError(str(error)) from None
    return launch_times(prediction, seen)


def launch_times(prediction: Any, seen: Any) -> dict[str, Any]:
    """A `Prediction` beside its `Timeline`.

    Where the GPU ran other kernels than predicted, ``mismatch`` says which; their times are kept.

    Returns:
        ``kernels``: name and seconds of each launch in order, of which ``planned`` were predicted;
        ``measured_s``, of a whole replay; ``rows``: equal launches together, with their prediction
        where all launches are those predicted, by the kernel's name where they are not.
    """
    from fassd.bench import timeline

    names = [kernel.name for kernel in seen.replays[0]]
    alike = [replay for replay in seen.replays if [k.name for k in replay] == names]
    spans = zip(*map(timeline.spans_of, alike), strict=True)
    kernels = [
        {"kernel": name, "measured_s": statistics.median(times)}
        for name, times in zip(names, spans, strict=True)
    ]
    found: dict[str, Any] = {
        "planned": len(prediction.launches),
        "seen": len(names),
        "foreign": dict(Counter(name for name in names if not is_cuda_kernel(name))),
        "kernels": kernels,
        "predicted_s": prediction.predicted,
        "measured_s": statistics.median(seen.seconds),
    }
    try:
        timeline.check_kernels(prediction.launches, seen.replays[0])
    except ValueError as error:
        return {**found, "mismatch": str(error), "rows": rows_by_kernel(kernels)}
    measured = replace(
        prediction,
        launches=tuple(
            replace(launch, measured=kernel["measured_s"])
            for launch, kernel in zip(prediction.launches, kernels, strict=True)
        ),
    )
    return {**found, "rows": measured.to_json()["rows"]}


def rows_by_kernel(kernels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Launches of one name together, without a prediction, as rows of the page's table."""
    total: Counter[str] = Counter()
    for kernel in kernels:
        total[kernel["kernel"]] += kernel["measured_s"]
    counts = Counter(kernel["kernel"] for kernel in kernels)
    return [
        {"label": name, "count": counts[name], "measured_s": seconds}
        for name, seconds in total.items()
    ]


def is_cuda_kernel(name: str) -> bool:
    """Whether a kernel is of our CUDA sources, by its name, mangled or not."""
    return "fassd::cuda" in name or "5fassd4cuda" in name


def forward(network: str, **place: Any) -> None:
    """One forward through our CUDA kernels; the profiler is started behind what warms up."""
    device = torch.device("cuda")
    call, inputs = accelerated_call(Case("networks", network, **place), device, NATIVE)
    with torch.no_grad():
        torch.cuda.profiler.start()
        call(*inputs)
        torch.cuda.synchronize(device)
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    forward(**json.loads(sys.argv[1]))
