"""What stands for large networks, and for CUDA graphs on a CPU."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from fassd.models.preprocess import normalize
from fassd_kernels import GraphRunner


def picture(seed: int = 0, height: int = 64, width: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class Tiny(nn.Module):
    """Logits at a glance, for what does not depend on the network."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def tiny_labels(frame: np.ndarray, tiny: nn.Module | None = None) -> np.ndarray:
    x = torch.from_numpy(normalize(frame))[None]
    with torch.no_grad():
        return (tiny or Tiny())(x).argmax(1)[0].to(torch.uint8).numpy()


class Replay:
    """The model as it was, called on tensors that stay where they are, as a graph's do.

    Counts its captures and replays.
    """

    captures = 0
    replays = 0
    fails = False

    def __init__(self, model: nn.Module, x: Tensor, pool: object) -> None:
        if Replay.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        Replay.captures += 1
        self.input = x.clone()
        self.output = model(self.input).clone()
        self.model = copy.deepcopy(model)  # a graph knows of no later change

    def replay(self) -> None:
        Replay.replays += 1
        self.output.copy_(self.model(self.input))


class AtOnce:
    """The turns of what ends before it returns."""

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def wait(self) -> None: ...


class OnCpu(GraphRunner):
    recording = Replay
    turns = AtOnce
    new_pool = staticmethod(object)

    def takes(self, x: Tensor) -> bool:
        return True
