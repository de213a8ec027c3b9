"""Reading files of tensors that may be damaged or malicious.

Nothing in a file is ever executed: pickles go through PyTorch's restricted unpickler with a fixed
list of further names: the NumPy scalars that the authors' files carry, and arguments of training
scripts, whose contents are dropped. Before that, files that would take more memory than they hold,
or crash the interpreter, are detected and refused. Checksums are verified where a file has them:
those of zip archives, which PyTorch does not verify, and the project's own in .safetensors.
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes that weights may have."""

CHECKSUMS = "fassd_crc32"
"""Key in a .safetensors file's metadata: JSON, CRC-32 by tensor; "" for the other metadata."""

MOST_INFLATION = 4
"""Largest ratio of an archive's content to its size; PyTorch does not compress at all."""

MOST_IN_TUPLE = 10_000
"""Largest number of items in a tuple, nested ones included: hashing a deep one overflows the stack.
"""

UNSAFE_CALLS = {
    "bytearray": "a bytearray",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another kind of device",
    "_rebuild_device_tensor_from_numpy": "a tensor of another kind of device",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_qtensor": "a quantised tensor",
}
"""Functions that PyTorch lets a pickle call, and that fill any amount of memory or read out of
bounds."""

CHUNK_BYTES = 1 << 20


class CheckpointError(ValueError):
    """A file is not a checkpoint, or its weights do not fit the model."""


def read_content(path: Path) -> Any:
    """Read the content of `path`: a dict of tensors for ``.safetensors``, anything for other files.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or was refused.
        OSError: the file cannot be opened.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    check_regular(path)
    with path.open("rb") as file:
        try:
            is_archive = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            _check_archive(file) if is_archive else _check_legacy(file)
            file.seek(0)
            with torch.serialization.safe_globals(_stand_ins()):
                return torch.load(file, map_location="cpu", weights_only=True)
        except _RefusedError as error:
            raise CheckpointError(f"{path} {error}") from None
        # Damaged files make the readers raise almost anything.
        except Exception as error:
            # PyTorch's own text is cut short because it recommends loading without the restriction.
            refused = re.search(r"GLOBAL ([\w.]+)", str(error))
            reason = (
                f"was refused, and nothing in it executed: it names {refused[1]}, "
                "which is not on the list of what a checkpoint may name; if it holds a whole "
                "module, save its weights alone, with torch.save(model.state_dict(), ...)"
                if refused
                else "is damaged or not a checkpoint"
            )
            detail = "" if isinstance(error, UnpicklingError) else f" ({error!r:.120})"
            raise CheckpointError(f"{path} {reason}{detail}") from None


def check_regular(path: Path) -> None:
    """Check that `path` is a regular file: opening a pipe, or reading a device, would block.

    Raises:
        CheckpointError: it is neither a file nor a folder.
        OSError: the path does not exist, or is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file of weights")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is a pipe, device or socket, not a file of weights")


# --- .safetensors ------------------------------------------------------------------------------


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a .safetensors file, verified if it holds our checksums.

    Raises:
        CheckpointError: the file is damaged; the message names the tensor where possible.
        OSError: the file cannot be opened.
    """
    check_regular(path)
    with path.open("rb"):  # a file that cannot be opened raises OSError, not CheckpointError
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        written = dict(json.loads(metadata[CHECKSUMS])) if CHECKSUMS in metadata else None
    except Exception as error:  # SafetensorError, and PyTorch's errors for unknown content
        raise CheckpointError(f"{path} is damaged or not a checkpoint ({error!r:.120})") from None
    if written is not None:
        found = _checksums(tensors, metadata)
        wrong = [key for key in {**written, **found} if written.get(key) != found.get(key)]
        if wrong:
            raise CheckpointError(
                f"{path} is damaged: {shown(wrong[0]) or 'its metadata'} does not match the "
                f"checksum in it (to change such a file, remove {CHECKSUMS} from its "
                "metadata)"
            )
    return tensors, metadata


def with_checksums(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` with checksums of `tensors` added, which `read_safetensors` verifies."""
    return {**metadata, CHECKSUMS: json.dumps(_checksums(tensors, metadata))}


def safetensors_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of a .safetensors file that `read_safetensors` can verify."""
    plain = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    return safetensors.torch.save(plain, with_checksums(plain, metadata))


def _checksums(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, int]:
    others = sorted(entry for entry in metadata.items() if entry[0] != CHECKSUMS)
    sums = {"": zlib.crc32(json.dumps(others).encode())}
    for key, value in tensors.items():
        start = zlib.crc32(f"{value.dtype} {list(value.shape)}".encode())
        values = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        sums[key] = zlib.crc32(values.numpy().data, start)
    return sums


# --- Pickles -----------------------------------------------------------------------------------


class _RefusedError(ValueError):
    """The reason why a file is refused; the caller puts the file's name before it."""


def _check_archive(file: IO[bytes]) -> None:
    """Check that a zip archive is as large as it says and undamaged, and its pickle harmless."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        total = sum(record.file_size for record in records)
        if total > MOST_INFLATION * size:
            raise _RefusedError(f"was refused: its {size} bytes unpack to {total}")
        damaged = damaged_record(archive)
        names: dict[str, str] = {}
        for record in records:
            name = record.filename.lower()  # PyTorch finds records in any case
            if name.endswith("/constants.pkl"):
                raise _RefusedError(
                    "is a TorchScript program: save its weights alone, with "
                    "torch.save(module.state_dict(), ...)"
                )
            if name.endswith("data.pkl") and record.filename != damaged:
                names |= _tensor_names(io.BytesIO(archive.read(record)))
    if len({key.lower() for key in names}) < len(names):
        raise _RefusedError("was refused: it names the same values in several ways; save it anew")
    if damaged is not None:
        what = names.get(damaged.rpartition("/")[2], damaged)
        raise _RefusedError(f"is damaged: {shown(what)} does not match its checksum")


def damaged_record(archive: zipfile.ZipFile) -> str | None:
    """Name of the first record of a zip archive that does not match its checksum, or None.

    PyTorch can write archives without checksums: then they are 0, and not compared.
    """
    for record in archive.infolist():
        if record.CRC == 0:
            del record.CRC  # otherwise zipfile would compare it
        try:
            with archive.open(record) as stream:
                while stream.read(CHUNK_BYTES):
                    pass
        except Exception:  # errors of zipfile and of the decompressors
            return record.filename
    return None


def _check_legacy(file: IO[bytes]) -> None:
    """Check that a file from before PyTorch 1.6, five pickles and the values, is harmless."""
    operations = pickletools.genops(file)
    number = next((argument for op, argument, _ in operations if op.name == "LONG1"), None)
    if number != torch.serialization.MAGIC_NUMBER:
        raise ValueError("not a file of torch.save")
    file.seek(0)
    for _ in range(5):
        _tensor_names(file)


class _Item(NamedTuple):
    """An item of a pickle's stack: a text or a tuple's items, and their number."""

    value: Any = None
    weight: int = 1


def _tensor_names(pickled: IO[bytes]) -> dict[str, str]:
    """Keys of the tensors by the name of their storage, from a pickle that is not executed.

    Raises:
        _RefusedError: the pickle would fill more memory than the file has, or nests tuples too
            deeply.
    """
    names: dict[str, str] = {}
    stack: list[_Item] = []
    marks: list[int] = []
    memo: dict[int, _Item] = {}
    argument: Any
    for op, argument, _ in pickletools.genops(pickled):
        if op.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
            continue
        if op.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            continue
        if op.name == "MARK":
            marks.append(len(stack))
            continue
        sliced = pickletools.stackslice in op.stack_before
        start = marks.pop() if sliced else len(stack) - len(op.stack_before)
        items = stack[start:]
        del stack[start - (len(op.stack_before) - 2 if sliced else 0) :]
        item = _Item()
        if op.name in ("BINUNICODE", "SHORT_BINSTRING"):
            item = _Item(argument)
        elif op.name.startswith("TUPLE"):
            item = _Item(items, 1 + sum(entry.weight for entry in items))
        elif op.name in ("GLOBAL", "BINPERSID"):
            near = [entry.value for entry in stack[:-9:-1] if isinstance(entry.value, str)]
            key = near[0] if near else "a value"
            if op.name == "BINPERSID":
                names.setdefault(items[0].value[2].value, key)
            elif (what := UNSAFE_CALLS.get(argument.rpartition(" ")[2])) is not None:
                raise _RefusedError(f"was refused: {shown(key)} is {what}")
        if item.weight > MOST_IN_TUPLE:
            raise _RefusedError(f"was refused: it holds a tuple of more than {MOST_IN_TUPLE} items")
        stack += [item] * len(op.stack_after)
    return names


class _Dtype:
    """A replacement for numpy.dtype, which pickles could nest without end."""

    def __init__(self, code: str, *_: bool) -> None:
        self.code = code
        self.order: Literal["<", ">", "|", "="] = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _numeric_scalar(dtype: _Dtype, value: bytes) -> Any:
    """A replacement for NumPy's scalar reconstructor, for plain numbers only."""
    if not re.fullmatch(r"[biufc]\d+", dtype.code):
        raise ValueError("a scalar that is no number in a checkpoint")
    return np.frombuffer(value, np.dtype(dtype.code).newbyteorder(dtype.order), count=1)[0]


class _Setting:
    """A replacement for objects that training scripts store beside weights; it stays empty."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Everything that a pickle may name beyond tensors and containers."""
    return [
        (_numeric_scalar, "numpy.core.multiarray.scalar"),  # NumPy 1
        (_numeric_scalar, "numpy._core.multiarray.scalar"),  # NumPy 2
        (_Dtype, "numpy.dtype"),
        (_Setting, "argparse.Namespace"),
        *((_Setting, f"pathlib{place}.PosixPath") for place in ("", "._local")),  # Python 3.13
        *((_Setting, f"pathlib{place}.WindowsPath") for place in ("", "._local")),
    ]


# --- Values ------------------------------------------------------------------------------------


def check_dense(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors store a value for each element, as those of a network do.

    Raises:
        CheckpointError: a tensor does not; the message names it.
    """
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_meta:
            kind = "tensor of the meta device, without values," if value.is_meta else value.layout
            raise CheckpointError(f"{path} holds a {kind} as {shown(key)}; weights are dense")


def check_weights(
    path: str | Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> None:
    """Check that weights are real numbers, finite in their target dtypes.

    Args:
        path: path of their file.
        tensors: weights, biases and statistics; counters may be among them.
        dtypes: target dtype of each; tensors with integer targets are not checked.

    Raises:
        CheckpointError: a weight is not, or a variance is negative; the message names it.
    """
    for key, value in tensors.items():
        dtype = dtypes[key]
        if dtype not in WEIGHT_DTYPES:
            continue
        if value.dtype not in WEIGHT_DTYPES:
            accepted = ", ".join(map(_plain, WEIGHT_DTYPES))
            raise CheckpointError(
                f"{path} holds {shown(key)} in {_plain(value.dtype)}; weights come in {accepted}"
            )
        wrong, reason = ~value.to(dtype).isfinite(), f"weights are finite in {_plain(dtype)}"
        if key.endswith("running_var") and not wrong.any():
            wrong, reason = value < 0, "variances are not negative"
        if wrong.any():
            raise CheckpointError(
                f"{path} holds {value[wrong][0].item()} in {shown(key)} ({int(wrong.sum())} of "
                f"{wrong.numel()} values); {reason}"
            )


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shown(name: str) -> str:
    """A name from a file, made printable and short enough for a message."""
    name = str(name)
    return name if name.isprintable() and len(name) <= 200 else f"{name!r:.200}"
