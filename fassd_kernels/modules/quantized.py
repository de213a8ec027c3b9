"""A FASSD-Net whose convolutions compute in bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from fassd.models.network import FASSDNet
from fassd_kernels.graphs.captured import Capturing
from fassd_kernels.graphs.steps import repeatable
from fassd_kernels.modules.fused import is_traced, runs_as_written
from fassd_kernels.modules.network import FusedNetwork, has_own_methods
from fassd_kernels.modules.snapshot import hooked_globally


class QuantizedNetwork(Capturing, FusedNetwork):
    """A :class:`FusedNetwork` of plain modules, whose logits come of graphs that compute in bytes.

    Labels, certainty and resizing are those of :class:`FusedNetwork`. The network's own code runs
    in float wherever a :class:`fassd_kernels.graphs.captured.Captured` module's does, and for parts
    of the network, such as `encode_part`. In tracers of a frozen network, its graph runs.
    """

    # The graph with its weights, for a compiler that traces the network: see `freeze`. In a tuple,
    # because it is no part of the network.
    _frozen: tuple[Callable[..., Tensor]] | None = None

    def as_written(self, x: Tensor) -> Tensor:
        return FASSDNet._scores(self, x)

    def fused(self, method: str, **arguments: Any) -> Tensor:
        if method == "_scores" and arguments["begin"] == 0:
            x = arguments["x"]
            if self._frozen is not None and is_traced() and not runs_as_written(self, x):
                with repeatable():
                    found: Tensor = self._frozen[0](x)[0]
                return found
            plain = runs_as_written(self, x) or is_traced() or hooked_globally()
            compiled = None if plain or not has_own_methods(self) else self.compiled()
            if compiled is not None:
                result: Tensor = compiled(self, x)
                return result
        result = getattr(FASSDNet, method)(self, **arguments)
        return result

    def freeze(self, x: Tensor) -> None:
        """Let tracers see bytes, with the present weights as constants.

        Args:
            x: input of a call.
        """
        # Imported late: Dynamo takes a second.
        from fassd_kernels.graphs.constant import constant_graph

        if self.compiled() is not None and has_own_methods(self):
            self._frozen = (constant_graph(self, self.cast(x)),)

    def looking_once(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()  # what is captured looks itself
