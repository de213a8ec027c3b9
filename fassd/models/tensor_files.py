"""Reading files of tensors that may be damaged, or made to do harm.

Nothing in a file is ever executed: pickles go through PyTorch's restricted unpickler with a fixed
list of what else they may name: the NumPy scalars that the authors' files carry, and arguments of
scripts, of which nothing is made. Before that, what would take more memory than the file holds, or
break the interpreter, is looked for and refused. Checksums are verified where a file has them:
those of zip archives, which PyTorch does not look at, and the project's own in .safetensors.
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
"""What weights may come in."""

CHECKSUMS = "fassd_crc32"
"""Entry of a .safetensors file's metadata: JSON, CRC-32 by tensor; "" for the other metadata."""

MOST_INFLATION = 4
"""How many times its own size an archive may hold; PyTorch does not compress at all."""

MOST_IN_TUPLE = 10_000
"""Items of a tuple with those inside it: hashing a deep one overflows the stack."""

UNSAFE_CALLS = {
    "bytearray": "a bytearray",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another kind of device",
    "_rebuild_device_tensor_from_numpy": "a tensor of another kind of device",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_qtensor": "a quantised tensor",
}
"""What PyTorch lets a pickle call, and fills any amount of memory or reads where there is none."""

CHUNK_BYTES = 1 << 20


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or whose weights do not fit the model."""


def read_content(path: Path) -> Any:
    """What `path` holds: a dict of tensors for ``.safetensors``, anything for other files.

    Raises:
        CheckpointError: it cannot be read, is damaged, or was refused.
        OSError: it cannot be opened.
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
        # A damaged file makes the readers raise almost anything.
        except Exception as error:
            # PyTorch's own text is cut short: it recommends to load without the restriction.
            refused = re.search(r"GLOBAL ([\w.]+)", str(error))
            reason = (
                f"was refused, and nothing in it executed: it names {refused[1]}, "
                "which is not on the list of what a checkpoint may name; if it holds a whole "
                "module, write its weights alone, with torch.save(model.state_dict(), ...)"
                if refused
                else "is damaged or not a checkpoint"
            )
            detail = "" if isinstance(error, UnpicklingError) else f" ({error!r:.120})"
            raise CheckpointError(f"{path} {reason}{detail}") from None


def check_regular(path: Path) -> None:
    """See whether `path` is a file with an end: opening a pipe would wait, reading a device, too.

    Raises:
        CheckpointError: it is something else that is not a folder.
        OSError: there is nothing, or a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file of weights")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is a pipe, device or socket, not a file of weights")


# --- .safetensors ------------------------------------------------------------------------------


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a .safetensors file, verified if it has our checksums.

    Raises:
        CheckpointError: it is damaged; the message names the tensor, if that can be told.
        OSError: it cannot be opened.
    """
    check_regular(path)
    with path.open("rb"):  # a file that cannot be opened is an OSError, not a bad checkpoint
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        written = dict(json.loads(metadata[CHECKSUMS])) if CHECKSUMS in metadata else None
    except Exception as error:  # SafetensorError, and PyTorch's for what it does not know
        raise CheckpointError(f"{path} is damaged or not a checkpoint ({error!r:.120})") from None
    if written is not None:
        found = _checksums(tensors, metadata)
        wrong = [key for key in {**written, **found} if written.get(key) != found.get(key)]
        if wrong:
            raise CheckpointError(
                f"{path} is damaged: {shown(wrong[0]) or 'its metadata'} does not match the "
                f"checksum in it (who changes such a file has to remove {CHECKSUMS} from its "
                "metadata)"
            )
    return tensors, metadata


def with_checksums(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` for a file of `tensors` that `read_safetensors` can verify."""
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
    """Why a file is not read; what stands before it is the file's name."""


def _check_archive(file: IO[bytes]) -> None:
    """See whether a zip archive is as large as it says, sound, and its pickle harmless."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        total = sum(record.file_size for record in records)
        if total > MOST_INFLATION * size:
            raise _RefusedError(f"was refused: its {size} bytes unpack to {total}")
        damaged = damaged_record(archive)
        names: dict[str, str] = {}
        for record in records:
            name = record.filename.lower()  # PyTorch finds records of any case
            if name.endswith("/constants.pkl"):
                raise _RefusedError(
                    "is a TorchScript program: write its weights alone, with "
                    "torch.save(module.state_dict(), ...)"
                )
            if name.endswith("data.pkl") and record.filename != damaged:
                names |= _tensor_names(io.BytesIO(archive.read(record)))
    if len({key.lower() for key in names}) < len(names):
        raise _RefusedError("was refused: it names the same values in several ways")
    if damaged is not None:
        what = names.get(damaged.rpartition("/")[2], damaged)
        raise _RefusedError(f"is damaged: {shown(what)} does not match its checksum")


def damaged_record(archive: zipfile.ZipFile) -> str | None:
    """The first record of a zip archive that does not match its checksum, None if all do.

    PyTorch can write archives without checksums: 0 stands for none.
    """
    for record in archive.infolist():
        if record.CRC == 0:
            del record.CRC  # else zipfile would compare
        try:
            with archive.open(record) as stream:
                while stream.read(CHUNK_BYTES):
                    pass
        except Exception:  # of zipfile, and of what unpacks
            return record.filename
    return None


def _check_legacy(file: IO[bytes]) -> None:
    """See whether a file from before PyTorch 1.6, five pickles and the values, is harmless."""
    operations = pickletools.genops(file)
    number = next((argument for op, argument, _ in operations if op.name == "LONG1"), None)
    if number != torch.serialization.MAGIC_NUMBER:
        raise ValueError("not a file of torch.save")
    file.seek(0)
    for _ in range(5):
        _tensor_names(file)


class _Item(NamedTuple):
    """What a pickle would have on its stack: a text or a tuple's items, and how many those are."""

    value: Any = None
    weight: int = 1


def _tensor_names(pickled: IO[bytes]) -> dict[str, str]:
    """The key before each tensor by the name of its storage, from a pickle that is not executed.

    Raises:
        _RefusedError: it would fill memory that the file does not, or nests tuples too deep.
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
    """Stands in for numpy.dtype, which pickles could nest without end."""

    def __init__(self, code: str, *_: bool) -> None:
        self.code = code
        self.order: Literal["<", ">", "|", "="] = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _numeric_scalar(dtype: _Dtype, value: bytes) -> Any:
    """Stands in for NumPy's scalar reconstructor, for plain numbers only."""
    if not re.fullmatch(r"[biufc]\d+", dtype.code):
        raise ValueError("a scalar that is no number in a checkpoint")
    return np.frombuffer(value, np.dtype(dtype.code).newbyteorder(dtype.order), count=1)[0]


class _Setting:
    """Stands in for what training scripts keep beside weights, without what it holds."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """All that a pickle may name beyond tensors and containers."""
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
    """See whether tensors have a value for each place, as those of a network have.

    Raises:
        CheckpointError: one has not; the message names it.
    """
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_meta:
            kind = "tensor of the meta device, without values," if value.is_meta else value.layout
            raise CheckpointError(f"{path} holds a {kind} as {shown(key)}; weights are dense")


def check_weights(
    path: str | Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> None:
    """See whether weights are real numbers, finite in the dtype that they are wanted in.

    Args:
        path: where they are from.
        tensors: weights, biases and statistics; counters may be among them.
        dtypes: what each is wanted in; those wanted in integers are not looked at.

    Raises:
        CheckpointError: one is not, or a variance is negative; the message names it.
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
    """A name from a file as a message may hold it: printable, and not too long."""
    name = str(name)
    return name if name.isprintable() and len(name) <= 200 else f"{name!r:.200}"
