"""`fassd export`: a network as a file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from fassd.cli.common import (
    Alpha,
    Backend,
    Classes,
    Json,
    Threads,
    Weights,
    app,
    escape,
    parse_size,
    pick_network,
    say,
    set_threads,
    tell_results,
    tell_weights,
    visible,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fassd.export import Exporter, Request, Verification
    from fassd.io.palette import LabelClass

DYNAMIC = "dynamic"
STREETS = 4  # generated pictures that a file is verified on
OTHER_SIZE = (400, 712)  # a size that a file for any size was not traced at
CALIBRATION = 64  # pictures, at most


class ExportSize(str):
    """HxW, or "dynamic"."""


def parse_export_size(text: str) -> ExportSize:
    """Read HxW or "dynamic".

    Raises:
        typer.BadParameter: it is neither.
    """
    if text != DYNAMIC:
        parse_size(text)
    return ExportSize(text)


OutputFile = Annotated[
    Path,
    typer.Option("--output-file", "-o", help="The file: NAME.onnx, .pt2, .xml or .engine."),
]
Model = Annotated[
    str | None,
    typer.Argument(
        help="Network; [cyan]fassd info[/] lists them. A file of [cyan]fassd train[/], here or "
        "as --weights, tells it.",
        metavar="[MODEL]",
        show_default=False,
    ),
]
Format = Annotated[
    Literal["onnx", "torch", "aoti", "openvino", "tensorrt"] | None,
    typer.Option("--format", "-f", help="By the file's ending, if not given; .pt2: torch."),
]
ClassCard = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A card whose classes' names and colours the file gets; without it those of the "
        "weights.",
    ),
]
InputSize = Annotated[
    ExportSize,
    typer.Option(
        parser=parse_export_size, metavar="HxW|dynamic", help="Of the input; dynamic: any."
    ),
]
ExportDtype = Annotated[
    Literal["float32", "float16", "bfloat16", "int8"],
    typer.Option("--dtype", help="What it computes in; input and output stay as they are."),
]
Output = Annotated[
    Literal["logits", "labels"],
    typer.Option(help="logits: float32 NxCxHxW; labels: uint8 NxHxW, the argmax inside."),
]
Preprocess = Annotated[
    bool,
    typer.Option(
        "--preprocess/--no-preprocess",
        help="Take uint8 RGB NxHxWx3 and normalise inside, in place of float32 BGR NxCxHxW.",
    ),
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        help=f"For int8: pictures, folders or patterns; the first {CALIBRATION}, resized.",
    ),
]
Verify = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify",
        help="Compare the file with its source before it gets its name; by default where the "
        "runtime is here.",
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        metavar="PERCENT",
        help="Labels that may differ; 0.1 in float32, 1 in 16 bits, 5 in int8.",
    ),
]
Pictures = Annotated[
    list[str] | None,
    typer.Option("--pictures", help="What to verify on; generated streets if not given."),
]


@app.command()
def export(
    output_file: OutputFile,
    model: Model = None,
    format_: Format = None,
    weights: Weights = None,
    classes: Classes = None,
    alpha: Alpha = None,
    data: ClassCard = None,
    size: InputSize = ExportSize("1024x2048"),
    batch: Annotated[int, typer.Option(min=1, help="Pictures per call.")] = 1,
    dtype: ExportDtype = "float32",
    output: Output = "logits",
    preprocess: Preprocess = False,
    backend: Backend = "auto",
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operators.")] = None,
    calibration: Calibration = None,
    verify: Verify = None,
    tolerance: Tolerance = None,
    pictures: Pictures = None,
    threads: Threads = None,
    json_: Json = None,
) -> None:
    """Write a network as a file for ONNX Runtime, PyTorch, C++, OpenVINO or TensorRT.

    [cyan]onnx[/]: checked by ONNX's own checker; float16, or int8 by ONNX Runtime's quantisation.
    [cyan]torch[/]: a torch.export program. [cyan]aoti[/]: an AOTInductor package, which C++ runs
    without Python. With --backend other than reference these two call the operators of
    fassd_kernels, which the program has to load. [cyan]openvino[/]: IR; int8 by NNCF.
    [cyan]tensorrt[/]: an engine for the GPU that is here; without TensorRT, the ONNX file and the
    trtexec line that builds it.

    The file tells what it is (network, classes, colours, normalisation, size, versions), and
    [cyan]fassd val[/], [cyan]predict[/] and [cyan]bench[/] take it as --model.

    Exit code: 0 done, 2 nothing written; a file that fails --verify is not written.

    [bold]Examples[/]

    [cyan]fassd export -w runs/paper/best.safetensors -o net.onnx --size 1024x2048[/]

    [cyan]fassd export fassd_net -o net.onnx --size dynamic --preprocess --output labels[/]

    [cyan]fassd export fassd_net_l2 -o net.onnx --dtype int8 --calibration streets/leftImg8bit/train
    --size 512x1024[/]

    [cyan]fassd export fassd_net -o net.pt2 --format aoti --preprocess --output labels[/]
    """
    from fassd.export import FORMAT_OF, Exporter, ExportError, Request, is_exported
    from fassd.io.images import check_file

    if is_exported(model):
        raise ValueError(f"MODEL must be a network's name, got the file {model}")
    check_file(output_file)
    check_file(json_)
    kind = format_ or FORMAT_OF.get(output_file.suffix)
    if kind is None:
        raise ExportError(f"{output_file}: name it .onnx, .pt2, .xml or .engine, or give --format")
    _check_suffix(output_file, kind)
    if calibration and dtype != "int8":
        raise ValueError("--calibration: only with --dtype int8")
    set_threads(threads)
    infos = _classes(data, classes)
    if model is None and weights is None:
        raise ValueError("MODEL must be a network's name, or --weights a file of fassd train")
    chosen = pick_network(model, weights, classes, alpha, default_classes=len(infos) or 19)
    request = Request(
        model=chosen.model,
        format=kind,
        weights=chosen.weights,
        num_classes=chosen.classes,
        alpha=chosen.alpha,
        size=None if size == DYNAMIC else parse_size(size),
        batch=batch,
        dtype=dtype,
        output=output,
        preprocess=preprocess,
        backend=backend,
        opset=opset,
        classes=infos,
    )
    calibrating: list[npt.NDArray[np.uint8]] = []
    if dtype == "int8":
        calibrating = _pictures(calibration, request.size, CALIBRATION, "train")
    exporter = Exporter(request)
    by_hand = kind == "tensorrt" and not _has_tensorrt()
    check = _Check(_verifies(verify, request, by_hand), pictures, tolerance)
    write = _write_for_trtexec if by_hand else _write
    verification = write(exporter, output_file, calibrating, check)
    tell_weights(chosen.weights)
    _tell(output_file, exporter, verification, json_, by_hand)


def _check_suffix(path: Path, kind: str) -> None:
    from fassd.export import SUFFIX_OF, ExportError

    if path.suffix not in SUFFIX_OF[kind]:
        endings = " or ".join(SUFFIX_OF[kind])
        raise ExportError(f"{path}: a file of the format {kind} ends in {endings}")


def _classes(card: str | None, classes: int | None) -> tuple[LabelClass, ...]:
    """Names and colours of a card's classes; none where no card is given."""
    if card is None:
        return ()
    from fassd.data.card import CARDS
    from fassd.data.cardfile import load_card

    found = tuple(load_card(card, root=CARDS).classes)  # any folder: nothing is looked for in it
    if classes not in (None, len(found)):
        raise ValueError(f"--classes {classes}: the card {card} has {len(found)} classes")
    return found


def _pictures(
    sources: list[str] | None,
    size: tuple[int, int] | None,
    count: int,
    split: str,
    least: int = 0,
) -> list[npt.NDArray[np.uint8]]:
    """At most `count` pictures at a size.

    Without sources they are generated streets of a split; of any size, they have one that was not
    traced, and the smallest, `least`.
    """
    import numpy as np
    from PIL import Image

    from fassd.io.find import find_pictures
    from fassd.io.images import read_image
    from fassd.synth import render_street

    if sources:
        results: list[Path] = []
        found = find_pictures(sources, onresult=results.append)
        tell_results(results)
        images = [read_image(picture.path) for picture in found[:count]]
        if size is None:
            return images
        height, width = size
        resampling = Image.Resampling.BILINEAR
        return [
            np.array(Image.fromarray(image).resize((width, height), resampling)) for image in images
        ]
    sizes = [size] * count if size else [OTHER_SIZE, (512, 1024), (least, least + 7)]
    return [render_street(*each, seed=i, split=split)[0] for i, each in enumerate(sizes)]


def _has_tensorrt() -> bool:
    from fassd.export.runtimes import is_installed

    return is_installed("tensorrt")


def _verifies(verify: bool | None, request: Request, by_hand: bool) -> bool:
    """Whether to verify: as it was asked, or where the runtime is here.

    Args:
        by_hand: of TensorRT, the ONNX file alone is written.

    Raises:
        ValueError: it was asked for, and means nothing.
    """
    from fassd.export.runtimes import RUNTIMES, is_installed

    rounding = request.weights is None and request.dtype != "float32"
    if rounding and verify is not False:
        reason = "random weights amplify rounding, so below float32 there is nothing to compare"
        if verify:
            raise ValueError(f"--verify: {reason}; give trained ones (--weights)")
        say(f"[yellow]not verified:[/] {reason}")
        return False
    if verify is None:
        runtime = next(iter(RUNTIMES[_suffix("onnx" if by_hand else request.format)]))
        verify = is_installed(runtime)
        if not verify:
            say(f"[yellow]not verified:[/] {runtime} is not installed here")
    return verify


def _suffix(kind: str) -> str:
    from fassd.export import SUFFIX_OF

    return SUFFIX_OF[kind][0]


class _Check(NamedTuple):
    """How to verify: whether at all, on what, and how many labels may differ, in per cent."""

    wanted: bool
    pictures: list[str] | None
    tolerance: float | None

    def __call__(self, exporter: Exporter, written: Path, path: Path) -> Verification | None:
        """Compare a file that has no name yet with its source.

        Raises:
            ExportError: they differ.
        """
        from fassd.export import ExportedNetwork, ExportError, verify

        if not self.wanted:
            return None
        least = exporter.metadata.minimum_size
        shown = _pictures(self.pictures, exporter.request.size, STREETS, "val", least)
        limit = None if self.tolerance is None else 1 - self.tolerance / 100
        network = ExportedNetwork(written)
        result = verify(network, exporter.source, shown, labels_limit=limit)
        if not result.passed:
            raise ExportError(
                f"{path} is not written, since it differs from its source: {result}; asked for "
                f"are {result.asked}"
            )
        return result


def _write(
    exporter: Exporter, path: Path, calibrating: list[npt.NDArray[np.uint8]], check: _Check
) -> Verification | None:
    """Write, verify, and only then give the file its name."""
    from fassd.export import staged

    with staged(path) as unnamed:
        exporter.write(unnamed, calibrating)
        return check(exporter, unnamed, path)


def _write_for_trtexec(
    exporter: Exporter, path: Path, calibrating: list[npt.NDArray[np.uint8]], check: _Check
) -> Verification | None:
    """Without TensorRT: the ONNX file, verified, and the engine's metadata."""
    from fassd.export import staged
    from fassd.export.tensorrt_file import sidecar

    onnx = path.with_suffix(".onnx")
    model = exporter.onnx(calibrating).SerializeToString()
    with staged(onnx) as unnamed:
        unnamed.write_bytes(model)
        sidecar(unnamed.with_name(path.name)).write_text(exporter.metadata.to_json())
        return check(exporter, unnamed, onnx)


def _tell(
    path: Path,
    exporter: Exporter,
    result: Verification | None,
    json_: Path | None,
    by_hand: bool,
) -> None:
    """Say what was written and how near it is; the same as JSON."""
    import json

    from fassd.export.tensorrt_file import sidecar, trtexec
    from fassd.io.images import replacing

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
        with replacing(json_) as file:
            file.write(json.dumps(record, indent=1).encode())
