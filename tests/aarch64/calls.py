"""Calls of operators as bytes that the driver reads, and its answers."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import IO, Any

import torch
from torch import Tensor

# PyTorch's numbers (c10/core/ScalarType.h).
NUMBERS = {
    torch.uint8: 0,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bool: 11,
    torch.bfloat16: 15,
}
DTYPES = {number: dtype for dtype, number in NUMBERS.items()}


def listed(letter: str, values: Sequence[Any]) -> bytes:
    return struct.pack(f"<I{len(values)}{letter}", len(values), *values)


def text(words: str) -> bytes:
    return struct.pack("<I", len(words.encode())) + words.encode()


def tensor(value: Tensor) -> bytes:
    """A tensor with all of its storage: what lies around a slice comes along."""
    value = value.detach()
    storage = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
    head = struct.pack("<i", NUMBERS[value.dtype]) + listed("q", value.shape)
    head += listed("q", value.stride())
    head += struct.pack("<qq", value.storage_offset(), storage.numel())
    return head + storage.clone().numpy().tobytes()  # what NumPy has seen cannot be resized


def argument(kind: str, value: Any) -> bytes:
    """A value of a type of a schema: a letter, and what it stands for."""
    if kind.startswith("Optional["):
        if value is None:
            return b"-"
        plain = argument(kind.removeprefix("Optional[").removesuffix("]"), value)
        return plain[:1].upper() + plain[1:]
    if kind == "Tensor":
        return b"t" + tensor(value)
    if kind == "List[Tensor]":
        return b"l" + struct.pack("<I", len(value)) + b"".join(map(tensor, value))
    if kind.startswith("List["):
        values = value if isinstance(value, Sequence) else [value]
        return b"n" + listed("d" if kind == "List[float]" else "q", [*map(number, values)])
    if kind == "str":
        return b"s" + text(value)
    return b"i" + struct.pack("<d" if kind == "float" else "<q", number(value))


def number(value: Any) -> Any:
    return NUMBERS[value] if isinstance(value, torch.dtype) else value


def call(schema: torch._C.FunctionSchema, given: Sequence[Any], named: dict[str, Any]) -> bytes:
    """A call of an operator, its arguments as a dispatcher passes them."""
    parts = []
    for i, row in enumerate(schema.arguments):
        default = row.default_value if row.has_default_value() else None
        value = given[i] if i < len(given) else named.get(row.name, default)
        kind = str(row.type)
        # In a schema a dtype is of the type int.
        parts.append(argument("int" if isinstance(value, torch.dtype) else kind, value))
    name = schema.name.partition("::")[2]
    return text(name) + struct.pack("<I", len(parts)) + b"".join(parts)


# --- answers --------------------------------------------------------------------------------------


def taken(answers: IO[bytes], form: str) -> Any:
    size = struct.calcsize(form)
    data = answers.read(size)
    if len(data) < size:
        raise EOFError("the driver has ended: a kernel has crashed it")
    return struct.unpack(form, data)[0]


def taken_bytes(answers: IO[bytes]) -> bytes:
    return answers.read(taken(answers, "<I"))


def taken_list(answers: IO[bytes]) -> list[int]:
    count = taken(answers, "<I")
    return [taken(answers, "<q") for _ in range(count)]


def taken_tensor(answers: IO[bytes]) -> Tensor:
    dtype = DTYPES[taken(answers, "<i")]
    sizes, strides = taken_list(answers), taken_list(answers)
    data = bytearray(answers.read(taken(answers, "<q")))
    if not data:
        return torch.empty_strided(sizes, strides, dtype=dtype)
    made = torch.empty_strided(sizes, strides, dtype=dtype)
    return made.copy_(torch.frombuffer(data, dtype=dtype).as_strided(sizes, strides))


def answer(answers: IO[bytes]) -> Any:
    """What the driver says to one call: tensors, a word, or an error.

    Raises:
        RuntimeError: what the operator threw.
        EOFError: the driver has ended.
    """
    kind = taken(answers, "<c")
    if kind == b"e":
        raise RuntimeError(taken_bytes(answers).decode())
    if kind == b"s":
        return taken_bytes(answers).decode()
    results = [taken_tensor(answers) for _ in range(taken(answers, "<I"))]
    return results[0] if len(results) == 1 else tuple(results)
