"""A record of a fused module's parts at one moment, to detect changes.

It is compared on every call of ``forward``, so it is written for speed: what was found once is
compared in loops inside the interpreter.
"""

from __future__ import annotations

import functools
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.modules import module as global_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from fassd_kernels.ops import CPU_MISSING, checksum, pieces_of

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Attributes of the parts that folding, fusing or the check of the parts depends on.
SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    nn.BatchNorm2d: ("eps", "training"),
    nn.AvgPool2d: (
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    ),
}
ALL_SETTINGS = tuple(name for names in SETTINGS.values() for name in names)
# Kinds that compute with the parts and tensors that they hold, unless one is removed from its
# table.
LEAVES = {*SETTINGS, nn.ReLU, nn.PReLU}
# Function that reads a table of attributes; an itemgetter reads several in one call.
READ_HOOKS = itemgetter(*HOOKS)
READ_SETTINGS: dict[type[nn.Module], Any] = {k: itemgetter(*n) for k, n in SETTINGS.items()}
PARTS, PARAMETERS, BUFFERS = map(itemgetter, ("_modules", "_parameters", "_buffers"))
TABLE, FORWARD, CONVOLVE = map(attrgetter, ("__dict__", "forward", "_conv_forward"))
KINDS = {Tensor, nn.Parameter}
IS_ON_CPU = attrgetter("is_cpu")
COUNTED = attrgetter("_version")
# Attributes that a part computes with. On a single part, methods override those of its class, and
# tensors override its parameters and buffers.
METHODS = frozenset(("forward", "_conv_forward", "_check_input_dim", "_call_impl"))
TENSORS = frozenset(("weight", "bias", "running_mean", "running_var"))
OWN = METHODS | TENSORS
OWN_OF_FUSED = TENSORS | {"_conv_forward"}
# Methods that a subclass must not define if it is to compute like its base.
DEFINED = OWN | {"__call__", "__getattr__", "__getattribute__", *ALL_SETTINGS}

flat = chain.from_iterable

# Optimizers with fused=True edit parameters without counting it in the tensors' version.
optimizer_steps = 0


def count_step(*_: Any) -> None:
    global optimizer_steps
    optimizer_steps += 1


register_optimizer_step_post_hook(count_step)


class Snapshot:
    """The parts of a module, their settings, and their tensors.

    Hooks of the module itself are not included: they run anyway.

    Attributes:
        tensors: the parameters and buffers.
        hooked: True if a part carries hooks, or its own methods.
        countable: True if the tensors to compute with can be identified. That is impossible for
            tensor subclasses and for computed weights (parametrizations), which are new on each
            access.
        fusible: True if the parts can be fused.
        lead: weight whose dtype and device are the module's.
    """

    fusible: bool
    lead: Tensor

    def __init__(self, module: nn.Module) -> None:
        # Nothing here refers to the module, which would otherwise live until garbage collection.
        own = module.__dict__
        self.kind = type(module)
        self.parts: list[nn.Module] = []
        waiting = [own["_modules"]]
        for inner in waiting:  # grows while there are parts within parts
            found = [part for part in inner.values() if part is not None]
            self.parts += found
            waiting += [part._modules for part in found]
        self.kinds: list[Any] = [*map(type, self.parts)]
        self.tables = [*map(TABLE, self.parts)]
        self.attributes = attributes(self.tables)

        def holding(read: Any) -> list[dict[str, Any]]:
            of_kinds = zip(self.tables, self.kinds, strict=True)
            return [table for table, kind in of_kinds if read(table) or kind not in LEAVES]

        self.with_parts = holding(PARTS)
        self.with_parameters, self.with_buffers = holding(PARAMETERS), holding(BUFFERS)
        self.children, self.held = self.read_children(own), self.read_held(own)
        self.settings: list[tuple[Any, list[dict[str, Any]], list[Any]]] = []
        kinds = [*dict.fromkeys(self.kinds)]
        for kind in kinds:
            if not computes(kind):
                continue
            read = READ_SETTINGS.get(kind, read_settings)
            tables = [part.__dict__ for part in self.parts if type(part) is kind]
            self.settings.append((read, tables, [*map(read, tables)]))
        bases = dict.fromkeys(base for kind in (self.kind, *kinds) for base in kind.__mro__)
        self.classes = [base for base in bases if issubclass(base, nn.Module)]
        self.convolutions = [base for base in self.classes if issubclass(base, nn.Conv2d)]
        self.methods = [*map(FORWARD, self.classes), *map(CONVOLVE, self.convolutions)]
        # Numbers of hooks registered so far, on any module, at each of the last two calls.
        self.handles = [-1, -1]

        self.tensors = [tensor for tensor in self.held if tensor is not None]
        self.hooked = (
            self.has_hooks()
            or "_conv_forward" in own
            or not all(map(METHODS.isdisjoint, self.tables))
        )
        self.countable = (
            KINDS.issuperset(map(type, self.tensors))
            and all(map(TENSORS.isdisjoint, (own, *self.tables)))
            and all(name != "parametrizations" for name, _ in self.children)
        )

    def holds(self, module: nn.Module) -> bool:
        """True if a new snapshot would be equal; never if parts are hooked or not countable."""
        own, tables = module.__dict__, self.tables
        held = self.read_held(own)
        return (
            self.countable
            and not self.hooked
            and type(module) is self.kind
            and OWN_OF_FUSED.isdisjoint(own)
            and self.children == self.read_children(own)
            and self.kinds == [*map(type, self.parts)]
            and all(map(is_, map(TABLE, self.parts), tables))
            and self.attributes == attributes(tables)
            and all(seen == [*map(read, some)] for read, some, seen in self.settings)
            and self.methods == [*map(FORWARD, self.classes), *map(CONVOLVE, self.convolutions)]
            and len(self.held) == len(held)
            and all(map(is_, self.held, held))
            and KINDS.issuperset(map(type, self.tensors))
            and not self.has_new_hooks()
        )

    def read_children(self, own: dict[str, Any]) -> list[tuple[str, nn.Module | None]]:
        return [*own["_modules"].items(), *flat(map(dict.items, map(PARTS, self.with_parts)))]

    def read_held(self, own: dict[str, Any]) -> list[Tensor | None]:
        parameters, buffers = map(PARAMETERS, self.with_parameters), map(BUFFERS, self.with_buffers)
        tables = (own["_parameters"], own["_buffers"], *parameters, *buffers)
        return [*flat(map(dict.values, tables))]

    def has_hooks(self) -> bool:
        return any(map(any, map(READ_HOOKS, self.tables)))

    def has_new_hooks(self) -> bool:
        handles = RemovableHandle.next_id
        if self.handles[0] == handles:
            return False
        # Twice, because a hook is numbered before it is put into its table.
        self.handles = [self.handles[1], handles]
        return self.has_hooks()


def attributes(tables: list[dict[str, Any]]) -> list[Any]:
    """The last attribute of each table, which changes if an attribute is added."""
    return [*map(len, tables), *map(next, map(reversed, tables))]


def read_settings(table: dict[str, Any]) -> list[Any]:
    """The settings of a part of another kind, as far as it has them."""
    return [*map(table.get, ALL_SETTINGS)]


@functools.cache
def computes(kind: type[nn.Module]) -> bool:
    """True if a kind of part has settings that matter for folding or fusing."""
    return issubclass(kind, (nn.Conv2d, nn.modules.batchnorm._NormBase, nn.AvgPool2d))


class Contents:
    """The values of tensors at one moment, to compare with later ones.

    Values of floating tensors on the CPU are summed up (:func:`fassd_kernels.ops.checksum`); if
    that would have to wait for a device, or the C++ extension is not built, edits are counted.

    Raises:
        RuntimeError: the storage of a tensor is smaller than the tensor.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        counts = CPU_MISSING is not None
        summed = [t for t in tensors if not counts and IS_ON_CPU(t) and t.is_floating_point()]
        self.counted = [t for t in tensors if counts or not IS_ON_CPU(t)]
        self.tensors = [*summed, *self.counted]
        # A new storage may have the address, and even the ``id``, of one that was freed.
        self.storages = [tensor.untyped_storage() for tensor in self.tensors]
        self.places = places(self.tensors)
        # PyTorch does not count edits of tensors that were made in inference mode.
        self.known = not any(tensor.is_inference() for tensor in self.counted)
        self.edits = edits(self.counted) if self.known else []
        self.pieces = pieces_of(summed)
        self.sum = checksum(self.pieces)

    def last(self) -> bool:
        """True if all values are unchanged, as far as can be determined."""
        return (
            self.known
            and self.places == places(self.tensors)
            and (not self.counted or self.edits == edits(self.counted))
            and self.sum == checksum(self.pieces)
        )


def places(tensors: list[Tensor]) -> list[Any]:
    """Addresses and layouts of tensors."""
    addresses, strides = map(Tensor.data_ptr, tensors), map(Tensor.stride, tensors)
    return [*addresses, *strides, *map(Tensor.numel, tensors)]


def edits(tensors: list[Tensor]) -> list[Any]:
    """Numbers of edits of tensors, and of operations that edit them without counting.

    Raises:
        RuntimeError: a tensor was made in inference mode.
    """
    return [optimizer_steps, collectives(), *map(COUNTED, tensors)]


def collectives() -> Any:
    """Number of operations of torch.distributed that were started; they write without counting it.

    If a backend does not number them, a value that is unequal to any other.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0
    groups: Any = distributed.distributed_c10d._world.pg_map
    try:
        return sum(group._get_sequence_number_for_group() for group in groups)
    except RuntimeError:
        return object()


def has_hooks(part: nn.Module) -> bool:
    """True if calling `part` does more than, or something else than, its class's ``forward``."""
    table = part.__dict__
    # A compiler that traces this does not support itemgetter.
    return any(table[name] for name in HOOKS) or replaced_forward(part)


def replaced_forward(part: nn.Module) -> bool:
    """True if this one module has its own ``forward``, as some wrapping libraries assign it."""
    return any(name in part.__dict__ for name in METHODS)


def hooked_globally() -> bool:
    """True if global hooks of modules are registered, which must see the parts of fused ones."""
    return bool(
        global_hooks._global_forward_hooks
        or global_hooks._global_forward_pre_hooks
        or global_hooks._global_backward_hooks
        or global_hooks._global_backward_pre_hooks
    )
