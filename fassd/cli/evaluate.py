"""`fassd val` and `fassd compare`: the quality of networks, in figures and pictures."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fassd.cli import options
from fassd.cli.common import (
    Network,
    app,
    device_for,
    pick_network,
    set_threads,
    split_model,
    tell_weights,
    weights_of,
)
from fassd.cli.jobs import check_png
from fassd.cli.options import numbers
from fassd.cli.temperature import Temperature, calibration_of, keep_fitted
from fassd.cli.terminal import console, escape, escape_lines, progress, say, write_json
from fassd.io.files import check_file, check_folder

if TYPE_CHECKING:
    import torch

    from fassd.data.card import Card
    from fassd.data.dataset import Sample, SegmentationDataset
    from fassd.evaluation.calibration import Calibration
    from fassd.evaluation.evaluate import Match
    from fassd.inference.pictures import ImageLike
    from fassd.inference.segmenter import Segmenter
    from fassd.io.palette import LabelClass
    from fassd.io.panel import Tile
    from fassd.training import Evaluation

CITYSCAPES_CLASSES = 19
NAMED_WEIGHTS = (None, "streets", "synthetic", "cityscapes", "random")
LEGEND_UP_TO = 40  # largest number of classes in a full legend; for more, it shows those that occur
OF_THE_TALK = ["fc_hardnet_70", "fassd_net", "fassd_net_l1", "fassd_net_l2"]

Data = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        metavar="CARD",
        help="A card (YAML), a shipped card's name, or a folder that holds Cityscapes "
        "(leftImg8bit/ and gtFine/) or a card.yaml.",
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder of the data, for a card that names none."),
]
Split = Annotated[str, typer.Option(metavar="NAME", help="Which part of the data.")]


# -------------------------------------------------------------------------------------------- val


@app.command()
def val(
    data: Data,
    root: Root = None,
    split: Split = "val",
    model: options.Model = None,
    weights: options.Weights = None,
    alpha: options.Alpha = None,
    encoder_name: options.EncoderName = None,
    backend: options.Backend = "auto",
    dtype: options.AnyDtype = "float32",
    calibration_: options.Calibration = None,
    device: options.Device = None,
    threads: options.Threads = None,
    scales: options.Scales = (1.0,),
    flip: options.Flip = False,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Leave this class out of mIoU and the other means; may be repeated.",
        ),
    ] = None,
    temperature: Temperature = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Only the first N pictures of the split."),
    ] = None,
    json_: options.Json = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Write confusion matrix and scores here."
        ),
    ] = None,
) -> None:
    """Score a network on labelled pictures: IoU, Dice, precision and recall of every class and
    their means, pixel accuracy.

    Every picture is scored alone and at full resolution, as the authors do; --scales and --flip
    average the probabilities of several views. Classes are matched by name if the weights know
    their names, as those of [cyan]fassd train[/] do, else by position; where a class of the card
    covers several of the network's, as CamVid's do, their probabilities are summed. An exported
    file ([cyan]-m net.onnx[/]) is scored by the same rules; if it takes a single size, pictures are
    resized to it. -o writes [cyan]confusion.csv[/] (pixels), [cyan]confusion.png[/] (shares),
    [cyan]scores.json[/] and [cyan]reliability.png[/] (how many of the labels with a given
    probability are right).

    --without leaves a class, often the background, out of the means; its pixels still count in the
    scores of the other classes. A mean is taken over the classes that have the score: recall of
    those in the truth, precision of those that were predicted, IoU and Dice of those in either.

    [cyan]--dtype int8[/] calibrates the network on pictures of the card's training split, or those
    of --calibration.

    Under [cyan]torchrun[/] the processes share the pictures; the scores stay the same.

    A picture that cannot be used is reported and the rest goes on. Exit code: 0 all done, 1 some
    pictures skipped, 2 nothing done.

    [bold]Examples[/]

    [cyan]fassd val --data cityscapes/ --weights cityscapes[/]

    [cyan]fassd val --data camvid --root CamVid/ -w best.safetensors -o out[/]

    [cyan]fassd val --data polyps/ -w best.safetensors --split test --without background[/]

    [cyan]fassd val --data cityscapes/ --model net.onnx --backend openvino[/]

    [cyan]fassd val --data cityscapes/ -w best.safetensors --temperature fit[/]

    [cyan]torchrun --nproc-per-node 4 -m fassd val --data cityscapes/ -w cityscapes[/]
    """
    from fassd.data import SegmentationDataset, load_card
    from fassd.distributed import is_main, process_group

    if output is not None:  # a wrong output path is reported before the work, not after it
        check_folder(output)
    check_file(json_)
    set_threads(threads)
    dataset = SegmentationDataset(load_card(data, root), split)
    indices = range(len(dataset))[:limit]
    with process_group(device_for(model, device)) as home:
        chosen = _network_for(dataset.card, model, weights, alpha, encoder_name)
        pictures = _calibrating(calibration_, dtype, dataset.card, chosen)
        network = _segmenter(chosen, backend, dtype, home, pictures).model
        calibration = calibration_of(network, chosen, temperature)
        _check_classes(network, dataset.card, chosen)
        if is_main():
            tell_weights(chosen.weights, network)
        evaluation = _evaluated(network, dataset, indices, scales, flip, without or [], calibration)
        if not is_main():
            return
        keep_fitted(chosen, calibration)
        settings = {
            "data": dataset.card.name,
            "split": split,
            "model": chosen.model,
            "weights": weights_of(chosen.weights, network),
            "alpha": chosen.alpha,
            "dtype": dtype,
            "backend": backend,
            "scales": list(scales),
            "flip": flip,
            "without": without or [],
            "limit": limit,
        }
        exported = getattr(network, "metadata", None)
        if exported is not None:  # the file states its own settings
            told = {"alpha": exported.alpha, "dtype": exported.dtype, "exported": exported.variant}
            settings.update(told)
        _report(evaluation, settings, home, json_, output)
    if evaluation.skipped:
        raise typer.Exit(1)


def _network_for(
    card: Card,
    model: str | None,
    weights: str | None,
    alpha: int | None,
    encoder_name: str | None = None,
) -> Network:
    """The network of the options; with Cityscapes' classes if the card covers those of a list."""
    from fassd.models.checkpoint import classes_in
    from fassd.models.zoo import is_weights_file

    count = card.num_classes
    file = model if is_weights_file(model) else weights
    if card.covers and file in NAMED_WEIGHTS:
        count = CITYSCAPES_CLASSES
    elif card.covers and file is not None:  # it may not name its classes, but has a head
        count = classes_in(file) or count
    return pick_network(model, weights, None, alpha, encoder_name, default_classes=count)


def _check_classes(network: torch.nn.Module, card: Card, chosen: Network) -> Match:
    """Match the classes of a network and a card, before any picture is read.

    Raises:
        ValueError: they do not match; the message names the file of weights.
    """
    from fassd.evaluation.evaluate import matched

    try:
        return matched(network, card)
    except ValueError as error:
        raise ValueError(f"{chosen.weights or chosen.model}: {error}") from error


def _evaluated(
    network: torch.nn.Module,
    dataset: SegmentationDataset,
    indices: range,
    scales: Sequence[float],
    flip: bool,
    without: Sequence[str],
    calibration: Calibration | None,
) -> Evaluation:
    """Evaluate with a progress bar for the main process's own pictures."""
    from fassd.distributed import rank, world_size
    from fassd.training import evaluate

    with progress(shown=rank() == 0) as bar:
        task = bar.add_task("evaluating", total=len(indices[rank() :: world_size()]))
        return evaluate(
            network,
            dataset,
            indices=indices,
            scales=scales,
            flip=flip,
            without=without,
            calibration=calibration,
            on_sample=lambda *_: bar.advance(task),
            on_bad=lambda _: bar.advance(task),
        )


def _report(
    evaluation: Evaluation,
    settings: dict[str, Any],
    device: torch.device,
    json_: Path | None,
    output: Path | None,
) -> None:
    """Print the result, and write the requested files."""
    from fassd.bench.machine import environment
    from fassd.evaluation.confusion import write_csv, write_heat_map

    for reason in evaluation.skipped:
        say(f"[red]skipped:[/] {escape_lines(reason)}")
    console().print(evaluation)
    figures = {"settings": settings, **evaluation.to_json(), "environment": environment(device)}
    for path in (json_, output and output / "scores.json"):
        if path is not None:
            write_json(path, figures)
    if output is not None:
        matrix, names = evaluation.matrix.numpy(), evaluation.class_names
        write_csv(output / "confusion.csv", matrix, names)
        title = "{model} on {data} {split}".format_map(settings)
        try:
            write_heat_map(output / "confusion.png", matrix, names, title)
            if evaluation.calibration is not None:
                evaluation.calibration.draw(output / "reliability.png", title)
        except ImportError as error:
            say(f"[yellow]warning:[/] no confusion.png, no reliability.png: {escape(str(error))}")
        say(f"confusion matrix: {escape(str(output))}")


# ---------------------------------------------------------------------------------------- compare


@app.command()
def compare(
    data: Data,
    index: Annotated[
        Sequence[int],
        typer.Option(
            "--index",
            "-i",
            parser=numbers(int, "whole number"),
            metavar="N,N,...",
            help="Which pictures, counted from 0.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="File to write.")],
    root: Root = None,
    split: Split = "val",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME[=WEIGHTS]",
            help="Network of a column; may be repeated. WEIGHTS is what --weights of "
            "[cyan]fassd val[/] takes; a file of [cyan]fassd train[/] needs no NAME=. "
            f"Default: {', '.join(OF_THE_TALK)}.",
        ),
    ] = None,
    weights_dir: Annotated[
        Path | None,
        typer.Option(
            "--weights-dir",
            metavar="FOLDER",
            help="Where NAME.safetensors lies, for models without =WEIGHTS.",
        ),
    ] = None,
    alpha: options.Alpha = None,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    threads: options.Threads = None,
    width: Annotated[
        int, typer.Option(min=32, max=4096, metavar="PIXELS", help="Width of a column.")
    ] = 640,
) -> None:
    """Put networks side by side in one picture: input, ground truth, and what each makes of it.

    [bold]Examples[/]

    [cyan]fassd compare --data cityscapes/ -i 0,5,7 -o panel.png --weights-dir runs/best[/]

    [cyan]fassd compare --data streets/ -i 3 -o panel.png -m fassd_net_l2=cityscapes[/]
    """
    from fassd.data import SegmentationDataset, load_card
    from fassd.io.images import write_image
    from fassd.io.panel import draw_panel
    from fassd.models.device import pick_device

    check_png("--output", output)
    set_threads(threads)
    card = load_card(data, root)
    networks = _networks(model or OF_THE_TALK, weights_dir, card, alpha)
    dataset = SegmentationDataset(card, split)
    _check_indices(index, len(dataset), split)
    home = pick_device(device)
    segmenters = [_segmenter(chosen, backend, dtype, home) for chosen in networks]
    matches = [
        _check_classes(each.model, card, chosen)
        for each, chosen in zip(segmenters, networks, strict=True)
    ]
    for weights in dict.fromkeys(chosen.weights for chosen in networks if chosen.weights):
        tell_weights(weights)
    untrained = [chosen.model for chosen in networks if chosen.weights is None]
    if untrained:
        say(
            f"[yellow]random weights: {escape(', '.join(untrained))}; their labels are meaningless "
            "until trained weights are given (--weights-dir, or --model NAME=WEIGHTS)[/]"
        )

    rows, occurring = [], set()
    with progress() as bar:
        for number in bar.track(index, description="comparing"):
            row, classes = _row(dataset[number], segmenters, matches, dataset.card)
            rows.append(row)
            occurring |= classes
    titles = ["Input", "Ground truth", *_titles(networks)]
    write_image(output, draw_panel(titles, rows, _legend(dataset.card, occurring), width))
    say(f"panel: {escape(str(output))}")


def _check_indices(indices: Sequence[int], length: int, split: str) -> None:
    for index in indices:
        if not 0 <= index < length:
            raise ValueError(
                f"--index must be from 0 to {length - 1}, since the split {split!r} has {length} "
                f"pictures, got {index}"
            )


def _networks(
    models: list[str], weights_dir: Path | None, card: Card, alpha: int | None
) -> list[Network]:
    """Read NAME and NAME=WEIGHTS."""
    from fassd.models.zoo import is_weights_file

    networks = []
    for model in models:
        name, weights = split_model(model)
        if weights is None and weights_dir is not None and not is_weights_file(name):
            weights = str(weights_dir / f"{name}.safetensors")
        networks.append(_network_for(card, name, weights, alpha))
    return networks


def _titles(networks: list[Network]) -> list[str]:
    """Headings of the columns; with the weights if a network occurs twice."""
    from fassd.models.variants import get_variant

    titles = [get_variant(chosen.model).title for chosen in networks]
    return [
        f"{title} ({Path(chosen.weights or 'random').stem})" if titles.count(title) > 1 else title
        for title, chosen in zip(titles, networks, strict=True)
    ]


def _row(
    sample: Sample,
    segmenters: list[Segmenter],
    matches: list[Match],
    card: Card,
) -> tuple[list[Tile], set[int]]:
    """One scene's tiles, and the labels that occur in them."""
    import numpy as np

    from fassd.evaluation.evaluate import label_by_groups
    from fassd.io.bands import shown
    from fassd.io.palette import colorize
    from fassd.io.panel import Tile

    truth = Tile(colorize(sample.labels, card.palette))
    seen = sample.image if card.bands is None else shown(sample.image)
    tiles = [Tile(seen, sample.path.stem), truth]
    occurring = set(np.unique(sample.labels).tolist())
    for segmenter, (labels_of, members) in zip(segmenters, matches, strict=True):
        labels: Any = (
            segmenter.predict(sample.image)
            if members is None
            else label_by_groups(segmenter.model, sample, members)
        )
        if labels_of is not None:
            labels = np.array(labels_of, np.uint8)[labels]
        tiles.append(Tile(colorize(labels, card.palette), _own_miou(sample, labels, card)))
        occurring |= set(np.unique(labels).tolist())
    return tiles, occurring


def _own_miou(sample: Sample, predicted: Any, card: Card) -> str:
    from fassd.io.palette import IGNORE
    from fassd.training import ConfusionMatrix

    if (sample.labels == IGNORE).all():
        return "nothing labelled"
    matrix = ConfusionMatrix(card.num_classes)
    matrix.update(sample.labels, predicted)
    return f"mIoU {100 * matrix.scores().miou:.1f}%"


def _legend(card: Card, occurring: set[int]) -> list[LabelClass]:
    from fassd.io.palette import IGNORE, LabelClass

    everything = card.num_classes <= LEGEND_UP_TO
    legend = [info for i, info in enumerate(card.classes) if everything or i in occurring]
    return [*legend, LabelClass("not labelled", (0, 0, 0))] if IGNORE in occurring else legend


# ----------------------------------------------------------------------------------------- helpers


def _calibrating(
    sources: Sequence[str] | None, dtype: str, card: Card, network: Network
) -> Iterable[ImageLike] | None:
    """Pictures for int8: those of --calibration, or else some of the card's training split."""
    from fassd.cli.predict import calibrating
    from fassd.data import SegmentationDataset
    from fassd.export import is_exported

    if sources or dtype != "int8" or is_exported(network.model):
        return calibrating(sources, dtype)
    training = SegmentationDataset(card, "train")
    return (training[index].image for index in options.spread(range(len(training))))


def _segmenter(
    network: Network,
    backend: str,
    dtype: str,
    device: torch.device,
    calibration: Iterable[ImageLike] | None = None,
) -> Segmenter:
    from fassd.cli.predict import build_segmenter

    with warnings.catch_warnings():
        if backend == "auto":  # a baseline may have nothing to accelerate
            warnings.filterwarnings("ignore", message=".*nothing was swapped")
        return build_segmenter(network, backend, dtype, device, calibration=calibration)
