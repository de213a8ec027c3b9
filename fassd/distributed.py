"""One process or many: what training and evaluation need to know of torch.distributed.

Under ``torchrun`` every process runs the same command; without it, all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fassd.models.device import pick_device

T = TypeVar("T")


@contextmanager
def process_group(
    device: torch.device | str | None = None, *, patient: bool = False
) -> Iterator[torch.device]:
    """Join the processes that torchrun started, for as long as the block lasts.

    They talk through NCCL on CUDA and through Gloo elsewhere. In a single process (``WORLD_SIZE``
    is not set, or 1), and where a group is there already, nothing is joined.

    Args:
        device: where this process computes; None for CUDA if there is any, else the CPU. A plain
            "cuda" becomes the GPU of this process, by ``LOCAL_RANK``.
        patient: the processes meet only after work of very unequal length. They talk through Gloo
            on GPUs, too, and wait for each other for up to two weeks instead of half an hour.

    Yields:
        That device.

    Raises:
        ValueError: no such device here, or fewer GPUs than processes.
    """
    home = _own_gpu(pick_device(device))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield home
        return
    if patient:
        dist.init_process_group("gloo", timeout=timedelta(days=14))
    else:
        dist.init_process_group("nccl" if home.type == "cuda" else "gloo")
    yield home
    # Not after an error: the others may be waiting for this process in the middle of an exchange,
    # and NCCL would wait for them. torchrun stops them when this process has gone.
    dist.destroy_process_group()


def _own_gpu(device: torch.device) -> torch.device:
    """The GPU of this process, made the current one as NCCL wants it; another device as it is."""
    if device.type != "cuda":
        return device
    if device.index is None:
        index = int(os.environ.get("LOCAL_RANK", "0"))
        if index >= torch.cuda.device_count():
            raise ValueError(
                f"process {index} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}: start fewer, or give --device cpu"
            )
        device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def rank() -> int:
    """Number of this process among all, from 0."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def all_gather(item: Any) -> list[Any]:
    """`item` of every process, in the order of ranks; anything that can be pickled."""
    items = [item] * world_size()
    if world_size() > 1:
        dist.all_gather_object(items, item)
    return items


def in_main(action: Callable[[], T]) -> T | None:
    """The result of `action` in the main process, for which the others wait; None in those.

    Raises:
        Exception: the one that `action` raised; in the other processes a RuntimeError that says
            the same, so that none goes on alone.
    """
    result: T | None = None
    failure: Exception | None = None
    if is_main():
        try:
            result = action()
        except Exception as error:
            failure = error
    reason = all_gather(None if failure is None else str(failure) or type(failure).__name__)[0]
    if failure is not None:
        raise failure
    if reason is not None:
        raise RuntimeError(f"process 0: {reason}")
    return result


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every process's `tensor`, on its own device; `tensor` stays as it is."""
    if world_size() == 1:
        return tensor
    # NCCL moves memory of GPUs only, Gloo all that of the CPU.
    on = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    total = tensor.to(on, copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
