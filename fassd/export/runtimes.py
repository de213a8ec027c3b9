"""Runtimes for exported files: each takes an array and returns one."""

from __future__ import annotations

import importlib.util
import logging
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fassd.export.metadata import KEY, ExportError, Metadata
from fassd.export.openvino_file import openvino_core
from fassd.export.program import EXTRA_FILE
from fassd.export.tensorrt_file import sidecar
from fassd.io.packages import need, quiet
from fassd.io.untrusted import read_json, read_text, shortened, shown
from fassd.models.tensor_files import CheckpointError, check_weights, damaged_record

Array = npt.NDArray[Any]
Run = Callable[[Array], Array]
Opened = tuple[Metadata, Run]

MOST_JSON = 1 << 24
"""Characters of metadata."""


def onnx_runtime(path: Path, device: torch.device) -> Opened:
    onnxruntime = need("onnxruntime")
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise ExportError(f"this ONNX Runtime has no {provider} (pip install onnxruntime-gpu)")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # its own kinds of errors
        raise ExportError(f"ONNX Runtime cannot read it: {first_line(error)}") from error
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    metadata = checked(text, "onnx")
    return metadata, lambda image: together(session.run(None, {"image": image}))


def openvino(path: Path, device: torch.device) -> Opened:
    """OpenVINO on the CPU; float32 and int8 files in float32, where the default is bfloat16."""
    core = openvino_core()
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and not weights.is_file():
        raise ExportError(f"its weights {weights.name} are missing")
    try:
        model = core.read_model(str(path))
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot read it: {first_line(error)}") from error
    places = ([KEY], ["framework", KEY])  # for its own files, for ONNX files
    text = next((model.get_rt_info(p).astype(str) for p in places if model.has_rt_info(p)), None)
    metadata = checked(text, "openvino", "onnx")
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f16" if metadata.dtype == "float16" else "f32",
    }
    if device.type != "cpu":
        raise ExportError("OpenVINO runs on the CPU here: device must be cpu")
    try:
        request = core.compile_model(model, "CPU", settings).create_infer_request()
    except RuntimeError:  # the CPU has no half precision
        settings["INFERENCE_PRECISION_HINT"] = "f32"
        request = core.compile_model(model, "CPU", settings).create_infer_request()
    alone = threading.Lock()  # a request has one input and one result

    def run(image: Array) -> Array:
        with alone:
            found = request.infer([image])
            return together([np.array(found[index]) for index, _ in enumerate(metadata.outputs)])

    return metadata, run


def torch_file(path: Path, device: torch.device) -> Opened:
    """A torch.export program or an AOTInductor package, on the device that it was exported for."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := damaged_record(archive)) is not None:
                raise ExportError(f"is damaged: {damaged} in it does not match its checksum")
            names = {Path(name).name: name for name in archive.namelist()}
            compiled = next((n for n in names if n.endswith("_metadata.json")), None)
            if EXTRA_FILE in names:
                metadata = checked(_member(archive, names[EXTRA_FILE]), "torch")
            elif compiled is not None:
                record = read_json(_member(archive, names[compiled]))
                metadata = checked(record.get(KEY) if isinstance(record, dict) else None, "aoti")
            else:
                raise ExportError(NOT_OURS)
    except ExportError:
        raise
    # Errors of decompression, of text, and of zip features that Python does not support.
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError) as error:
        reason = shortened(str(error))
        raise ExportError(f"is not a .pt2 file, or a damaged one ({reason})") from error
    if device.type != "cpu":
        raise ExportError("its program is made for the CPU: device must be cpu")
    if metadata.backend is not None:
        from fassd_kernels.ops import CPU_MISSING  # registers the operators

        if CPU_MISSING is not None:
            raise ExportError(
                f"it calls the operators of fassd_kernels ({metadata.backend}), which are missing "
                f"here ({CPU_MISSING}); export with --backend reference for a file that needs none"
            )
    call: Any
    try:
        if metadata.format == "aoti":
            # Without the loader's warning that it was made for less than this CPU has.
            with quiet(logging.ERROR, "torch.export.pt2_archive._package"):
                call = torch._inductor.aoti_load_package(str(path))
        else:
            program = torch.export.load(str(path))
            dtypes = {key: value.dtype for key, value in program.state_dict.items()}
            check_weights("it", program.state_dict, dtypes)
            call = program.module()
    except CheckpointError as error:
        raise ExportError(str(error)) from error
    except Exception as error:  # errors of deserialisation or the dynamic linker
        raise ExportError(f"PyTorch cannot load it: {first_line(error)}") from error

    def run(image: Array) -> Array:
        # Autocast would convert the operators' weights, but not their packed copies.
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            found = call(torch.from_numpy(image))
            several = found if isinstance(found, (list, tuple)) else [found]
            return together([each.numpy() for each in several])

    return metadata, run


def _member(archive: zipfile.ZipFile, name: str) -> str:
    """The text of a file in an archive, which may be far larger than the archive."""
    if (size := archive.getinfo(name).file_size) > MOST_JSON:
        raise ValueError(f"{shown(name)} has {size:,} bytes, at most {MOST_JSON:,} are read")
    return archive.read(name).decode()


def tensorrt(path: Path, device: torch.device) -> Opened:
    """An engine on the GPU. It has not been run on a GPU yet."""
    import tensorrt as trt

    if device.type != "cuda":
        raise ExportError("TensorRT runs on a GPU: device must be cuda")
    beside = sidecar(path)
    if not beside.is_file():
        raise ExportError(f"its metadata {beside.name} is missing")
    try:
        text = read_text(beside, MOST_JSON)
    except ValueError as error:
        raise ExportError(f"its metadata {beside.name} {error}") from error
    metadata = checked(text, "tensorrt")
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ExportError("TensorRT cannot read it: made for another GPU or version, or damaged")
    context = engine.create_execution_context()
    kind = torch.float32 if metadata.output == "logits" else torch.uint8

    alone = threading.Lock()  # a context has one input and one result

    def run(image: Array) -> Array:
        with alone, torch.cuda.device(device):
            source = torch.from_numpy(image).to(device)
            if not context.set_input_shape("image", tuple(source.shape)):
                raise ValueError("the engine was not built for this shape")
            context.set_tensor_address("image", source.data_ptr())
            results = []
            for name in metadata.outputs:
                shape = tuple(context.get_tensor_shape(name))
                results.append(torch.empty(shape, dtype=kind, device=device))
                context.set_tensor_address(name, results[-1].data_ptr())
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise ValueError("TensorRT failed")
            return together([each.cpu().numpy() for each in results])

    return metadata, run


def together(results: Sequence[Array]) -> Array:
    """The only result, or several (N, H, W) as (N, several, H, W)."""
    return results[0] if len(results) == 1 else np.stack(results, 1)


NOT_OURS = "is not a file of `fassd export`: it has no metadata named fassd"

RUNTIMES: dict[str, dict[str, Callable[[Path, torch.device], Opened]]] = {
    ".onnx": {"onnxruntime": onnx_runtime, "openvino": openvino},
    ".pt2": {"torch": torch_file},
    ".xml": {"openvino": openvino},
    ".engine": {"tensorrt": tensorrt},
    ".plan": {"tensorrt": tensorrt},
}
"""Runtimes for files of each ending; the first is the default."""


def is_installed(runtime: str) -> bool:
    """True if the package of a runtime is installed."""
    return importlib.util.find_spec(runtime) is not None


def open_runtime(path: Path, runtime: str, device: torch.device) -> Opened:
    """Load a file.

    Args:
        path: path with an ending in `RUNTIMES`.
        runtime: runtime for the ending in `RUNTIMES`, or "auto".
        device: device to run on.

    Raises:
        FileNotFoundError: there is no such file.
        ExportError: it is damaged, not of `fassd export`, or cannot run as requested; names the
            file.
        ImportError: the runtime is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    known = RUNTIMES.get(path.suffix.lower())
    if known is None:
        raise ExportError(f"{path}: an exported file ends in {', '.join(RUNTIMES)}")
    if runtime != "auto" and runtime not in known:
        raise ExportError(
            f"{path}: backend must be auto or {' or '.join(known)} for a {path.suffix} file, "
            f"got {runtime!r}"
        )
    if path.stat().st_size == 0:
        raise ExportError(f"{path}: is empty")
    start = known[next(iter(known)) if runtime == "auto" else runtime]
    try:
        return start(path, device)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{path}: its metadata is not text ({error})") from error


def checked(text: object, *formats: str) -> Metadata:
    if not isinstance(text, str) or not text:
        raise ExportError(NOT_OURS)
    if len(text) > MOST_JSON:
        raise ExportError(f"its metadata has {len(text):,} characters, at most {MOST_JSON:,}")
    metadata = Metadata.from_json(text)
    if metadata.format not in formats:
        raise ExportError(f"its metadata is that of a file of format {metadata.format!r}")
    return metadata


def first_line(error: Exception) -> str:
    """The message of an error; OpenVINO's without the positions in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return shortened(next(iter(telling or lines), type(error).__name__), 400)
