"""The operator calls of a network on one size of picture, to be repeated without its modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MOST = 16
"""Maximum number of tapes that are kept of one network, each for other sizes of pictures."""


@dataclass
class TapedCall:
    """A call, and which of its arguments are inputs of the tape or results of earlier calls.

    Attributes:
        results: place of such an argument, place in a list there or None, and number of the result.
        made: numbers of its own results.
        several: True if it returns a list of tensors.
        last: numbers of results that no later call reads, whose memory the next ones may take.
    """

    function: Callable[..., Any]
    arguments: list[Any]
    keywords: dict[str, Any]
    results: list[tuple[int | str, int | None, int]]
    made: range
    several: bool
    last: list[int]

    def __call__(self, results: list[Any]) -> Any:
        arguments, keywords = self.arguments.copy(), self.keywords
        for place, inner, number in self.results:
            held: Any = arguments
            if isinstance(place, str):
                held = keywords = keywords.copy()
            if inner is None:
                held[place] = results[number]
            else:
                held[place] = images = held[place].copy()
                images[inner] = results[number]
        return self.function(*arguments, **keywords)


class Tape:
    """Calls in their order: a function of as many values as were taped.

    To find weights, backend and the fastest way, modules take a third of the time of a small
    picture (FASSD-Net-L2, 128x256, one core).

    Attributes:
        returned: numbers of the results that are returned, and other values.
        kind: type of a list of results; None if a tensor is returned.
    """

    def __init__(self, calls: list[TapedCall], returned: list[Any], kind: Any) -> None:
        self.calls, self.returned, self.kind = calls, returned, kind

    def __call__(self, *inputs: Any) -> Any:
        results = list(inputs)
        for call in self.calls:
            found = call(results)
            if call.several:
                results += found
            else:
                results.append(found)
            for number in call.last:
                results[number] = None
        if self.kind is None:
            return results[self.returned[0].number]
        return self.kind(results[x.number] if type(x) is Number else x for x in self.returned)


@dataclass(frozen=True)
class Number:
    """The number of a result among what a tape returns."""

    number: int


class Taping(TorchDispatchMode):
    """Records the calls within its block that compute something from its inputs.

    Every tensor that is not an input or a result must last as long as the tape, unchanged.
    """

    def __init__(self, *inputs: Any) -> None:
        super().__init__()
        self.results: list[Any] = []  # not kept: their memory serves the next ones
        self.numbers: dict[int, int] = {}
        self.calls: list[TapedCall] = []
        self.sound = True  # False once something else than tensors was computed
        for each in inputs:
            self.add(each)

    def add(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.numbers[id(value)] = len(self.results)
        self.results.append(ref(value) if isinstance(value, Tensor) else None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        keywords = dict(kwargs or {})
        result = func(*args, **keywords)
        several = isinstance(result, list | tuple)
        returned = list(result) if several else [result]
        self.sound &= all(type(each) is Tensor for each in returned)
        if self.sound:
            found: list[tuple[int | str, int | None, int]] = []
            arguments = [each.copy() if isinstance(each, list) else each for each in args]
            for place, each in (*enumerate(arguments), *keywords.items()):
                inside = enumerate(each) if isinstance(each, list) else ((None, each),)
                found += [(place, i, self.number(one)) for i, one in inside if self.holds(one)]
            for place, inner, _ in found:  # not kept
                held: Any = keywords if isinstance(place, str) else arguments
                if inner is None:
                    held[place] = None
                else:
                    held[place][inner] = None
            made = range(len(self.results), len(self.results) + len(returned))
            self.calls.append(TapedCall(func._op, arguments, keywords, found, made, several, []))
            for each in returned:
                self.add(each)
        return result

    def number(self, tensor: Any) -> int:
        return self.numbers[id(tensor)]

    def holds(self, tensor: Any) -> bool:
        """True if a tensor is a result, and not another with the identity of one that is gone."""
        return id(tensor) in self.numbers and self.results[self.number(tensor)]() is tensor

    def tape(self, result: Any) -> Tape | None:
        """The tape that returns `result`, a tensor or a flat list; None if it is not complete."""
        kind = type(result) if isinstance(result, list | tuple) else None
        every = [result] if kind is None else list(result)
        tensors = [each for each in every if isinstance(each, Tensor)]
        if not (self.sound and self.calls and tensors and all(map(self.holds, tensors))):
            return None
        if kind not in (None, list, tuple):
            return None
        returned = [
            Number(self.number(each)) if isinstance(each, Tensor) else each for each in every
        ]
        last: dict[int, int] = {}
        for i, call in enumerate(self.calls):
            last |= {number: i for *_, number in call.results}
            last |= dict.fromkeys(call.made, i)  # until a later call reads it
        for each in returned:
            if type(each) is Number:
                last.pop(each.number, None)
        for number, i in last.items():
            self.calls[i].last.append(number)
        return Tape(self.calls, returned, kind)


def repeated(
    tapes: dict[Any, Tape | None], key: Any, function: Callable[..., Any], *inputs: Any
) -> Any:
    """The result of `function(*inputs)`, whose calls are taped the first time and then repeated.

    Args:
        tapes: the tapes of a network as it is now; None for what cannot be taped.
        key: everything but the values of the inputs that the calls depend on.
    """
    if key in tapes:
        tape = tapes[key]
        return function(*inputs) if tape is None else tape(*inputs)
    if len(tapes) >= MOST:
        tapes.clear()
    with Taping(*inputs) as taping:
        result = function(*inputs)
    tapes[key] = taping.tape(result)
    return result


def is_observed() -> bool:
    """True if something looks at, or changes, the calls of operators."""
    return bool(torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())
