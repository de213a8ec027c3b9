"""Jobs of `fassd bench` and `fassd demo`: made from options, measured, reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fassd.cli.common import pick_network
from fassd.cli.terminal import console, escape, progress, say, write_json
from fassd.io.files import check_file, replacing

if TYPE_CHECKING:
    from fassd.bench.jobs import Job


def job_of(*groups: Any, **fields: Any) -> Job:
    """Make the job of the network that options choose.

    Args:
        groups: dataclasses of options that have the names of the job's fields.
        fields: further fields.
    """
    from fassd.bench.jobs import Job

    given = {name: value for group in groups for name, value in vars(group).items()} | fields
    names = "model", "weights", "classes", "alpha", "encoder_name"
    network = (given.pop(name, None) for name in names)
    model, weights, classes, alpha = pick_network(*network)
    return Job(model, weights, classes or 19, alpha or 2, **given)


def check_png(option: str, path: Path) -> None:
    """Check that a picture can be written.

    Raises:
        ValueError: its name is not that of a PNG file.
        OSError: it cannot be written there.
    """

    if path.suffix.lower() != ".png":
        raise ValueError(f"{option} must be the name of a PNG file, NAME.png, got {str(path)!r}")
    check_file(path)


def check_files(model: str | None, json_: Path | None, plot: Path | None = None) -> None:
    """Check that a network is not an exported file, and that results can be written.

    Raises:
        ValueError: a file is not acceptable.
        ImportError: a plot needs matplotlib, which is missing.
    """
    from fassd.bench.report.charts import check_matplotlib
    from fassd.export import is_exported

    if is_exported(model):
        raise ValueError(f"--model: only `fassd bench run` takes an exported file, got {model}")
    check_file(json_)
    if plot is not None:
        check_png("--plot", plot)
        check_matplotlib()


def job_of_file(job: Job, weights: str | None, given: list[str]) -> Job:
    """The job that compares an exported file with the network that it was made from.

    Args:
        given: names of the job's fields that were given on the command line.

    Raises:
        ValueError: one of those contradicts the file; or the file does not state its weights, and
            none are given.
    """
    from fassd.export import ExportedNetwork

    runtime = "auto" if job.backend == "reference" else job.backend
    data = ExportedNetwork(job.model, runtime, job.device).metadata
    if weights is None and data.weights not in (None, "streets", "synthetic", "cityscapes"):
        raise ValueError(
            f"{job.model} was made with the weights {data.weights}: give that file as --weights, "
            "for the comparison"
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


def every_network(job: Job, weights: str | None) -> list[Job]:
    """`job` for every network, each with its own weights."""
    from fassd.models import list_models

    return [
        replace(
            job,
            model=name,
            weights=pick_network(name, weights, job.classes, job.alpha).weights,
        )
        for name in list_models()
    ]


def other_networks(job: Job) -> list[Job]:
    """`job` for every published network of other projects; warns of missing packages."""
    from fassd.bench.others import OTHERS

    for network in OTHERS:
        if network.missing:
            say(f"[yellow]warning:[/] {network.title} is left out: {escape(network.missing)}")
    here = [network.model for network in OTHERS if not network.missing]
    return [replace(job, model=model, weights=None) for model in here]


def measure(run: Callable[..., Any], jobs: Sequence[Job]) -> Any:
    """Run `run`, which measures `jobs` and takes `step` and `tick`, with a progress bar.

    After Ctrl-C, it returns the measurements until then, marked as `interrupted`.
    """
    from fassd.bench.run import Interrupted

    try:
        with progress() as bar:
            task = bar.add_task("", total=sum(job.warmup + job.repeats for job in jobs))
            return run(
                step=lambda words: bar.update(task, description=words),
                tick=lambda: bar.advance(task),
            )
    except Interrupted as stop:
        return stop.report


def deliver(report: Any, json_: Path | None, plot: Path | None = None) -> None:
    """Print a report, and write its figures and its plot if requested.

    Raises:
        KeyboardInterrupt: raised afterwards if the measurement was interrupted.
    """
    console().print(report)
    if json_ is not None:
        write_json(json_, report.to_json())
    if plot is not None:
        from fassd.bench.report.charts import layer_figure, png

        with replacing(plot) as file:
            file.write(png(layer_figure(report.to_json())))
        say(f"plot: {escape(str(plot))}")
    if getattr(report, "interrupted", False):
        raise KeyboardInterrupt
