"""The base of the fused modules: when they fuse, and how packed weights stay fresh."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fassd_kernels import ops
from fassd_kernels.autocast import autocasts, convert
from fassd_kernels.backends import (
    AUTO,
    check_available,
    choose,
    constant_result,
    disabled,
    meant,
)
from fassd_kernels.checks import check_storage
from fassd_kernels.choices import NOTHING, shape_key
from fassd_kernels.modules.parts import is_as_written, is_ours, structure
from fassd_kernels.modules.snapshot import (
    Contents,
    Snapshot,
    has_hooks,
    hooked_globally,
)
from fassd_kernels.modules.training import kernels_used
from fassd_kernels.packing import fold, is_foldable

Packed = dict[str, Any]
# A weight, and the stride and dilation to pack it for.
Plan = tuple[Tensor, Sequence[int], Sequence[int]]


class Cached(NamedTuple):
    """Packed weights, and the tensors that they were packed from."""

    snapshot: Snapshot
    contents: Contents | None  # None: edits of the tensors cannot be detected
    dtype: torch.dtype
    packed: Packed
    narrow: Packed  # the same for narrow images; empty until there is one


NARROW = 8
"""Maximum width of images whose 3x3 weights are packed without Winograd's form on a CPU: it is four
times as large, and to read it takes longer than it saves. The height, in which strips differ from
their picture, does not count."""


class Known(threading.local):
    """Contents whose weights are fresh, in this thread, during a call of the modules' network."""

    fresh: Mapping[Fused, Contents] = MappingProxyType({})


KNOWN = Known()


class Fused(nn.Module):
    """Mixin, in front of the reference module: ``class FusedDAPF(Fused, DAPF)``.

    In eval mode ``forward`` runs one fused operator on packed weights. They are packed again when
    one of the module's parameters or buffers changes its value, whatever changed it: on a CPU every
    value is compared on every call. On a GPU, and if the C++ extension is not built, edits are
    counted instead: in place, loading, moving, converting and replacing, forward passes in training
    mode, optimizer steps and operations of ``torch.distributed``. Edits that PyTorch does not count
    (through ``.data``, DLPack, memory shared with other programs) need :meth:`repack` there. If a
    gradient is needed, the weights are packed differentiably on each call, so that gradients reach
    the module's own parameters. Under autocast the result has autocast's type.

    The kernels also get the weights in their own order (:func:`reference.pack_weight`), packed once
    along with the folding.

    The reference's ``forward`` runs instead where the kernels are disabled
    (:func:`fassd_kernels.backends.disabled`); in training mode, where batch statistics forbid
    folding (on a CPU, each batch norm and the activation behind it are one operator there:
    :mod:`fassd_kernels.modules.training`); where a submodule carries hooks, which a fused operator
    would pass by; where a part was exchanged for another kind, or has a ``forward``,
    ``_conv_forward`` or ``weight`` that is not its class's, be it the part's own, a subclass's, or
    put into a class of PyTorch or of this project; inside ``torch.func`` transforms and
    forward-mode AD; and in ``torch.onnx.export`` and ``torch.fx.symbolic_trace``, whose graphs then
    hold standard operators alone. Not noticed
    are methods that are put into another project's class after its modules were fused, and, in a
    compiled or exported module, methods that are replaced later.

    Attributes:
        backend: ``auto`` or a name from :func:`fassd_kernels.backends`.
    """

    operator: ClassVar[str]
    lead: ClassVar[str]  # name of a convolution whose weight has the module's type
    backend: str = AUTO
    _seen: Snapshot | None = None
    _packed: Cached | None = None
    # Kinds and names of its inner parts when it was fused; None: this project's own.
    _structure: list[Any] | None = None
    # The packed weights, and those for narrow images, for a compiler that traces the module: see
    # `freeze`.
    _frozen: tuple[torch.dtype, Packed, Packed] | None = None

    # --- what a subclass defines -----------------------------------------------------------------

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        """The reason why `module` cannot be fused; empty if it has the right parts."""
        raise NotImplementedError(f"{cls.__name__} must define mismatch")

    def convolutions(self) -> list[tuple[Any, Any]]:
        """The convolutions in the operator's order, each with the batch norm after it, or None."""
        raise NotImplementedError(f"{type(self).__name__} must define convolutions")

    def batch_norms(self) -> Iterator[nn.Module]:
        """The batch norms that are folded."""
        return (norm for _, norm in self.convolutions() if norm is not None)

    def pack(self, dtype: torch.dtype) -> Packed:
        """The operator's arguments except the input, in `dtype`; differentiable."""
        folded = [fold(conv, norm, dtype) for conv, norm in self.convolutions()]
        return {"weights": [weight for weight, _ in folded], "biases": [bias for _, bias in folded]}

    def plan(self, packed: Packed) -> list[Plan]:
        """The weights of `packed` that the backend may lay out in its own way, in `packed`'s order.

        It depends only on `packed`.
        """
        return [(weight, (1, 1), (1, 1)) for weight in packed["weights"]]

    def run(self, x: Tensor, packed: Packed, **more: Any) -> Tensor:
        """Call the operator."""
        backend = self.backend_for(x, [x], {**packed, **more})
        return ops.operator(self.operator, backend)(x, **packed, **more)

    def add_missing(self) -> None:
        """Add attributes that the reference class has and a foreign one may not have."""

    # --- construction ----------------------------------------------------------------------------

    @classmethod
    def from_reference(cls, module: nn.Module, backend: str = AUTO) -> Fused:
        """Make the fused module with `module`'s own parameters, buffers, hooks and mode.

        Nothing is copied: both modules share every parameter, and `module` does not change.

        Args:
            module: reference module, or any with the same attributes.
            backend: ``auto``, or the name of a backend.

        Raises:
            TypeError: `module` lacks an attribute or is configured otherwise.
            BackendError: `backend` is unknown or not available.
        """
        fused = cls.take_over(module, backend)
        for name, value in module.__dict__.items():
            if isinstance(value, dict):  # parameters, buffers, submodules, hooks: copied
                fused.__dict__[name] = copy.copy(value)
        return fused

    @classmethod
    def take_over(cls, module: nn.Module, backend: str = AUTO) -> Fused:
        """:meth:`from_reference` for a module that is discarded afterwards: even tables are shared.

        Handles of hooks that were registered on `module` can therefore still remove them.
        """
        why = cls.mismatch(module)
        if why:
            raise TypeError(f"{type(module).__name__} cannot become {cls.__name__}: {why}")
        check_available(backend)
        fused = cls.__new__(cls)
        fused.__dict__.update(module.__dict__)
        fused.backend = backend
        fused._packed = fused._seen = None
        if not isinstance(module, Fused):
            fused._structure = structure(module)
        fused.add_missing()
        return fused

    # --- forward ---------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Run the module: N x C x H x W to the reference's shape, channels_last when fused."""
        prepared = self.prepare(x)
        if prepared is not None:
            return self.run(*prepared)
        if is_traced():
            return super().forward(x)
        self.repack()  # batch norms may edit their statistics without counting it
        # Hooks, and modules that are not on the CPU, are noticed where it computes.
        used = self.training and meant(self.backend) in (AUTO, "cpu")
        with kernels_used(used and not transforming()):
            return super().forward(x)

    def prepare(self, x: Tensor) -> tuple[Tensor, Packed] | None:
        """The input in the type to compute in, and fresh weights; None if it cannot be fused."""
        if runs_as_written(self, x):
            return None
        traced = is_traced()
        now = None if traced else self.known()
        if now is None:
            now = None if traced else self.snapshot()
            fusible = now.fusible and not hooked_globally() if now else self.fusible_as_traced()
            if not fusible:
                return None
        dtype = (self.lead_weight() if now is None else now.lead).dtype
        if autocasts(x.device.type) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
            x = convert(x, dtype, type(self).__name__, "the input")
        return x, self.fitting(x, self.packed(dtype, now))

    def snapshot(self) -> Snapshot:
        """A snapshot of the module's present parts."""
        now = self._seen
        if now is None or not now.holds(self):
            now = Snapshot(self)
            # DataParallel's replicas have no parameters.
            now.fusible = not now.hooked and "_is_replica" not in self.__dict__ and self.fits()
            if now.fusible:
                now.lead = self.lead_weight()
            self._seen = now
        return now

    def known(self) -> Snapshot | None:
        """The last snapshot, if the calling network has found that nothing changed."""
        cached = self._packed
        if cached is None or cached.contents is None:
            return None
        return cached.snapshot if KNOWN.fresh.get(self) is cached.contents else None

    def fits(self) -> bool:
        """True if the fused operator computes the same as the parts without hooks."""
        return fits(self) and all(map(is_foldable, self.batch_norms()))

    def fusible_as_traced(self) -> bool:
        """True if the module can be fused, for a compiler, which cannot trace a snapshot."""
        hooked = any(has_hooks(part) for part in self.modules() if part is not self)
        return not hooked and self.fits()

    def lead_weight(self) -> Tensor:
        """A weight with the convolutions' type; batch norms may have a wider one."""
        lead: Any = self
        for name in self.lead.split(".") if self.lead else ():
            lead = lead._modules[name]  # in a third of the time of get_submodule()
        weight: Tensor = lead.weight
        return weight

    def backend_for(
        self,
        x: Tensor,
        images: Sequence[Tensor] = (),
        arguments: Mapping[str, Any] = NOTHING,
        operator: str = "",
    ) -> str:
        """Choose the backend that runs on tensors like `x`.

        Args:
            x: tensor with the device and type.
            images: images of the call, if known: the backend that was measured to be fastest for it
                is then chosen.
            arguments: arguments of the call, by name.
            operator: operator of the call, if it is not the module's own.
        """
        operator = operator or self.operator
        key = shape_key(operator, images, arguments) if images and x.is_cuda else ""
        return choose(self.backend, x.device, operator, dtype=x.dtype, key=key)

    # --- packed weights --------------------------------------------------------------------------

    def packed(self, dtype: torch.dtype, now: Snapshot | None) -> Packed:
        """Packed weights in `dtype`: from the cache if they are known to be fresh."""
        if now is None and self._frozen is not None and self._frozen[0] == dtype:
            return self._frozen[1]
        if now is None or self.wants_gradient():
            self.check_storages()
            return self.pack(dtype)
        cached = self._packed
        if cached is not None and cached.snapshot is now and cached.dtype == dtype:
            contents = cached.contents
            if self.known() is now or (contents is not None and contents.last()):
                return cached.packed
        self.check_storages()
        # Before packing: edits that another thread makes meanwhile count as later ones.
        contents = Contents(now.tensors) if now.countable else None
        with packing(now.tensors) as lasting:
            packed = {name: kept(value) for name, value in self.pack(dtype).items()}
            packed["packed"] = [
                ops.packer(self.backend_for(weight))(weight, stride=stride, dilation=dilation)
                for weight, stride, dilation in self.plan(packed)
            ]
        # Weights made in a mode that only propagates shapes are not cached.
        if lasting and all(type(tensor) is Tensor for tensor in packed["packed"]):
            # One assignment of one tuple: threads that meet here pack twice, with equal results.
            self._packed = Cached(now, contents, dtype, packed, {})
        return packed

    def fitting(self, x: Tensor, packed: Packed) -> Packed:
        """The packed weights, or the same for images as narrow as `x`."""
        cached, frozen = self._packed, self._frozen
        if x.dtype != torch.float32 or not x.is_cpu:
            return packed
        if frozen is not None and packed is frozen[1]:
            # In a program for any width there is one kind.
            narrow = frozen[2] and type(x.shape[3]) is int and x.shape[3] <= NARROW
            return frozen[2] if narrow else packed
        if cached is None or cached.packed is not packed or x.shape[3] > NARROW:
            return packed
        if self.backend_for(x) != "cpu":
            return packed
        if not cached.narrow:
            with packing(cached.snapshot.tensors):
                plans = [
                    # At stride 2 there is no such form.
                    ops.packer("cpu")(weight, stride=(2, 2))
                    if weight.shape[2:] == (3, 3) and (*stride, *dilation) == (1, 1, 1, 1)
                    else known
                    for known, (weight, stride, dilation) in zip(
                        packed["packed"], self.plan(packed), strict=True
                    )
                ]
            cached.narrow.update(packed, packed=plans)
        return cached.narrow

    def check_storages(self) -> None:
        """Raise RuntimeError if a tensor that is folded has lost its memory, as under FSDP."""
        if not torch.compiler.is_compiling():
            for name, tensor in (*self.named_parameters(), *self.named_buffers()):
                if tensor.is_floating_point():  # batch norms' integer counters are not needed
                    check_storage(type(self).__name__, name, tensor)

    def repack(self) -> None:
        """Discard the packed weights; needed after edits that are not counted or noticed."""
        self._packed = None

    def wants_gradient(self) -> bool:
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None, "_seen": None}

    def extra_repr(self) -> str:
        device = next(self.parameters()).device
        backend, wanted = self.backend, meant(self.backend)
        if wanted == AUTO:
            wanted = choose(AUTO, device, self.operator, True, self.lead_weight().dtype)
        if disabled():
            wanted = "disabled"
        if wanted != backend:
            backend = f"{backend} ({wanted})"
        mine = f"backend={backend}, dtype={self.lead_weight().dtype}"
        return ", ".join(filter(None, (super().extra_repr(), mine)))


def kept(value: Any) -> Any:
    """A tensor, or the tensors of a list, without their history; anything else unchanged.

    Vectors are padded to a multiple of eight: the CUDA kernels load eight values at once.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        return F.pad(value, (0, -len(value) % 8))[: len(value)] if value.dim() == 1 else value
    return [kept(x) for x in value] if isinstance(value, list) else value


def own(value: Any) -> Any:
    """Tensors as copies that no cache shares; anything else unchanged."""
    if isinstance(value, Tensor):
        return value.clone()  # keeps the strides
    return [own(each) for each in value] if isinstance(value, list) else value


def are_on_gpu(tensors: Sequence[Tensor]) -> bool:
    return any(type(tensor) in (Tensor, nn.Parameter) and tensor.is_cuda for tensor in tensors)


@contextmanager
def packing(tensors: Sequence[Tensor]) -> Iterator[bool]:
    """Within the block, weights that are made of `tensors` can be used in any later call.

    Yields:
        False if they must not be kept: those of a graph being captured are in the graph's memory
        from its first replay on.
    """
    on_gpu = are_on_gpu(tensors)
    captured = on_gpu and torch.cuda.is_current_stream_capturing()
    # Not in inference mode, whose tensors cannot be used in a later call with gradients.
    with torch.inference_mode(False), torch.no_grad():
        yield not captured
        if on_gpu and not captured:
            torch.cuda.current_stream().synchronize()  # the next reader may be on another stream


def is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def exports_onnx() -> bool:
    """True while ``torch.onnx.export`` traces the call, with either of its two tracers."""
    return is_traced() and torch.onnx.is_in_onnx_export()


def transforming() -> bool:
    """True in a torch.func transform or forward-mode AD, which no operator supports."""
    return (
        torch._C._functorch.maybe_current_level() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def runs_as_written(module: nn.Module, *inputs: Any) -> bool:
    """True if a call must run a module's own code on PyTorch's operators.

    Inside a transform, tensors may have no address for a snapshot to read.
    """
    if module.training or disabled() or exports_onnx() or transforming():
        return True
    return any(isinstance(each, torch.fx.Proxy) for each in inputs)


def base_of(module: Fused) -> type[nn.Module]:
    """The class that a fused module replaces."""
    mro = type(module).__mro__
    return mro[mro.index(Fused) + 1]


@constant_result
def fits(module: Fused) -> bool:
    """True if a fused module's parts and their structure are those of the class it replaces."""
    found, known = structure(module), module._structure
    if known not in (None, found):
        return False
    kinds = [base_of(module), *(kind for kind, *_ in found)]
    sound = all(is_as_written(kind) if is_ours(kind) else known is not None for kind in kinds)
    return sound and not module.mismatch(module)
