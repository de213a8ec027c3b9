"""The operator calls of a network on one size of picture, to be repeated without its modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fassd_kernels.ops import NAMESPACE


@dataclass
class TapedCall:
    """A call, and which of its arguments are results of earlier ones.

    Attributes:
        results: place of such an argument, place in a list there or None, and number of the result.
        last: numbers of results that no later call reads, whose memory the next ones may take.
    """

    function: Callable[..., Tensor]
    arguments: list[Any]
    keywords: dict[str, Any]
    results: list[tuple[int | str, int | None, int]]
    last: list[int]

    def __call__(self, results: list[Any]) -> Tensor:
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
    """Calls in their order: a function of one image to one.

    To find weights and backend, modules take a third of the time of a small picture
    (FASSD-Net-L2, 128x256, one core).
    """

    def __init__(self, calls: list[TapedCall]) -> None:
        self.calls = calls

    def __call__(self, x: Tensor) -> Tensor:
        results: list[Any] = [x]
        for call in self.calls:
            results.append(call(results))
            for number in call.last:
                results[number] = None
        return results[-1]  # type: ignore[no-any-return]


class Taping(TorchDispatchMode):
    """Records the calls within its block that compute something from one image.

    Every tensor that is not that image or a result must last as long as the tape, unchanged.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.results = [ref(x)]  # not kept: their memory serves the next ones
        self.numbers = {id(x): 0}
        self.calls: list[TapedCall] = []
        self.sound = True  # False once another operator was called

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        keywords = dict(kwargs or {})
        result = func(*args, **keywords)
        self.sound &= func.namespace == NAMESPACE and type(result) is Tensor
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
            self.calls.append(TapedCall(func._op, arguments, keywords, found, []))
            self.numbers[id(result)] = len(self.results)
            self.results.append(ref(result))
        return result

    def number(self, tensor: Any) -> int:
        return self.numbers[id(tensor)]

    def holds(self, tensor: Any) -> bool:
        """True if a tensor is a result, and not another with the identity of one that is gone."""
        return id(tensor) in self.numbers and self.results[self.number(tensor)]() is tensor

    def tape(self, result: Tensor) -> Tape | None:
        """The tape whose result is `result`; None if it would not be complete."""
        if not self.sound or not self.calls or result is not self.results[-1]():
            return None
        last: dict[int, int] = {}
        for i, call in enumerate(self.calls):
            last.update((number, i) for _, _, number in call.results)
        for number, i in last.items():
            self.calls[i].last.append(number)
        return Tape(self.calls)


def is_observed() -> bool:
    """True if something looks at, or changes, the calls of operators."""
    return bool(torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())
