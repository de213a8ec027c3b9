"""The whole network: fusion across modules, and labels instead of logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from fassd.models.encoder import Encoder
from fassd.models.info import temperature_of
from fassd.models.layers import Rows, resize
from fassd.models.network import FASSDNet
from fassd.models.preprocess import preprocessing_of
from fassd_kernels import ops
from fassd_kernels.autocast import autocasts, convert
from fassd_kernels.backends import AUTO, choose, constant_result, meant
from fassd_kernels.checks import MAX_LABELS
from fassd_kernels.graphs.recorded import Recordings, outline, outlined, recorded
from fassd_kernels.graphs.steps import resized
from fassd_kernels.modules.conv import FusedConv2d, FusedConvLayer
from fassd_kernels.modules.fused import KNOWN, Fused, is_traced, runs_as_written, transforming
from fassd_kernels.modules.parts import is_ours, missing_attribute
from fassd_kernels.modules.snapshot import Contents, Snapshot, hooked_globally
from fassd_kernels.modules.tape import Tape, is_observed, repeated
from fassd_kernels.modules.training import kernels_used
from fassd_kernels.reference.conv_act import channels_last
from fassd_kernels.reference.upsample import Measure, confident_labels

Output = Literal["logits", "labels", "labels+confidence"]
OUTPUTS = get_args(Output)
RECORDED = ("_scores", "encode", "ends", "encode_part", "refine")
"""Methods of FASSDNet that are recorded, and those that they call."""


@dataclass(eq=False)
class Seen:
    """A network at one call, the contents that its modules had packed by its end, and what was
    recorded of it."""

    snapshot: Snapshot
    contents: Contents | None
    packed: dict[Fused, Contents] = field(default_factory=dict)
    names: dict[Any, str] = field(default_factory=dict)
    tapes: dict[Any, Tape | None] = field(default_factory=dict)


class FusedNetwork(FASSDNet):
    """A :class:`fassd.models.FASSDNet` whose modules are fused, and fused with each other.

    In eval mode the code of FASSDNet is recorded as a graph (:mod:`fassd_kernels.graphs.recorded`)
    in which these are fused: an encoder 1x1 with the average pooling after it; a decoder 1x1 with
    the upsampling and concatenation before it (its low-resolution part is convolved before it is
    upsampled). The last upsampling is fused with the argmax. If a module of a pair carries a hook,
    or was replaced by another kind, the pair runs as two modules; if one of FASSDNet's methods was
    replaced or overridden, everything runs module by module. In training mode everything is
    the reference's, on a CPU with the operators of :mod:`fassd_kernels.modules.training`. An
    encoder of timm becomes :class:`fassd_kernels.graphs.captured.Captured` in `accelerate`.

    Shape: (N, 3, H, W) to logits (N, num_classes, H, W), channels_last; in eval mode with
    ``output="labels"`` to uint8 labels (N, H, W), and with ``output="labels+confidence"`` to labels
    and their certainty, uint8 (N, 2, H, W).

    Attributes:
        output: ``logits``, ``labels`` or ``labels+confidence``.
        measure: measure of the labels' certainty
            (:func:`fassd_kernels.reference.upsample_confidence`).
        casts_input: True converts floating inputs to the type of the parameters.
        backend: ``auto`` or a name from :func:`fassd_kernels.backends`, for operators fused here.
    """

    output: Output = "logits"
    measure: Measure = "margin"
    casts_input: bool = False
    backend: str = AUTO
    _seen: Seen | None = None

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        """The reason why `module` cannot be fused; empty if it has the right parts."""
        names = ("base", "DAPF", "conv1x1_up", "mda", "denseBlocksUp", "finalConv")
        return missing_attribute(module, names)

    @classmethod
    def take_over(cls, module: nn.Module, backend: str) -> FusedNetwork:
        """Let `module` itself become the fused network."""
        fused: Any = module
        fused.__class__ = cls
        fused.backend, fused._seen = backend, None
        if not FusedConv2d.mismatch(fused.finalConv):
            fused.finalConv = FusedConv2d.take_over(fused.finalConv, backend)
        return cast(FusedNetwork, fused)

    def forward(self, x: Tensor) -> Tensor:
        if self.output != "logits" and not self.training:
            return self.predict_labels(x, None if self.output == "labels" else self.measure)
        if self.training or isinstance(x, torch.fx.Proxy):
            x = self.cast(x)
            if is_traced() or transforming():
                return super().forward(x)
            with kernels_used(self.training and meant(self.backend) in (AUTO, "cpu")):
                return super().forward(x)
        scores, size = self.scores(x), (x.shape[2], x.shape[3])
        return self.run("upsample", scores, size)

    def predict_labels(self, x: Tensor, measure: Measure | None = None) -> Tensor:
        """Predict (N, 3, H, W) to the class of every pixel, uint8 (N, H, W), whatever `output` is.

        With a `measure` the result is uint8 (N, 2, H, W): labels and their certainty by that
        measure on a scale of 255, at the network's temperature
        (:func:`fassd.models.info.temperature_of`). Only for at most 256 classes; in eval mode the
        full-size logits are never written.
        """
        if self.training or isinstance(x, torch.fx.Proxy):
            return labels_of(super().forward(self.cast(x)), measure, temperature_of(self))
        return self.labels_of(self.scores(x), (x.shape[2], x.shape[3]), measure)

    def labels_of(
        self,
        scores: Tensor,
        size: tuple[int, int],
        measure: Measure | None = None,
        rows: Rows | None = None,
    ) -> Tensor:
        """Logits of the finest map to labels of the picture's size; `rows` as of `run`."""
        if measure is None:
            return self.run("upsample_argmax", scores, size, rows)
        own: dict[str, Any] = {"measure": measure, "temperature": temperature_of(self)}
        return self.run("upsample_confidence", scores, size, rows, **own)

    def label_pictures(
        self,
        pictures: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        measure: Measure | None = None,
    ) -> Tensor:
        """Label unprepared pictures, uint8 RGB (N, H, W, 3), with the result of `predict_labels`.

        Equals ``predict_labels(normalize(pictures, ...), measure)``; if the first layer is fused,
        the normalised pictures are not written.

        Args:
            pictures: (N, H, W, 3) uint8 RGB; the network must have at most 256 classes.
            mean, std: mean and deviation, as in :func:`fassd_kernels.reference.normalize`, in the
                channel order of the network's input; if that is RGB, the channels are reversed for
                it.
            measure: measure of certainty, as in `predict_labels`.

        Raises:
            ValueError: the network takes another number of channels.
        """
        if self.in_channels != 3:
            raise ValueError(f"pictures have three channels, the network takes {self.in_channels}")
        if preprocessing_of(self).channels != "BGR":
            pictures = pictures.flip(3)
        first: Any = None if isinstance(self.base, Encoder) else self.base[0]
        plain = isinstance(first, FusedConvLayer) and outlined(first)[1]
        size = (pictures.shape[1], pictures.shape[2])
        # Other networks raise, or run below on normalised pictures.
        if plain and not (runs_as_written(self) or 0 in self.skip_layers):
            with self.looking_once():
                fits = min(size) >= self.minimum_size
                x = first.of_pictures(pictures, mean, std) if fits else None
                scores = None if x is None else self._scores(x, 1)
            if scores is not None:
                return self.labels_of(scores, size, measure)
        dtype = self.dtype
        backend = choose(self.backend, pictures.device, "normalize", dtype=dtype)
        function = ops.operator("normalize", backend)
        return self.predict_labels(function(pictures, mean=mean, std=std, dtype=dtype), measure)

    @contextmanager
    def looking_once(self) -> Iterator[None]:
        """Check the whole network once, so that its modules need not check themselves.

        This takes half the time: the checking code stays in the caches, from which every module
        would evict it.
        """
        seen = None if is_traced() or transforming() or hooked_globally() else self.look()
        if seen is None:
            yield
            return
        outside, KNOWN.fresh = KNOWN.fresh, seen.packed
        # Every operator would come to its kernel through autograd, which is written in Python: half
        # a millisecond of a call.
        below = torch._C._AutoDispatchBelowAutograd
        try:
            with nullcontext() if torch.is_grad_enabled() else below():
                yield
        finally:
            KNOWN.fresh = outside
        if not seen.packed:
            for part in seen.snapshot.parts:
                if isinstance(part, Fused) and part._packed and part._packed.contents:
                    seen.packed[part] = part._packed.contents

    def look(self) -> Seen | None:
        """The state of the network; None if its modules have to check themselves."""
        seen = self._seen
        if seen is not None and seen.snapshot.holds(self):
            if seen.contents is not None and not seen.contents.last():
                self._seen = seen = Seen(seen.snapshot, Contents(seen.snapshot.tensors))
        elif seen is None or not (seen.snapshot.hooked and seen.snapshot.has_hooks()):
            now = Snapshot(self)
            # Parts of foreign classes may change the weights of others.
            ours = all(issubclass(kind, Fused) or is_ours(kind) for kind in now.kinds)
            plain = ours and now.countable and not now.hooked
            self._seen = seen = Seen(now, Contents(now.tensors) if plain else None)
        return None if seen.contents is None else seen

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}

    def cast(self, x: Tensor) -> Tensor:
        if not self.casts_input:
            return x
        return convert(x, self.dtype, type(self).__name__, "the input")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the head's weights, whatever the head; of all weights where it has none."""
        return next(chain(self.finalConv.parameters(), self.parameters())).dtype

    def run(
        self, name: str, x: Tensor, size: tuple[int, int], rows: Rows | None = None, **own: Any
    ) -> Tensor:
        """Call a resizing operator; `rows` gives the position of strips."""
        # torch.jit.trace turns sizes into tensors, which only PyTorch's own resizing takes.
        plain = runs_as_written(self, x) or torch.jit.is_tracing()
        if not plain and rows is None:
            return resized(name, x, size, self.backend, **own)
        if not plain and choose(self.backend, x.device, name, dtype=x.dtype) == "cpu":
            function = getattr(torch.ops.fassd_kernels, f"{name}_rows")
            return cast(Tensor, function(x, size, rows, **own))
        strip = resize(x, size, rows)
        return strip if name == "upsample" else labels_of(strip, **own)

    def scores(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes, h, w) of the finest map, in eval mode."""
        self._check_input(x)
        x = self.cast(x)
        if isinstance(self.base, Encoder) and x.is_cpu and not transforming():
            # The fused modules after it return channels_last; its own convolutions then do, too.
            x = channels_last(x)
        with self.looking_once():
            return self._scores(x)

    def _scores(self, x: Tensor, begin: int = 0) -> Tensor:
        seen = self._seen
        fresh = seen is not None and seen.packed and KNOWN.fresh is seen.packed
        if seen is None or not fresh or not self.is_repeatable(x):
            return self.fused("_scores", x=x, begin=begin)
        asked = [part.backend for part in seen.packed]
        key = (
            begin,
            x.shape,
            x.stride(),
            x.dtype,
            meant(AUTO),
            *asked,
            self.skip_layers,
            ops.operator,
        )

        def scores(image: Tensor) -> Tensor:
            return self.fused("_scores", x=image, begin=begin)

        return cast(Tensor, repeated(seen.tapes, key, scores, x))

    def is_repeatable(self, x: Tensor) -> bool:
        """True if a call depends on the image, and on what was looked at, alone."""
        plain = type(x) is Tensor and x.is_cpu and not torch.is_grad_enabled()
        return plain and not (autocasts("cpu") or is_observed() or runs_as_written(self, x))

    def encode_part(self, x: Tensor, begin: int, end: int) -> Tensor:
        return self.fused("encode_part", x=x, begin=begin, end=end)

    def refine(self, level: int, low: Tensor, skip: Tensor, rows: Rows | None = None) -> Tensor:
        return self.fused("refine", level=level, low=low, skip=skip, rows=rows)

    def fused(self, method: str, **arguments: Any) -> Tensor:
        """Call a method of FASSDNet, in eval mode with its modules fused with each other."""
        inputs = {name: x for name, x in arguments.items() if not isinstance(x, int | None)}
        result: Tensor
        if runs_as_written(self, *inputs.values()) or not has_own_methods(self):
            result = getattr(super(), method)(**arguments)
            return result
        fixed = tuple([pair for pair in arguments.items() if pair[0] not in inputs])
        seen = None if is_traced() else self._seen
        known = seen.names if seen and KNOWN.fresh is seen.packed else {}
        others = (("skip_layers", self.skip_layers),)
        key = (method, fixed, others)
        if key not in known:
            known[key] = recorded(FASSDNet, method, outline(self), others, fixed)
        result = getattr(Recordings, known[key])(self, **inputs)
        return result

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, output={self.output}"


METHODS = attrgetter(*RECORDED)
WRITTEN = METHODS(FASSDNet), METHODS(FusedNetwork)


@constant_result
def has_own_methods(network: FusedNetwork) -> bool:
    """True if the network computes by the methods that are recorded, and by no others."""
    return (METHODS(FASSDNet), METHODS(type(network))) == WRITTEN and not any(
        name in network.__dict__ for name in RECORDED
    )


def labels_of(logits: Tensor, measure: Measure | None = None, temperature: float = 1.0) -> Tensor:
    """Logits (N, C, H, W) to uint8 labels (N, H, W), or with a `measure` as in `predict_labels`.

    Raises:
        ValueError: there are more classes than labels, for instance after replacing the head.
    """
    if not isinstance(logits, torch.fx.Proxy) and logits.shape[1] > MAX_LABELS:
        raise ValueError(
            f"labels are uint8, for at most {MAX_LABELS} classes, got {logits.shape[1]}"
        )
    if measure is not None:
        return confident_labels(logits, measure, temperature)
    return logits.argmax(1).to(torch.uint8)
