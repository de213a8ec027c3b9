"""`fassd bench` and `fassd demo`: plain PyTorch against fused kernels on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fassd.cli.common import (
    DTYPES,
    Alpha,
    Backend,
    Batches,
    Classes,
    Device,
    Dtypes,
    Json,
    Model,
    Seed,
    Size,
    Sizes,
    Threads,
    Weights,
    app,
    console,
    device_for,
    escape,
    parse_batches,
    parse_dtypes,
    parse_size,
    parse_sizes,
    pick_network,
    progress,
    say,
)

if TYPE_CHECKING:
    from fassd.bench.run import Job

AGREEMENT_OF_DEMO = 99.9  # per cent of the labels


@app.command()
def bench(
    context: typer.Context,
    model: Model = None,
    weights: Weights = None,
    classes: Classes = None,
    alpha: Alpha = None,
    backend: Backend = "auto",
    dtype: Annotated[
        Dtypes | None,
        typer.Option(
            parser=parse_dtypes,
            metavar="NAME,...",
            show_default="float32; float16 with --predict",
            help=f"Precision: {', '.join(DTYPES)}. Several, with --peers: of ours, beside float32.",
        ),
    ] = None,
    size: Annotated[
        Size,
        typer.Option(
            parser=parse_size, metavar="HxW", show_default="1024x2048", help="Size of the input."
        ),
    ] = Size(1024, 2048),
    batch: Annotated[int, typer.Option(min=1, help="Pictures per call.")] = 1,
    compile_: Annotated[bool, typer.Option("--compile", help="Time torch.compile, too.")] = False,
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Compare with every way to run the network that is here."),
    ] = False,
    others: Annotated[
        bool, typer.Option("--others", help="With --peers: other networks with the same job, too.")
    ] = False,
    all_: Annotated[bool, typer.Option("--all", help="With --peers: every network.")] = False,
    sizes: Annotated[
        Sizes | None,
        typer.Option(
            parser=parse_sizes, metavar="HxW,...", help="With --peers: in place of --size."
        ),
    ] = None,
    batches: Annotated[
        Batches | None,
        typer.Option(
            parser=parse_batches, metavar="N,...", help="With --peers: in place of --batch."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="With --peers: those of eager, channels_last, amp, inductor, compile, "
            "max_autotune, onnxruntime, openvino, openvino_bf16, tensorrt, ours, pidnet_s, "
            "ddrnet_23_slim, bisenetv2, segformer_b0.",
        ),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Predict and measure every fused call.")
    ] = False,
    predict: Annotated[
        str | None,
        typer.Option(
            metavar="GPU",
            help="With --layers: every launch on this GPU, which need not be here; a name or a "
            "part of it.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before them, not measured.")] = 2,
    memory: Annotated[
        bool, typer.Option(help="Measure peak memory, on the CPU in a process per path.")
    ] = True,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 1,
    json_: Json = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="Measure the job of this file of --json once more: did a speed-up change?",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, max=99, metavar="PERCENT", help="With --against: a change not worth an alarm."
        ),
    ] = 3.0,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="With --peers or --layers: also draw the figures."),
    ] = None,
) -> None:
    """Measure this machine: plain PyTorch against fused kernels, same picture, same weights.

    Every round calls each path once, in rotating order; the table shows the median and
    half the interquartile range. The reference is plain PyTorch in float32; on a GPU with another
    --dtype, plain PyTorch in that precision runs beside it. A path whose labels agree with the
    reference's for less than 99% of the pixels gets no speed-up.

    Memory is what one call needs beyond the loaded model.

    An exported file ([cyan]-m net.onnx[/]) is measured beside the network that it was made from, by
    every runtime that is here or the one that --backend names, called with what it takes.

    --peers compares with the other runtimes, each in its fastest form and on as many threads; they
    come with [cyan]pip install 'fassd-net\\[bench]'[/]. On a GPU these are plain PyTorch, AMP,
    torch.compile, ONNX Runtime and TensorRT, and the energy of a call is measured. --others puts
    networks beside it that one could take instead, as other packages carry them, with random
    weights; a note says how to install those that are missing. --layers shows every fused
    call of the network, labels out: the time predicted from its operations and this machine's
    rates, and the time that it takes.

    --layers --predict GPU shows what the CUDA kernels launch on a GPU, be it here or not: tiles,
    waves, bytes, operations after padding, the floor and the predicted time of each launch; and,
    where it is this machine's, the time measured. It plans with Triton, which comes with
    [cyan]pip install 'fassd-net\\[triton]'[/].

    --against FILE, for use in CI, measures what FILE tells (of --json, also with --peers) once more
    and compares speed-ups, never times: the ratios of interleaved rounds, then and now, with a
    bootstrap interval of 95%. Exit code 1: a path became slower by more than --tolerance, beyond
    noise; disagrees with the reference now; or is missing. What differs from process to process but
    not from round to round, 3 to 9% of a small picture's ratio on a shared machine, the interval
    cannot know: in CI take pictures of 512x1024 or more and --repeats 20, or a larger --tolerance.

    [bold]Examples[/]

    [cyan]fassd bench[/]

    [cyan]fassd bench --json base.json[/] and later [cyan]fassd bench --against base.json[/]

    [cyan]fassd bench --compile --threads 1 --json bench.json[/]

    [cyan]fassd bench -m fassd_net_l2 --size 512x1024 --batch 4 --dtype float16 --device cuda[/]

    [cyan]fassd bench -m net.onnx[/]

    [cyan]fassd bench --peers --all --dtype float16 --json peers.json --plot peers.png[/]

    [cyan]fassd bench --peers --only eager,inductor,ours --sizes 256x512,512x1024 --batches 1,4[/]

    [cyan]fassd bench --peers --others --size 512x1024 --no-memory[/]

    [cyan]fassd bench --layers --plot layers.png[/]

    [cyan]fassd bench --layers --predict h200 --batch 8 --json h200.json[/]
    """
    from fassd.bench.run import Job, run
    from fassd.export import is_exported
    from fassd.io.images import check_file
    from fassd.models.device import pick_device

    alone = not (peers or layers)
    dtype = dtype or Dtypes(["float32" if predict is None else "float16"])
    _check_options(
        ("--all", all_, peers, "with --peers"),
        ("--sizes", sizes, peers, "with --peers"),
        ("--batches", batches, peers, "with --peers"),
        ("--only", only, peers, "with --peers"),
        ("--others", others, peers, "with --peers"),
        ("more than one --dtype", len(dtype) > 1, peers, "with --peers"),
        ("--layers", layers, not peers, "without --peers"),
        ("--predict", predict is not None, layers, "with --layers"),
        ("--predict", predict is not None, backend in ("auto", "cuda"), "of the cuda backend"),
        ("--weights", weights, predict is None, "without --predict, which needs none"),
        ("--plot", plot, not alone, "with --peers or --layers"),
        ("--plot", plot, "eager" in (only or "eager"), "with eager among --only"),
        ("--plot", plot, plot is None or plot.suffix.lower() == ".png", "of a name in .png"),
        ("--compile", compile_, alone, "without --peers and --layers"),
        ("--device", device not in (None, "cpu"), not layers, "without --layers"),
        ("--weights", weights not in (None, "random"), not all_, "without --all, but for random"),
    )
    exported = is_exported(model)
    _check_options(("--model FILE", exported, alone, "without --peers and --layers"))
    check_file(json_)
    check_file(plot)
    if against is not None:
        _run_against(context, against, tolerance, json_)
        return
    chosen = pick_network(model, weights, classes, alpha)
    job = Job(
        model=chosen.model,
        weights=None if all_ or predict is not None else chosen.weights,
        classes=chosen.classes or 19,
        alpha=chosen.alpha or 2,
        size=size,
        batch=batch,
        seed=seed,
        backend=backend,
        dtype=dtype[0],
        device="cpu" if layers else str(pick_device(device_for(model, device))),
        compile=compile_,
        threads=threads,
        repeats=repeats,
        warmup=warmup,
        memory=memory,
    )
    if exported:
        given = [n for n in ("size", "batch", "dtype", "classes", "alpha") if _is_given(context, n)]
        job = _of_file(job, weights, given)
    if plot is not None:
        from fassd.bench.charts import check_matplotlib

        check_matplotlib()
    if peers:
        report = _compare(_jobs(job, weights, all_, sizes, batches), dtype, only, others)
    elif predict is not None:
        from fassd.bench.launches import run_launches

        report = _measure(partial(run_launches, job, predict), [job])
    elif layers:
        from fassd.bench.layers import run_layers

        report = _measure(partial(run_layers, job), [job])
    else:
        report = _measure(partial(run, job), [job])
    _deliver(report, json_, plot)


def _of_file(job: Job, weights: str | None, given: list[str]) -> Job:
    """The job that compares an exported file with the network that it was made from.

    Args:
        given: fields of the job that stand on the command line.

    Raises:
        ValueError: one of those contradicts the file; or the file does not tell which weights it
            holds, and none are given.
    """
    from fassd.export import ExportedNetwork

    runtime = "auto" if job.backend == "reference" else job.backend
    data = ExportedNetwork(job.model, runtime, job.device).metadata
    if weights is None and data.weights not in (None, "synthetic", "cityscapes"):
        raise ValueError(
            f"{job.model} was made with the weights {data.weights}: give that file as --weights, "
            "to compare with"
        )
    source = pick_network(
        data.variant, weights or data.weights or "random", data.num_classes, data.alpha
    )
    found = replace(
        job,
        exported=job.model,
        model=data.variant,
        weights=source.weights,
        classes=data.num_classes,
        alpha=data.alpha,
        size=data.size or job.size,
        batch=data.batch,
        dtype=data.dtype if data.dtype in ("float16", "bfloat16") else "float32",
    )
    for name in given:
        asked, known = getattr(job, name), getattr(found, name)
        if asked != known:
            raise ValueError(
                f"--{name}: {job.model} has {_text(known)}, asked for was {_text(asked)}"
            )
    return found


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


# What --against takes beside the file's job, and what only a file can say.
_FREE = ("against", "tolerance", "json_", "repeats", "memory")
_NOT_AGAINST = ("all_", "others", "sizes", "batches", "only", "layers", "predict", "plot")


def _run_against(context: typer.Context, file: Path, tolerance: float, json_: Path | None) -> None:
    """Measure a file's jobs once more and tell what changed; exit code 1 if for the worse.

    Raises:
        ValueError: an option that contradicts the file, or a file that cannot be compared with.
    """
    from fassd.bench.compare import read_baseline, run_against
    from fassd.models.zoo import is_weights_file

    given = {
        name: value
        for name, value in context.params.items()
        if _is_given(context, name) and name not in _FREE
    }
    for name in _NOT_AGAINST:
        if name in given:
            raise ValueError(f"--{name.strip('_')}: only without --against, whose file tells it")
    options = {name.strip("_"): value for name, value in given.items()}
    if is_weights_file(options.get("model")):
        chosen = pick_network(options["model"], options.get("weights"))
        options |= {"model": chosen.model, "weights": chosen.weights}
    for name, kind in (("dtype", tuple), ("size", tuple)):
        if name in options:
            options[name] = kind(options[name])
    if options.get("weights") == "random":
        options["weights"] = None
    baseline = read_baseline(file)
    baseline.check(options)
    repeats = context.params["repeats"] if _is_given(context, "repeats") else None
    jobs = [
        replace(part.job, repeats=repeats or part.job.repeats, memory=False)
        for part in baseline.jobs
    ]
    report = _measure(
        partial(
            run_against,
            baseline,
            repeats=repeats,
            threads=context.params["threads"],
            tolerance=tolerance,
        ),
        jobs,
    )
    _deliver(report, json_, None)
    if not report.ok:
        raise typer.Exit(1)


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check_options(*rules: tuple[str, object, bool, str]) -> None:
    """See whether options go together; a rule is (option, given, allowed, where it is allowed).

    Raises:
        ValueError: an option was given where it is not allowed.
    """
    for option, given, allowed, where in rules:
        if given and not allowed:
            raise ValueError(f"{option}: only {where}")


def _jobs(
    job: Job, weights: str | None, all_: bool, sizes: Sizes | None, batches: Batches | None
) -> list[Job]:
    """`job` for every size, batch and network asked for, each network with its own weights."""
    from fassd.models import list_models

    return [
        replace(
            job,
            model=name,
            weights=pick_network(name, weights, job.classes, job.alpha).weights
            if all_
            else job.weights,
            size=size,
            batch=batch,
        )
        for size in sizes or [job.size]
        for batch in batches or [job.batch]
        for name in (list_models() if all_ else [job.model])
    ]


def _compare(jobs: list[Job], dtypes: Dtypes, only: str | None, others: bool) -> Any:
    """Run `fassd.bench.peers`; ours in float32 and in `dtypes`."""
    from fassd.bench.candidates import candidates
    from fassd.bench.peers import run_peers

    keys = None if only is None else [key.strip() for key in only.split(",")]
    device = jobs[0].device
    chosen = candidates(["float32", *dtypes], keys, device=device, others=others)
    return _measure(partial(run_peers, jobs, chosen), jobs)


def _deliver(report: Any, json_: Path | None, plot: Path | None) -> None:
    """Print a report, and write its figures and its plot where asked for."""
    from fassd.io.images import replacing

    console().print(report)
    if json_ is not None:
        with replacing(json_) as file:
            file.write(json.dumps(report.to_json(), indent=1).encode())
        say(f"figures: {escape(str(json_))}")
    if plot is not None:
        from fassd.bench.charts import draw

        draw(plot, report)
        say(f"plot: {escape(str(plot))}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")],
    model: Model = None,
    weights: Weights = None,
    backend: Backend = "auto",
    size: Annotated[
        Size,
        typer.Option(
            parser=parse_size, metavar="HxW", show_default="1024x2048", help="Size of the scene."
        ),
    ] = Size(1024, 2048),
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 5,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 1,
) -> None:
    """Render a street, segment it with plain PyTorch and with fused kernels, and compare.

    Writes [cyan]scene.png[/], [cyan]labels.png[/] (in colours) and [cyan]overlay.png[/]. The
    weights are ours, trained on generated streets of other textures; for networks that have
    none they are random, with batch norms calibrated on the scene: then the labels follow what the
    picture shows, but their names mean nothing.

    Exit code: 1 if less than 99.9% of the labels agree.

    [bold]Examples[/]

    [cyan]fassd demo -o demo[/]

    [cyan]fassd demo -o demo --weights cityscapes --size 512x1024 --seed 3[/]
    """
    from fassd.bench.run import Job, run
    from fassd.io.images import check_folder, write_image
    from fassd.io.palette import colorize, overlay
    from fassd.models.device import pick_device

    check_folder(output)
    chosen = pick_network(model, weights)
    job = Job(
        model=chosen.model,
        weights=chosen.weights,
        classes=chosen.classes or 19,
        alpha=chosen.alpha or 2,
        size=size,
        seed=seed,
        backend=backend,
        device=str(pick_device(device)),
        threads=threads,
        repeats=repeats,
        memory=False,
    )
    report = _measure(partial(run, job), [job])
    console().print(report)
    results = {
        "scene.png": report.picture,
        "labels.png": colorize(report.labels, report.colors),
        "overlay.png": overlay(report.picture, report.labels, colors=report.colors),
    }
    for name, result in results.items():
        write_image(output / name, result)
    say(f"pictures: {escape(str(output))}/ {', '.join(results)}")
    if not report.labels_agree >= AGREEMENT_OF_DEMO:
        say(
            f"[bold red]error:[/] {report.labels_agree:.3f}% of the labels agree with plain "
            f"PyTorch's, {AGREEMENT_OF_DEMO}% are asked for"
        )
        raise typer.Exit(1)


def _measure(run: Callable[..., Any], jobs: Sequence[Job]) -> Any:
    """What `run` returns, which measures `jobs` and takes `step` and `tick`; a progress bar."""
    with progress() as bar:
        task = bar.add_task("", total=sum(job.warmup + job.repeats for job in jobs))
        return run(
            step=lambda words: bar.update(task, description=words),
            tick=lambda: bar.advance(task),
        )
