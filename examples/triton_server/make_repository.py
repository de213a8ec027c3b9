"""Makes a model repository of Triton Inference Server from an ONNX file of `fassd export`.

    fassd export fassd_net -o net.onnx --size 512x1024 --preprocess --output labels
    python examples/triton_server/make_repository.py net.onnx models --name streets
    docker run --rm -p 8000:8000 -v $PWD/models:/models nvcr.io/nvidia/tritonserver:YY.MM-py3 \
        tritonserver --model-repository /models

writes

    models/streets/config.pbtxt      inputs and outputs, and how the file describes itself
    models/streets/1/model.onnx

The classes, their colours and the normalisation are the parameter "fassd" of the model's
configuration (``GET /v2/models/streets/config``), in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fassd.export import ExportedNetwork, ExportError, Metadata


def shapes(data: Metadata) -> tuple[list[int], list[int]]:
    """Dimensions of the input and of each output; -1 where any size will do."""
    height, width = data.size or (-1, -1)
    if data.output == "logits":
        return list(data.input_shape), [data.batch, data.num_classes, height, width]
    return list(data.input_shape), [data.batch, height, width]


def tensor(name: str, kind: str, dims: Sequence[int]) -> str:
    return f'  {{ name: "{name}" data_type: {kind} dims: {list(dims)} }}'


def config(name: str, data: Metadata) -> str:
    """The text of config.pbtxt.

    Args:
        name: name of the model and of its folder.
        data: metadata of the file.
    """
    taken, given = shapes(data)
    bytes_or_floats = {True: "TYPE_UINT8", False: "TYPE_FP32"}
    outputs = [
        tensor(each, bytes_or_floats[data.output != "logits"], given) for each in data.outputs
    ]
    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "onnxruntime"',
            "# The file has its own batch, which is the first of the dimensions below.",
            "max_batch_size: 0",
            "input [",
            tensor("image", bytes_or_floats[data.takes_pictures], taken),
            "]",
            "output [",
            ",\n".join(outputs),
            "]",
            f'parameters {{ key: "fassd" value {{ string_value: {json.dumps(data.to_json())} }} }}',
            "",
        ]
    )


def make(file: Path, repository: Path, name: str) -> Path:
    """Write a model into a repository; its folder.

    Raises:
        ExportError, FileNotFoundError: no ONNX file of `fassd export`, or one that does not load.
        FileExistsError: the repository has a model of that name.
        ValueError: a name that is none.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise ValueError(f"name must be of letters, digits, _, . and -, got {name!r}")
    if file.suffix != ".onnx":
        raise ExportError(f"{file}: must be an .onnx file")
    data = ExportedNetwork(file, "onnxruntime").metadata
    folder = repository / name
    if folder.exists():
        raise FileExistsError(f"{folder} is there: another --name, or remove it")
    repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=repository) as hidden:
        whole = Path(hidden) / name  # a server that looks meanwhile sees all of it, or nothing
        (whole / "1").mkdir(parents=True)
        shutil.copyfile(file, whole / "1" / "model.onnx")
        (whole / "config.pbtxt").write_text(config(name, data))
        os.rename(whole, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="net.onnx")
    parser.add_argument("repository", type=Path, help="folder of the repository")
    parser.add_argument("--name", default="fassd", help="of the model")
    given = parser.parse_args()
    try:
        print(make(given.file, given.repository, given.name))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
