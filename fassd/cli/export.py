"""`fassd export`: a network as a file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from fassd.cli import options
from fassd.cli.common import app, pick_network, set_threads, tell_weights, terminable
from fassd.cli.options import FULL_SIZE, Size, parse_size
from fassd.cli.terminal import escape, say, tell_results, visible, write_json
from fassd.io.files import check_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fassd.export import Exporter, Request, Verification
    from fassd.io.palette import LabelClass

Calibrating: TypeAlias = "tuple[list[npt.NDArray[np.uint8]], str]"
"""Pictures for int8, and the name of what they come from."""

STREETS = 4  # number of generated pictures on which a file is verified
OTHER_SIZE = (400, 712)  # a size different from the one traced for any size


def parse_any_size(text: str | Size) -> Size | None:
    """Read HxW, or "dynamic", which is None.

    Raises:
        typer.BadParameter: it is neither.
    """
    return None if text == "dynamic" else parse_size(text)


OutputFile = Annotated[
    Path,
    typer.Option(
        "--output-file", "-o", metavar="FILE", help="NAME.onnx, NAME.pt2, NAME.xml or NAME.engine."
    ),
]
Model = Annotated[
    str | None,
    typer.Argument(
        help="Network, one of [cyan]fassd info[/], or a file of [cyan]fassd train[/]; not needed "
        "with a --weights file that names its network.",
        metavar="MODEL",
        show_default=False,
    ),
]
Format = Annotated[
    Literal["onnx", "torch", "aoti", "openvino", "tensorrt"] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="NAME",
        show_default="by the file's ending; torch for .pt2",
        help="onnx, torch, aoti, openvino or tensorrt.",
    ),
]
ClassCard = Annotated[
    str | None,
    typer.Option(
        metavar="CARD",
        show_default="those of the weights",
        help="Card whose names and colours of classes the file gets.",
    ),
]
InputSize = Annotated[
    Size | None,
    typer.Option(
        parser=parse_any_size,
        metavar="HxW",
        show_default=str(FULL_SIZE),
        help="Size of the input, or [cyan]dynamic[/] for any.",
    ),
]
ExportDtype = Annotated[
    Literal["float32", "float16", "bfloat16", "int8"],
    typer.Option(
        metavar="DTYPE",
        help="Precision inside: float32, float16, bfloat16 or int8. Input and output stay as they "
        "are.",
    ),
]
Output = Annotated[
    Literal["logits", "labels", "labels+confidence"],
    typer.Option(
        metavar="KIND",
        help="[cyan]logits[/]: float32 NxCxHxW; [cyan]labels[/]: uint8 NxHxW, with the argmax "
        "inside; [cyan]labels+confidence[/]: a second output, uint8 NxHxW, says how certain they "
        "are, 255 for certain.",
    ),
]
Confidence = Annotated[
    Literal["probability", "margin", "entropy"] | None,
    typer.Option(
        metavar="KIND",
        show_default="margin",
        help="Second output of labels+confidence: probability, margin or entropy, as in "
        "[cyan]fassd predict[/].",
    ),
]
Preprocess = Annotated[
    bool,
    typer.Option(
        "--preprocess",
        help="Take uint8 RGB NxHxWx3 and normalise it inside, in place of normalised float32 "
        "NxCxHxW (BGR; RGB for encoders from timm).",
    ),
]
Verify = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify",
        show_default="where the runtime is installed",
        help="Compare the file with its source before it gets its name.",
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        metavar="PERCENT",
        show_default="0.1 in float32, 1 in 16 bits, 5 in int8",
        help="Labels that may differ.",
    ),
]
Pictures = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE",
        show_default="generated streets",
        help="Pictures to verify with. May be repeated.",
    ),
]


@app.command()
def export(
    output_file: OutputFile,
    model: Model = None,
    format_: Format = None,
    weights: options.Weights = None,
    classes: options.Classes = None,
    alpha: options.Alpha = None,
    encoder_name: options.EncoderName = None,
    data: ClassCard = None,
    size: InputSize = FULL_SIZE,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures per call.")] = 1,
    dtype: ExportDtype = "float32",
    output: Output = "logits",
    confidence: Confidence = None,
    preprocess: Preprocess = False,
    backend: options.Backend = "auto",
    opset: Annotated[
        int | None, typer.Option(metavar="N", help="Version of ONNX's operators.")
    ] = None,
    calibration: options.Calibration = None,
    verify: Verify = None,
    tolerance: Tolerance = None,
    pictures: Pictures = None,
    threads: options.Threads = None,
    json_: options.Json = None,
) -> None:
    """Write a network as a file for ONNX Runtime, PyTorch, C++, OpenVINO or TensorRT.

    Formats: [cyan]onnx[/], checked by ONNX's own checker, also in float16, or in int8 through ONNX
    Runtime's quantisation. [cyan]torch[/], a torch.export program. [cyan]aoti[/], an AOTInductor
    package, which C++ runs without Python. Unless --backend is reference, these two call the
    operators of fassd_kernels, which the program has to load; in int8 they give the labels of
    [cyan]fassd predict --dtype int8[/]. [cyan]openvino[/], IR; int8 through
    NNCF. [cyan]tensorrt[/], an engine for this machine's GPU; without TensorRT, the ONNX file and
    the trtexec line that builds the engine.

    The file describes itself (network, classes, colours, normalisation, size, versions), and
    [cyan]fassd val[/], [cyan]predict[/] and [cyan]bench run[/] take it as --model.

    Exit code: 0 done, 2 nothing written; a file that fails --verify is not written.

    [bold]Examples[/]

    [cyan]fassd export -w runs/paper/best.safetensors -o net.onnx --size 1024x2048[/]

    [cyan]fassd export fassd_net -o net.onnx --size dynamic --preprocess --output labels[/]

    [cyan]fassd export fassd_net_l2 -o net.onnx --dtype int8 --calibration photos/[/]

    [cyan]fassd export fassd_net -o net.pt2 --format aoti --preprocess --output labels[/]
    """
    from fassd.export import Exporter, Request, is_exported, staged

    if is_exported(model):
        raise ValueError(f"MODEL must be a network's name, got the file {model}")
    check_file(output_file)
    check_file(json_)
    kind = _kind(output_file, format_)
    if calibration and dtype != "int8":
        raise ValueError("--calibration works only with --dtype int8")
    if confidence and output != "labels+confidence":
        raise ValueError("--confidence works only with --output labels+confidence")
    set_threads(threads)
    infos = _classes(data, classes)
    if model is None and weights is None:
        raise ValueError(
            "which network? Give its name as MODEL, or a file of fassd train as --weights"
        )
    count = len(infos) or 19
    chosen = pick_network(model, weights, classes, alpha, encoder_name, default_classes=count)
    request = Request(
        model=chosen.model,
        format=kind,
        weights=chosen.weights,
        num_classes=chosen.classes,
        alpha=chosen.alpha,
        size=size,
        batch=batch,
        dtype=dtype,
        output=output,
        measure=confidence or "margin",
        preprocess=preprocess,
        backend=backend,
        opset=opset,
        classes=infos,
    )
    exporter = Exporter(request)
    bands = exporter.metadata.preprocessing.bands
    calibrating = _calibrating(calibration, size, bands) if dtype == "int8" else ([], "")
    by_hand = kind == "tensorrt" and not _has_tensorrt()
    wanted = _verifies(verify, request, by_hand)
    target = output_file.with_suffix(".onnx") if by_hand else output_file
    verification = None
    with terminable(), staged(target) as unnamed:  # a file that fails gets no name
        if by_hand:
            _write_for_trtexec(exporter, unnamed, output_file.name, calibrating)
        else:
            exporter.write(unnamed, *calibrating)
        if wanted:
            verification = _verified(exporter, unnamed, target, pictures, tolerance)
    tell_weights(chosen.weights)
    _tell(output_file, exporter, verification, json_, by_hand)


def _kind(file: Path, asked: str | None) -> str:
    """The format of a file, by its ending unless it is given."""
    from fassd.export import FORMAT_OF, SUFFIX_OF, ExportError

    kind = asked or FORMAT_OF.get(file.suffix)
    if kind is None:
        raise ExportError(f"{file}: end its name in .onnx, .pt2, .xml or .engine, or give --format")
    if file.suffix not in SUFFIX_OF[kind]:
        endings = " or ".join(SUFFIX_OF[kind])
        raise ExportError(f"{file}: a file of the format {kind} ends in {endings}")
    return kind


def _classes(card: str | None, classes: int | None) -> tuple[LabelClass, ...]:
    """Names and colours of a card's classes; empty if no card is given."""
    if card is None:
        return ()
    from fassd.data.card import CARDS
    from fassd.data.cardfile import load_card

    found = tuple(load_card(card, root=CARDS).classes)  # any folder: no files are searched for
    if classes not in (None, len(found)):
        raise ValueError(
            f"--classes {classes}: the card {card} has {len(found)}: leave out --classes"
        )
    return found


def _pictures(
    sources: list[str] | None,
    size: tuple[int, int] | None,
    count: int,
    split: str,
    bands: int | None = None,
    least: int = 0,
) -> list[npt.NDArray[np.uint8]]:
    """At most `count` pictures at a size, in colours or with that many bands.

    Without sources they are generated streets of a split, whose colours then stand for bands; of
    any size, they have one that was not traced, and the smallest, `least`.
    """
    import numpy as np

    from fassd.io.bands import read_picture
    from fassd.io.find import find_pictures
    from fassd.io.images import resized
    from fassd.synth import render_street

    if sources:
        results: list[Path] = []
        found = find_pictures(sources, onresult=results.append)
        tell_results(results)
        images = [read_picture(picture.path, bands) for picture in options.spread(found, count)]
        return [resized(image, size or image.shape[:2]) for image in images]
    sizes = [size] * count if size else [OTHER_SIZE, (512, 1024), (least, least + 7)]
    streets = [render_street(*each, seed=i, split=split)[0] for i, each in enumerate(sizes)]
    return streets if bands is None else [each[..., np.arange(bands) % 3] for each in streets]


def _calibrating(sources: list[str] | None, size: Size | None, bands: int | None) -> Calibrating:
    """Pictures for int8, at a size or else their own, and the name of what they come from."""
    count = options.CALIBRATION
    if sources:
        names = ", ".join(Path(source).absolute().name or source for source in sources)
        return _pictures(sources, size, count, "train", bands), names
    say(
        f"[yellow]calibrated on {count} generated streets:[/] your own pictures are better "
        "(--calibration)"
    )
    return _pictures(None, size, count, "train", bands), "generated streets"


def _has_tensorrt() -> bool:
    from fassd.export.runtimes import is_installed

    return is_installed("tensorrt")


def _verifies(verify: bool | None, request: Request, by_hand: bool) -> bool:
    """True if the file is to be verified: as requested, or if the runtime is installed.

    Args:
        by_hand: True if, for TensorRT, only the ONNX file is written.

    Raises:
        ValueError: verification was requested, but is meaningless.
    """
    from fassd.export import SUFFIX_OF
    from fassd.export.runtimes import RUNTIMES, is_installed

    rounding = request.weights is None and request.dtype != "float32"
    if rounding and verify is not False:
        reason = "random weights amplify rounding, so below float32 there is nothing to compare"
        if verify:
            raise ValueError(f"--verify: {reason}; give trained ones (--weights)")
        say(f"[yellow]not verified:[/] {reason}")
        return False
    if verify is None:
        suffix = SUFFIX_OF["onnx" if by_hand else request.format][0]
        runtime = next(iter(RUNTIMES[suffix]))
        verify = is_installed(runtime)
        if not verify:
            say(f"[yellow]not verified:[/] {runtime} is not installed here")
    return verify


def _write_for_trtexec(
    exporter: Exporter, onnx: Path, engine: str, calibrating: Calibrating
) -> None:
    """Write the ONNX file, and the metadata of the future engine."""
    from fassd.export.tensorrt_file import sidecar

    onnx.write_bytes(exporter.onnx(*calibrating).SerializeToString())
    sidecar(onnx.with_name(engine)).write_text(exporter.metadata.to_json())


def _verified(
    exporter: Exporter,
    written: Path,
    path: Path,
    pictures: list[str] | None,
    tolerance: float | None,
) -> Verification:
    """Compare a file that does not have its name yet with its source.

    Args:
        path: path that it will have.
        pictures: pictures to compare on.
        tolerance: per cent of the labels that may differ.

    Raises:
        ExportError: they differ.
    """
    from fassd.export import ExportedNetwork, ExportError, verify

    data = exporter.metadata
    bands, least = data.preprocessing.bands, data.minimum_size
    shown = _pictures(pictures, exporter.request.size, STREETS, "val", bands, least)
    limit = None if tolerance is None else 1 - tolerance / 100
    result = verify(ExportedNetwork(written), exporter.source, shown, labels_limit=limit)
    if not result.passed:
        raise ExportError(
            f"{path} is not written, since it differs from its source: {result}; asked for "
            f"are {result.asked}"
        )
    return result


def _tell(
    path: Path,
    exporter: Exporter,
    result: Verification | None,
    json_: Path | None,
    by_hand: bool,
) -> None:
    """Print what was written and its agreement; the same as JSON."""
    import json

    from fassd.export.tensorrt_file import sidecar, trtexec

    metadata, parts = exporter.metadata, [path]
    if by_hand:
        parts = [path.with_suffix(".onnx"), sidecar(path)]
    elif metadata.format == "openvino":
        parts = [path, path.with_suffix(".bin")]
    total = sum(part.stat().st_size for part in parts)
    if result is not None:
        say(f"verified: {result}")
    if metadata.backend is not None:
        say(f"it calls the operators of fassd_kernels ({metadata.backend}); load them first")
    say(f"written: {escape(', '.join(map(str, parts)))} ({total / 2**20:.1f} MiB)")
    if by_hand:
        say("TensorRT is not here; where it is, this builds the engine:")
        print(visible(trtexec(parts[0], path, metadata)))
    if json_ is not None:
        record: dict[str, Any] = {
            "files": [str(part) for part in parts],
            "bytes": total,
            "metadata": json.loads(metadata.to_json()),
            "verification": None if result is None else result.to_json(),
        }
        write_json(json_, record)
