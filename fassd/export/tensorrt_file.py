"""TensorRT: an engine for this machine's GPU, from the ONNX model; its metadata is beside it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fassd.export.metadata import ExportError, Metadata

# Heights and widths of an engine for any size: smallest, best, largest.
PROFILE = ((256, 512), (1024, 2048), (2048, 4096))

PRECISION = {"float32": (), "float16": ("FP16",), "bfloat16": ("BF16",), "int8": ("INT8", "FP16")}
"""Flags of precisions that an engine may use besides float32; float32 itself is without TF32."""


def sidecar(path: Path) -> Path:
    """Path of the metadata of an engine, which cannot contain any."""
    return path.with_name(path.name + ".json")


def profile_of(metadata: Metadata) -> list[tuple[int, ...]] | None:
    """Shapes of the input for the sizes of `PROFILE`; None if it is fixed."""
    if metadata.size is not None:
        return None
    return [metadata.shape_of(size) for size in PROFILE]


def trtexec(onnx: Path, engine: Path, metadata: Metadata) -> str:
    """The command that builds the engine on a machine with TensorRT."""
    words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={engine}"]
    words += [f"--{flag.lower()}" for flag in PRECISION[metadata.dtype]] or ["--noTF32"]
    for option, shape in zip(("min", "opt", "max"), profile_of(metadata) or (), strict=False):
        words.append(f"--{option}Shapes=image:{'x'.join(map(str, shape))}")
    return shlex.join(words)


def build_engine(
    model: bytes, dtype: str, profile: Sequence[tuple[int, ...]] | None = None
) -> bytes:
    """Build with TensorRT 10 or later; in float32 without TF32. It has not been run on a GPU yet.

    Args:
        model: ONNX model.
        dtype: permitted precision; int8 where QDQ pairs of the model say so, otherwise float16.
        profile: smallest, best and largest shape of the input, unless it is fixed.

    Raises:
        ExportError: TensorRT cannot read the model, or builds nothing.
        ImportError: TensorRT is missing.
    """
    import tensorrt as trt

    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise ExportError(f"TensorRT cannot read the network: {parser.get_error(0).desc()}")
    settings = builder.create_builder_config()
    for flag in PRECISION[dtype]:
        settings.set_flag(getattr(trt.BuilderFlag, flag))
    if not PRECISION[dtype]:
        settings.clear_flag(trt.BuilderFlag.TF32)
    if profile is not None:
        range_ = builder.create_optimization_profile()
        range_.set_shape(network.get_input(0).name, *profile)
        settings.add_optimization_profile(range_)
    plan: Any = builder.build_serialized_network(network, settings)
    if plan is None:
        raise ExportError("TensorRT built no engine")
    return bytes(plan)
