"""What a fused module is made of at one moment, read in one walk over its parts.

Two questions are answered by comparing it with an earlier one: whether the module can still be
fused (`configuration`), and whether packed weights are still fresh (`versions` and `contents`).
Asked on every call of ``forward``, so it is written for speed. On two cores of an EPYC, of which a
picture of 512 x 1024 has just emptied the caches, the walk takes 1.7 ms for all of L2 and the
checksum 0.6, where that picture takes 33. Of all 9 MB of weights a checksum took 1.7 ms more.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.modules import module as global_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook

from fassd_kernels.ops import CPU_MISSING, checksum, pieces_of

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
TABLES = ("_modules", "_parameters", "_buffers")
# Attributes of the parts that folding or the check of the parts depends on. Of a kind that is not
# in the table, all of them are read.
SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    nn.BatchNorm2d: ("eps", "training"),
    nn.ReLU: (),
    nn.PReLU: (),
}
ALL_SETTINGS = tuple(name for names in SETTINGS.values() for name in names)
# An itemgetter reads several in one call.
READ = {kind: itemgetter(*HOOKS, *TABLES, *names) for kind, names in SETTINGS.items()}
READ_ANY = itemgetter(*HOOKS, *TABLES)
KINDS = {Tensor, nn.Parameter}
IS_ON_CPU = attrgetter("is_cpu")
COUNTED = attrgetter("_version")
# What a part computes with. As attributes of one part, methods take the place of its class's, and
# tensors that of its parameters and buffers.
METHODS = frozenset(("forward", "_conv_forward", "_check_input_dim", "_call_impl"))
TENSORS = frozenset(("weight", "bias", "running_mean", "running_var"))
OWN = METHODS | TENSORS
# What a subclass may not define where it shall compute as its base does.
DEFINED = OWN | {"__call__", "__getattr__", "__getattribute__", *ALL_SETTINGS}

# Optimizers with fused=True edit parameters without counting it in their version.
optimizer_steps = 0


def count_step(*_: Any) -> None:
    global optimizer_steps
    optimizer_steps += 1


register_optimizer_step_post_hook(count_step)


@dataclass(eq=False)
class Snapshot:
    """The state of a module's parts.

    Attributes:
        configuration: their kinds and settings, and which tensors are absent.
        tensors: their parameters and buffers.
        hooked: whether one carries hooks, or methods of its own.
        countable: whether edits can be told. They cannot for tensor subclasses, for computed
            weights (parametrizations), new on each access, and on a GPU for inference tensors,
            which count none.
        whole: whether all values of the tensors on the CPU are compared, not a sample: edits of
            inference tensors are not counted.
        versions: edit counts, addresses and strides of the tensors, and counts of what edits them
            otherwise.
        storages: their storages, once the snapshot is kept: the address and even the ``id`` of one
            that is gone can be those of its successor.
        pieces, contents: likewise, where the values of those on the CPU lie, and a checksum of a
            sample of them, or of all.
    """

    configuration: list[Any] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    hooked: bool = False
    countable: bool = True
    whole: bool = False
    versions: list[Any] = field(default_factory=list)
    storages: list[Any] = field(default_factory=list)
    pieces: Any = None
    contents: int | None = None

    def read_tensors(self) -> None:
        """Read what :meth:`same_tensors` compares."""
        if not self.countable:
            return
        try:
            self.versions = versions(self.tensors)
        except RuntimeError:
            uncounted = [tensor for tensor in self.tensors if tensor.is_inference()]
            self.whole = self.countable = all(map(IS_ON_CPU, uncounted)) and CPU_MISSING is None
            counted = [tensor for tensor in self.tensors if not tensor.is_inference()]
            self.versions = versions(counted) if self.countable else []

    def keep(self) -> None:
        """Hold what an address could be mistaken for once it is gone, and read the contents."""
        if self.countable:
            self.storages = [tensor.untyped_storage() for tensor in self.tensors]
            on_cpu = [t for t in self.tensors if IS_ON_CPU(t) and t.is_floating_point()]
            self.pieces = pieces_of(on_cpu)
            self.contents = checksum(self.pieces, self.whole)

    def same_tensors(self, kept: Snapshot) -> bool:
        """Whether an earlier one saw the same tensors in the same state, as far as can be told."""
        return (
            self.countable
            and kept.countable
            and self.whole == kept.whole
            and self.versions == kept.versions
            and self.configuration is kept.configuration
            and all(map(operator.is_, self.tensors, kept.tensors))
            and checksum(kept.pieces, kept.whole) == kept.contents
        )


def versions(tensors: list[Tensor]) -> list[Any]:
    """What tells edits of tensors that are not gone, but for those that nobody counts.

    Raises:
        RuntimeError: one is an inference tensor.
    """
    addresses, strides = map(Tensor.data_ptr, tensors), map(Tensor.stride, tensors)
    return [optimizer_steps, collectives(), *map(COUNTED, tensors), *addresses, *strides]


def take_snapshot(module: nn.Module) -> Snapshot:
    """Read all submodules of `module`, and its own tensors, but not its hooks: those run anyway."""
    hooked, countable = hooked_globally() or "_conv_forward" in module.__dict__, True
    configuration: list[Any] = [nn.Conv2d._conv_forward]
    found: list[Tensor | None] = []
    waiting: list[nn.Module | None] = [module]
    kind: Any
    while waiting:
        part = waiting.pop()
        if part is None:
            continue
        table, kind = part.__dict__, type(part)
        read = READ.get(kind)
        if read:
            first, second, third, fourth, _, parameters, buffers, *settings = read(table)
        else:
            first, second, third, fourth, parts, parameters, buffers = READ_ANY(table)
            # Not Module.modules(), which takes three times as long.
            waiting += parts.values()
            if computes(kind):
                settings = [getattr(kind, "_conv_forward", None), *map(table.get, ALL_SETTINGS)]
                countable = countable and "parametrizations" not in parts
            else:
                settings = [*parts]
        configuration += (kind, kind.forward, settings)
        found += parameters.values()
        found += buffers.values()
        if part is module:
            continue
        if first or second or third or fourth:
            hooked = True
        if not table.keys().isdisjoint(OWN):
            hooked = hooked or not table.keys().isdisjoint(METHODS)
            countable = countable and table.keys().isdisjoint(TENSORS)
    configuration.append([tensor is None for tensor in found])
    tensors = [tensor for tensor in found if tensor is not None]
    countable = countable and KINDS.issuperset(map(type, tensors))
    return Snapshot(configuration, tensors, hooked, countable)


@functools.cache
def computes(kind: type[nn.Module]) -> bool:
    """Whether a kind of module computes something itself, as far as folding is concerned."""
    return issubclass(kind, (nn.Conv2d, nn.modules.batchnorm._NormBase, nn.PReLU))


def collectives() -> Any:
    """How many operations of torch.distributed were started, which write without counting it.

    Where a backend does not number them, something that equals no other answer.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0
    groups: Any = distributed.distributed_c10d._world.pg_map
    try:
        return sum(group._get_sequence_number_for_group() for group in groups)
    except RuntimeError:
        return object()


def has_hooks(part: nn.Module) -> bool:
    """Whether calling `part` does more, or something else, than its class's ``forward``."""
    table = part.__dict__
    # A compiler that traces this knows no itemgetter.
    return any(table[name] for name in HOOKS) or replaced_forward(part)


def replaced_forward(part: nn.Module) -> bool:
    """Whether this one module has a ``forward`` of its own, as some wrapping libraries give it."""
    return any(name in part.__dict__ for name in METHODS)


def hooked_globally() -> bool:
    """Whether hooks of all modules are registered, which shall see the parts of fused ones too."""
    return bool(
        global_hooks._global_forward_hooks
        or global_hooks._global_forward_pre_hooks
        or global_hooks._global_backward_hooks
        or global_hooks._global_backward_pre_hooks
    )
