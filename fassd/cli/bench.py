"""`fassd bench`, a group of five commands: the speed of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fassd.cli import options
from fassd.cli.common import CommandGroup, app, device_for
from fassd.cli.jobs import (
    check_files,
    deliver,
    every_network,
    job_of,
    job_of_file,
    measure,
    other_networks,
)
from fassd.cli.options import (
    ANY_DTYPES,
    FULL_SIZE,
    NetworkOptions,
    Size,
    listed,
    numbers,
    parse_dtype,
    parse_size,
    size_option,
    with_groups,
)
from fassd.io.files import check_file

InputSize = Annotated[Size, size_option("--size", help="Size of the input.")]
Batch = Annotated[int, typer.Option(min=1, metavar="N", help="Pictures per call.")]
Repeats = Annotated[int, typer.Option(min=1, metavar="N", help="Measured rounds.")]
Warmup = Annotated[
    int, typer.Option(min=0, metavar="N", help="Rounds before them that are not measured.")
]
Memory = Annotated[
    bool,
    typer.Option(
        "--memory/--no-memory",
        help="Measure peak memory; on the CPU, each path in a process of its own.",
    ),
]
Dtypes = Annotated[
    Sequence[str],
    typer.Option(
        parser=listed(parse_dtype),
        metavar="NAME,...",
        show_default="float32",
        help=f"Precisions of our kernels beside float32: {', '.join(ANY_DTYPES)}. int8, on a CPU, "
        "also measures OpenVINO's.",
    ),
]
Sizes = Annotated[
    Sequence[Size],
    typer.Option(
        "--sizes",
        "--size",
        parser=listed(parse_size),
        metavar="HxW,...",
        show_default=str(FULL_SIZE),
        help="Sizes of the input.",
    ),
]
Batches = Annotated[
    Sequence[int],
    typer.Option(
        "--batches",
        "--batch",
        parser=numbers(int, "number of pictures", least=1),
        metavar="N,...",
        show_default="1",
        help="Pictures per call.",
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Measure only these, of eager, channels_last, amp, inductor, compile, "
        "max_autotune, onnxruntime, openvino, openvino_bf16, openvino_int8, tensorrt, ours.",
    ),
]
Plot = Annotated[Path | None, typer.Option(metavar="PNG", help="Also draw the figures.")]


@dataclass(frozen=True)
class InputOptions:
    """The input and the precision of a network."""

    dtype: options.Dtype = "float32"
    size: InputSize = FULL_SIZE
    batch: Batch = 1


@dataclass(frozen=True)
class OtherOptions:
    """A network of another project in place of this project's."""

    module: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Any network: what the function NAME of an importable module returns.",
        ),
    ] = None
    timm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Encoder from timm, up to its maps at strides 4 to 32."),
    ] = None
    smp: Annotated[
        str | None,
        typer.Option(
            metavar="ARCH/ENCODER",
            help="Network from segmentation_models (smp), such as Unet/resnet18.",
        ),
    ] = None

    def pick(self, beside: Sequence[str]) -> str | None:
        """The network's name in a job; None without one.

        Args:
            beside: options on the command line that choose a network of this project, or its form.

        Raises:
            ValueError: several options contradict one another; or a factory's name is invalid.
        """
        given = {f"--{name}": value for name, value in vars(self).items() if value is not None}
        if not given:
            return None
        if len(given) > 1 or beside:
            raise ValueError(f"only one of {', '.join([*given, *beside])} can be given")
        if self.module is not None and ":" not in self.module:
            raise ValueError(
                f"--module must be MODULE:NAME, like nets.small:unet, got {self.module!r}"
            )
        (option, value), *_ = given.items()
        return self.module or f"{option.removeprefix('--')}:{value}"


@dataclass(frozen=True)
class RoundOptions:
    """The number of rounds, and the device."""

    repeats: Repeats = 10
    warmup: Warmup = 2
    threads: options.Threads = None
    seed: options.Seed = 1


group = typer.Typer(cls=CommandGroup, no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(group, name="bench")


@group.callback()
def bench() -> None:
    """Measure this machine: plain PyTorch against fused kernels, same picture, same weights.

    Every round calls each path once, in rotating order; tables show the median and
    half the interquartile range.

    [bold]Examples[/]

    [cyan]fassd bench run[/]: plain PyTorch against fused kernels

    [cyan]fassd bench peers[/]: ... and Inductor, ONNX Runtime, OpenVINO, TensorRT

    [cyan]fassd bench layers[/]: where the time goes, and the least it could be

    [cyan]fassd bench launches h200[/]: ... on a GPU that need not be here

    [cyan]fassd bench compare base.json[/]: in CI, did a speed-up change?
    """


@group.command()
@with_groups
def run(
    *,
    context: typer.Context,
    network: NetworkOptions,
    others: OtherOptions,
    given: InputOptions,
    rounds: RoundOptions,
    compile_: Annotated[bool, typer.Option("--compile", help="Also time torch.compile.")] = False,
    memory: Memory = True,
    device: options.Device = None,
    json_: options.Json = None,
) -> None:
    """Compare plain PyTorch with fused kernels.

    Every round calls each path once, in rotating order; the table shows the median and
    half the interquartile range. The reference is plain PyTorch in float32; on a GPU with another
    --dtype, plain PyTorch in that precision runs beside it. A path whose labels agree with the
    reference's for less than 99% of the pixels gets no speed-up.

    Memory is what one call needs beyond the loaded model.

    An exported file ([cyan]-m net.onnx[/]) is measured beside the network that it was made from, in
    every runtime that is installed or in the one that --backend names.

    Another network ([cyan]--module[/], [cyan]--timm[/], [cyan]--smp[/]) is measured as
    [cyan]fassd bench peers[/] measures this project's: eager, Inductor, ONNX Runtime, OpenVINO,
    and accelerated, each compared with the network in float64.

    [bold]Examples[/]

    [cyan]fassd bench run[/]

    [cyan]fassd bench run --json base.json[/]

    [cyan]fassd bench run --compile --threads 1 --json bench.json[/]

    [cyan]fassd bench run -m fassd_net_l2 --batch 4 --dtype float16 --device cuda[/]

    [cyan]fassd bench run -m net.onnx[/]

    [cyan]fassd bench run --module my_package.networks:unet --size 512x1024[/]

    [cyan]fassd bench run --smp Unet/resnet18 --size 512x1024 --json unet.json[/]
    """
    from fassd.bench.candidates import candidates
    from fassd.bench.run import run
    from fassd.export import is_exported
    from fassd.models.device import pick_device

    check_file(json_)
    home = str(pick_device(device_for(network.model, device)))
    ours = ("model", "weights", "classes", "alpha", "encoder_name", "compile_")
    beside = [f"--{name.strip('_').replace('_', '-')}" for name in ours if _is_given(context, name)]
    other = others.pick(beside)
    job = job_of(network, given, rounds, compile=compile_, memory=memory, device=home)
    if other is not None:
        job = replace(job, model=other, weights=None)
        chosen = candidates(["float32", given.dtype], device=home)
        deliver(measure(partial(run, [job], chosen), [job]), json_)
        return
    if is_exported(network.model):
        names = ("size", "batch", "dtype", "classes", "alpha")
        asked = [name for name in names if _is_given(context, name)]
        job = job_of_file(job, network.weights, asked)
    deliver(measure(partial(run, [job]), [job]), json_)


@group.command()
@with_groups
def peers(
    *,
    network: NetworkOptions,
    all_: Annotated[bool, typer.Option("--all", help="Measure every network.")] = False,
    dtype: Dtypes = ("float32",),
    sizes: Sizes = (FULL_SIZE,),
    batches: Batches = (1,),
    only: Only = None,
    others: Annotated[
        bool, typer.Option("--others", help="Also measure published networks of others.")
    ] = False,
    rounds: RoundOptions,
    memory: Memory = True,
    device: options.Device = None,
    json_: options.Json = None,
) -> None:
    """Compare with every other way to run the network on this machine.

    Each of the other runtimes runs in its fastest form, on as many threads; they
    come with [cyan]pip install 'fassd-net\\[bench]'[/]. On a GPU these are plain PyTorch, AMP,
    torch.compile, ONNX Runtime and TensorRT, and the energy of a call is measured. --others also
    measures networks that could be used instead, from other packages, with random weights; a
    warning says how to install those that are missing.

    [bold]Examples[/]

    [cyan]fassd bench peers --all --dtype float16 --json peers.json[/]

    [cyan]fassd bench peers --only eager,ours --sizes 256x512,512x1024 --batches 1,4[/]

    [cyan]fassd bench peers --others --size 512x1024 --no-memory[/]
    """
    from fassd.bench.candidates import candidates
    from fassd.bench.run import run
    from fassd.models.device import pick_device

    if all_ and network.weights not in (None, "random"):
        raise ValueError("--weights is for one network: leave out --all, or give random")
    check_files(network.model, json_)
    job = job_of(network, rounds, memory=memory, device=str(pick_device(device)))
    keys = None if only is None else [key.strip() for key in only.split(",")]
    chosen = candidates(["float32", *dtype], keys, device=job.device)
    networks = every_network(job, network.weights) if all_ else [job]
    networks += other_networks(job) if others else []
    jobs = [
        replace(each, size=size, batch=batch)
        for size in sizes
        for batch in batches
        for each in networks
    ]
    deliver(measure(partial(run, jobs, chosen), jobs), json_)


@group.command()
@with_groups
def layers(
    *,
    network: NetworkOptions,
    given: InputOptions,
    rounds: RoundOptions,
    json_: options.Json = None,
    plot: Plot = None,
) -> None:
    """Predict and measure every fused call of a network on this CPU, up to its labels.

    The table shows the time predicted from a call's operations and this machine's rates, and the
    time that the call takes.

    [bold]Examples[/]

    [cyan]fassd bench layers --plot layers.png[/]

    [cyan]fassd bench layers -m fassd_net_l2 --size 512x1024 --json layers.json[/]
    """
    from fassd.bench.layers import run_layers

    check_files(network.model, json_, plot)
    job = job_of(network, given, rounds)
    deliver(measure(partial(run_layers, job), [job]), json_, plot)


@group.command()
def launches(
    gpu: Annotated[str, typer.Argument(metavar="GPU", help="Name of a GPU, or part of one.")],
    model: options.Model = None,
    classes: options.Classes = None,
    alpha: options.Alpha = None,
    dtype: options.Dtype = "float16",
    size: InputSize = FULL_SIZE,
    batch: Batch = 1,
    repeats: Repeats = 10,
    json_: options.Json = None,
) -> None:
    """Show what the CUDA kernels launch on a GPU, whether or not it is in this machine.

    The table shows, for each launch, tiles, waves, bytes, operations after padding, warp
    instructions and the time to issue them, the floor, the predicted time and, if the GPU is in
    this machine, the measured time. Planning needs Triton, which comes with
    [cyan]pip install 'fassd-net\\[triton]'[/].

    [bold]Examples[/]

    [cyan]fassd bench launches h200[/]

    [cyan]fassd bench launches h200 --batch 8 --json h200.json[/]
    """
    from fassd.bench.launches import run_launches
    from fassd.models import get_variant

    check_files(model, json_)
    network = {"model": model, "classes": classes, "alpha": alpha}
    job = job_of(**network, size=size, batch=batch, dtype=dtype, repeats=repeats)
    if get_variant(job.model).encoder is not None:
        raise ValueError(
            f"--model {job.model}: its encoder is launched by PyTorch, whose kernels are not "
            "predicted; choose a network with HarDNet's encoder"
        )
    job = replace(job, weights=None)
    deliver(measure(partial(run_launches, job, gpu), [job]), json_)


@group.command()
def compare(
    baseline: Annotated[
        Path, typer.Argument(metavar="BASELINE", help="File that run or peers wrote with --json.")
    ],
    tolerance: Annotated[
        float, typer.Option(min=0, max=99, metavar="PERCENT", help="Slowdown that does not fail.")
    ] = 3.0,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", show_default="those of BASELINE", help="Measured rounds."),
    ] = None,
    threads: options.Threads = None,
    json_: options.Json = None,
) -> None:
    """Measure the job of a results file again: did a speed-up change?

    Made for CI: it compares speed-ups, never times: the ratios of interleaved rounds, then and now,
    with a bootstrap interval of 95%. Exit code 1: a path became slower by more than --tolerance,
    beyond noise; no longer agrees with the reference; or is missing. The interval does not cover
    what differs between processes rather than rounds, 3 to 9% of a small picture's ratio on a
    shared machine: in CI use pictures of 512x1024 or more and --repeats 20, or a larger
    --tolerance.

    [bold]Examples[/]

    [cyan]fassd bench run --size 512x1024 --json base.json[/]

    [cyan]fassd bench compare base.json --tolerance 10 --repeats 20[/]
    """
    from fassd.bench.compare import read_baseline, run_compare

    check_file(json_)
    then = read_baseline(baseline)
    jobs = then.jobs(repeats, threads)
    report = measure(partial(run_compare, then, jobs, tolerance=tolerance), jobs)
    deliver(report, json_)
    if not report.ok:
        raise typer.Exit(1)


def _is_given(context: typer.Context, name: str) -> bool:
    """True if an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
