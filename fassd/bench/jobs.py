"""The jobs to measure: a network at a size, on a generated street scene."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict, Field
from torch import nn

from fassd.bench.candidates import (
    COMPILE,
    EAGER,
    PATHS_REFERENCE,
    Candidate,
    compiled,
    eager,
    from_file,
    ours,
)
from fassd.bench.others import build_other, is_other
from fassd.models import create_model
from fassd.models.device import DTYPES
from fassd.models.encoder import reparameterize
from fassd.models.preprocess import OURS, normalize
from fassd.models.zoo import preprocessing_before
from fassd.synth import render_street

ROUNDING_NOTE = "a random network amplifies rounding: judge 16 bits by trained weights"

CALIBRATION = 16
"""Number of streets that int8 is calibrated on."""

LARGEST = 1 << 16
"""Maximum side, pictures, rounds and threads that a file of results may request."""

Count = Annotated[int, Field(ge=0, le=LARGEST)]
Side = Annotated[int, Field(ge=1, le=LARGEST)]


@dataclass(frozen=True)
class Job:
    """A network to measure, and the way to measure it.

    Attributes:
        model, weights, classes, alpha: network, as in `fassd.create_model`; without weights it gets
            random ones (seed 0) whose batch norms are calibrated on the picture, see `calibrate`,
            unless there is a file to compare with. The model may also be from another project, see
            `fassd.bench.others`, as its factory makes it.
        size: (height, width) of the input, a generated street scene.
        batch: number of pictures per call.
        seed: seed of the first scene; those of the others follow it.
        backend: backend of the accelerated path, as in `fassd.Segmenter`.
        dtype: precision of all paths except the reference: "float32", "float16" or "bfloat16".
        device: device to run on: "cpu", "cuda", "cuda:1", ...
        compile: True also times `torch.compile`.
        threads: number of PyTorch's CPU threads; None leaves its own choice.
        repeats, warmup: numbers of rounds, as in `fassd.bench.stopwatch.compare`.
        memory: True also measures peak memory, in one process per path on the CPU.
        exported: path of a file of `fassd export`, made from this network, to measure as well. It
            is called with its kind of input, pictures or normalised batches, by every runtime that
            is installed, or by the one that `backend` names.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str = "fassd_net"
    weights: str | None = None
    classes: Count = 19
    alpha: Count = 2
    size: tuple[Side, Side] = (1024, 2048)
    batch: Count = 1
    seed: int = 1
    backend: str = "auto"
    dtype: str = "float32"
    device: str = "cpu"
    compile: bool = False
    threads: Count | None = None
    repeats: Count = 10
    warmup: Count = 2
    memory: bool = True
    exported: str | None = None

    def paths(self) -> dict[str, Candidate]:
        """All ways of `fassd bench run` to run the network, by title, the reference first.

        Raises:
            ValueError: the dtype is unknown.
        """
        torch_dtype(self.dtype)
        paths = [Candidate(EAGER, PATHS_REFERENCE, eager)]
        # On a CPU without 16-bit arithmetic plain PyTorch in bfloat16 takes 20 times as long as in
        # float32 (63 s per frame on a Zen 3): it is not a real alternative, so it is not a peer
        # there.
        if self.dtype != "float32" and torch.device(self.device).type != "cpu":
            paths.append(Candidate(EAGER, f"PyTorch {self.dtype}", eager, self.dtype))
        if self.compile:
            build = partial(compiled, form=eager)
            paths.append(Candidate(COMPILE, f"torch.compile {self.dtype}", build, self.dtype))
        if self.backend != "reference":
            title = f"fassd_kernels {self.dtype}"
            paths.append(Candidate("accelerated", title, ours, self.dtype))
        for runtime in self.runtimes():
            title = f"{Path(str(self.exported)).name}, {runtime}"
            build = partial(from_file, file=str(self.exported), runtime=runtime)
            paths.append(Candidate(runtime, title, build, self.dtype))
        return {path.title: path for path in paths}

    def runtimes(self) -> list[str]:
        """Runtimes that run `exported`."""
        if self.exported is None:
            return []
        from fassd.export.runtimes import RUNTIMES, is_installed

        known = RUNTIMES[Path(self.exported).suffix.lower()]
        if self.backend in known:
            return [self.backend]
        return [name for name in known if is_installed(name)] or list(known)

    @property
    def accelerated_backend(self) -> str:
        """`backend`, unless that names a runtime of the file."""
        return "auto" if self.backend in self.runtimes() else self.backend


def weights_note(job: Job) -> list[str]:
    """A sentence on the quality of the labels, if it is less than expected, or none."""
    if job.weights is None and not is_other(job.model):
        return ["random weights: labels are meaningless until trained weights are given"]
    trained_on = {"streets": "photographs and generated streets", "synthetic": "generated streets"}
    if job.weights in trained_on:
        on = trained_on[job.weights]
        return [f"{job.weights} weights: trained on {on} of other textures than this"]
    return []


def render_batch(job: Job, split: str = "val") -> tuple[list[npt.NDArray[np.uint8]], torch.Tensor]:
    """The job's pictures, (H, W, 3) uint8 RGB each, and the network's input made from them.

    The input is (N, 3, H, W) float32, contiguous, on the job's device.
    """
    scenes = [render_street(*job.size, seed=job.seed + i, split=split)[0] for i in range(job.batch)]
    own = OURS if is_other(job.model) else preprocessing_before(job.model, job.weights)
    batch = torch.from_numpy(np.stack([normalize(scene, own) for scene in scenes]))
    return scenes, batch.to(job.device)


def calibration_of(job: Job) -> list[torch.Tensor]:
    """Inputs to calibrate int8 on: `CALIBRATION` batches of other generated streets."""
    seeds = range(0, CALIBRATION * job.batch, job.batch)
    return [render_batch(replace(job, seed=seed), "train")[1] for seed in seeds]


def network_of(job: Job) -> nn.Module:
    """The job's plain network, in eval mode, on the CPU; without weights random ones of seed 0.

    Raises:
        ValueError: the network is unknown, or the weights are unsuitable.
        ImportError: a package is missing.
    """
    torch.manual_seed(0)
    if is_other(job.model):
        return build_other(job.model)
    return create_model(job.model, job.classes, job.alpha, weights=job.weights).eval()


def build_model(job: Job, batch: torch.Tensor) -> nn.Module:
    """The reference network of the job, in float32 and eval mode, on the job's device.

    An encoder whose branches can be merged has them merged, as in deployment.
    """
    model = network_of(job).to(job.device)
    # The source of a file was not calibrated. In other projects' networks, 50 calibrated layers can
    # amplify rounding: DeepLabV3's float32 differs from its float64 by 6e-5, not 1e-6.
    random = job.weights is None and job.exported is None and not is_other(job.model)
    return reparameterize(calibrate(model, batch) if random else model)


@torch.no_grad()
def calibrate(model: nn.Module, batch: torch.Tensor) -> nn.Module:
    """Set every batch norm to the statistics of `batch`, in place; return the model in eval mode.

    A single picture is used together with its mirror image.

    A freshly initialised network paints one flat colour, and two flat colours agree too easily to
    prove anything. With normalised activations, its labels vary with the content of the picture.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average: after one batch, its statistics
    # The coarsest map of a single small picture is one pixel, which has no statistics.
    model.train()(torch.cat([batch, batch.flip(3)]) if len(batch) == 1 else batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of "float32", "float16" or "bfloat16"."""
    if name not in DTYPES:
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {name!r}")
    return DTYPES[name]
