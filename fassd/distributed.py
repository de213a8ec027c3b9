"""One process or many: the parts of torch.distributed that training and evaluation need.

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
    """Join the processes that torchrun started, for the duration of the block.

    They communicate through NCCL on CUDA and through Gloo elsewhere. In a single process
    (``WORLD_SIZE`` is not set, or 1), and where a group exists already, nothing is joined.

    Args:
        device: device of this process; None for CUDA if there is any, else the CPU. A plain "cuda"
            becomes the GPU of this process, by ``LOCAL_RANK``.
        patient: True if the processes only meet after work of very unequal length. They then
            communicate through Gloo on GPUs, too, and wait for each other for two weeks instead of
            half an hour.

    Yields:
        The device of this process.

    Raises:
        ValueError: this machine has no such device, or fewer GPUs than processes.
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
    # and NCCL would wait for them. torchrun stops them when this process has exited.
    dist.destroy_process_group()


def _own_gpu(device: torch.device) -> torch.device:
    """The GPU of this process, made the current one as NCCL requires; other devices as they are."""
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
    """Number of this process among all processes, from 0."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """Number of processes that work together."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """True in the process that prints and writes."""
    return rank() == 0


def all_gather(item: Any) -> list[Any]:
    """`item` of every process, in the order of ranks; anything that can be pickled."""
    items = [item] * world_size()
    if world_size() > 1:
        dist.all_gather_object(items, item)
    return items


def in_main(action: Callable[[], T]) -> T | None:
    """The result of `action` in the main process, for which the others wait; they get None.

    Raises:
        Exception: the exception that `action` raised; a RuntimeError with its message in the other
            processes, so that none of them continues alone.
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
    """The sum of every process's `tensor`, on its own device; `tensor` itself is not changed."""
    if world_size() == 1:
        return tensor
    # NCCL only transfers memory of GPUs, Gloo only memory of the CPU.
    on = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    total = tensor.to(on, copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
