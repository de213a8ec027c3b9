"""The table of the operators: names, arguments, properties and definitions.

A row is one line of ``schemas.def``, which the C++ sources also include; everything that Python
needs to know of an operator is derived from it, and from the function and the check of its name in
:mod:`fassd_kernels.reference`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fassd_kernels import reference
from fassd_kernels.checks import defaults_of

PICTURES = "image"  # name of the argument of bytes, N x H x W x 3
IMAGES = ("inputs", "input", "low", "skip", PICTURES)
"""Arguments that hold images, N x C x H x W, or pictures; ``residual`` is one more image."""


@dataclass(frozen=True)
class Operator:
    """A row of the table.

    Attributes:
        name: name of the operator, and of its function in ``torch.ops.fassd_kernels``.
        kind: first word of its row: ``multiplies``, ``maps``, ``converts``, ``labels`` or
            ``packs``, as ``schemas.def`` explains.
        schema: signature, as PyTorch writes it.
        reference: its definition.
        check: function of the same arguments, by name, that raises RuntimeError where one is wrong,
            and returns the shape of the result.
        names: names of its arguments, in order.
        keyword_only: names of the arguments that are only taken by name.
        images: names of the arguments that are images, except a residual.
        weights: names of the arguments that are weights.
        options: names of the arguments that change the work for the same shapes, with their
            defaults (a tuple for a list; None or an empty tuple if the argument is required).
        typed: name of the argument that has the floating type of the call.
    """

    name: str
    kind: str
    schema: str
    reference: Callable[..., Tensor]
    check: Callable[..., tuple[int, ...]]
    names: tuple[str, ...]
    keyword_only: frozenset[str]
    images: tuple[str, ...]
    weights: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    typed: str

    @property
    def multiplies(self) -> bool:
        """True if it multiplies images by weights: autocast then sets its type."""
        return self.kind == "multiplies"

    @property
    def packs(self) -> bool:
        """True if it lays out a weight, in an order of the backend's choice."""
        return self.kind == "packs"

    @property
    def gives_labels(self) -> bool:
        """True if its result is uint8."""
        return self.kind == "labels"

    @property
    def has_gradient(self) -> bool:
        return self.kind in ("multiplies", "maps")

    @property
    def cuda_schema(self) -> str:
        """Signature of the CUDA kernel, with `allow_tf32` if it multiplies."""
        if not self.multiplies:
            return self.schema
        comma = ", " if self.keyword_only else ", *, "
        return self.schema.replace(") -> ", f"{comma}bool allow_tf32=False) -> ")

    @property
    def family(self) -> str:
        """Name of the file that defines it, in ``reference`` and in every backend."""
        return self.reference.__module__.rpartition(".")[2]

    def bind(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, without those that were left out.

        ``allow_tf32`` is left out as well: it affects how a kernel may multiply, not the result's
        meaning.
        """
        call = {**dict(zip(self.names, arguments, strict=False)), **keywords}
        call.pop("allow_tf32", None)
        return call

    def first_image(self, call: Mapping[str, Any]) -> Any:
        """The tensor that determines the device of a bound call: the first one, even in a list."""
        return first(call.get(self.names[0]))

    def dtype(self, call: Mapping[str, Any]) -> Any:
        """The floating type that a bound call computes in; None if no argument determines it."""
        value = first(call.get(self.typed))
        return value if isinstance(value, torch.dtype) else getattr(value, "dtype", None)


def first(value: Any) -> Any:
    """The first item of a list, unless it is empty; anything else unchanged."""
    return value[0] if isinstance(value, list | tuple) and value else value


def read_operators() -> dict[str, Operator]:
    """The rows of ``schemas.def`` by name."""
    text = (Path(__file__).parent / "schemas.def").read_text()
    rows = re.findall(r'^OPERATOR\((\w+), (\w+), R"\((.*?)\)"\)', text, re.S | re.M)
    defined = definitions()
    return {name: row_of(name, kind, written, defined) for name, kind, written in rows}


def definitions() -> dict[str, Callable[..., Any]]:
    """The functions that the files of :mod:`fassd_kernels.reference` define, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for file in pkgutil.iter_modules(reference.__path__):
        module = importlib.import_module(f"{reference.__name__}.{file.name}")
        own = {n: v for n, v in vars(module).items() if callable(v)}
        found |= {n: v for n, v in own.items() if v.__module__ == module.__name__}
    return found


def row_of(
    name: str, kind: str, written: str, defined: Mapping[str, Callable[..., Any]]
) -> Operator:
    schema = f"{name}({' '.join(written.split())}) -> Tensor"
    arguments = torch._C.parse_schema(schema).arguments
    names = tuple(argument.name for argument in arguments)
    weights = tuple(n for n in names if n in ("weight", "weights") or n.endswith("_weight"))
    # For a picture of bytes, the weights or the `dtype` argument determine the type.
    typed = weights[0] if names[0] == PICTURES and weights else names[0]
    return Operator(
        name,
        kind,
        schema,
        defined[name],
        functools.partial(defined[f"check_{name}"], **defaults_of(defined[name])),
        names,
        frozenset(a.name for a in arguments if a.kwarg_only),
        tuple(n for n in names if n in IMAGES),
        weights,
        tuple((a.name, default_of(a)) for a in arguments if is_option(str(a.type))),
        "dtype" if "dtype" in names else typed,
    )


def is_option(kind: str) -> bool:
    """True if an argument of a type is an option, and not a value to compute with."""
    return "Tensor" not in kind and "float" not in kind


def default_of(argument: Any) -> Any:
    if str(argument.type).startswith("List"):
        return tuple(argument.default_value or ())
    return argument.default_value


OPERATORS = read_operators()
