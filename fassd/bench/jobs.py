"""What is measured: a network at a size, on a generated street scene."""

from __future__ import annotations

from dataclasses import dataclass
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

LARGEST = 1 << 16
"""Of a side, pictures, rounds, threads: more than any file of results may ask for."""

Count = Annotated[int, Field(ge=0, le=LARGEST)]
Side = Annotated[int, Field(ge=1, le=LARGEST)]


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        model, weights, classes, alpha: as `fassd.create_model`; without weights the network gets
            random ones (seed 0) whose batch norms are calibrated on the picture, see `calibrate`,
            unless there is a file to compare with. The model may also be a network of others, see
            `fassd.bench.others`, as its factory makes it.
        size: (height, width) of the input, a generated street scene.
        batch: pictures per call.
        seed: of the first scene; the others of the batch follow it.
        backend: of the accelerated path, as in `fassd.Segmenter`.
        dtype: "float32", "float16" or "bfloat16", what all paths but the reference compute in.
        device: "cpu", "cuda", "cuda:1", ...
        compile: also time `torch.compile`.
        threads: CPU threads of PyTorch; None leaves its own choice.
        repeats, warmup: rounds, as in `fassd.bench.stopwatch.compare`.
        memory: also measure peak memory, in a process per path on the CPU.
        exported: a file of `fassd export`, made from this network, to measure beside it. It is
            called with what it takes, pictures or normalised batches, by every runtime that is
            here, or by the one that `backend` names.
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
        """Every way of `fassd bench run` to run the network, by title, the reference first.

        Raises:
            ValueError: an unknown dtype.
        """
        torch_dtype(self.dtype)
        paths = [Candidate(EAGER, PATHS_REFERENCE, eager)]
        # On a CPU without 16-bit arithmetic plain PyTorch takes 20 times float32's time in
        # bfloat16 (63 s a frame on a Zen 3): nobody's alternative, so not a peer there.
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
        """What `exported` is run by."""
        if self.exported is None:
            return []
        from fassd.export.runtimes import RUNTIMES, is_installed

        known = RUNTIMES[Path(self.exported).suffix.lower()]
        if self.backend in known:
            return [self.backend]
        return [name for name in known if is_installed(name)] or list(known)

    @property
    def accelerated_backend(self) -> str:
        """`backend`, where that does not name a runtime of the file."""
        return "auto" if self.backend in self.runtimes() else self.backend


def weights_note(job: Job) -> list[str]:
    """What the labels are worth, where that is less than one may expect: one sentence, or none."""
    if job.weights is None and not is_other(job.model):
        return ["random weights: labels are meaningless until trained weights are given"]
    trained_on = {"streets": "photographs and generated streets", "synthetic": "generated streets"}
    if job.weights in trained_on:
        on = trained_on[job.weights]
        return [f"{job.weights} weights: trained on {on} of other textures than this"]
    return []


def render_batch(job: Job) -> tuple[list[npt.NDArray[np.uint8]], torch.Tensor]:
    """The job's pictures, (H, W, 3) uint8 RGB each, and the network's input made of them.

    The input is (N, 3, H, W) float32, contiguous, on the job's device.
    """
    scenes = [render_street(*job.size, seed=job.seed + i, split="val")[0] for i in range(job.batch)]
    own = OURS if is_other(job.model) else preprocessing_before(job.model, job.weights)
    batch = torch.from_numpy(np.stack([normalize(scene, own) for scene in scenes]))
    return scenes, batch.to(job.device)


def network_of(job: Job) -> nn.Module:
    """The job's plain network, in eval mode, on the CPU; without weights random ones of seed 0.

    Raises:
        ValueError: an unknown network, or unsuitable weights.
        ImportError: a package is missing.
    """
    torch.manual_seed(0)
    if is_other(job.model):
        return build_other(job.model)
    return create_model(job.model, job.classes, job.alpha, weights=job.weights).eval()


def build_model(job: Job, batch: torch.Tensor) -> nn.Module:
    """The reference network of the job, in float32 and eval mode, on the job's device.

    An encoder that is built for it has its branches merged, as where networks are deployed.
    """
    model = network_of(job).to(job.device)
    # What a file was made from was not calibrated. Of others, 50 calibrated layers can amplify
    # rounding: DeepLabV3's float32 differs from its float64 by 6e-5, not 1e-6.
    random = job.weights is None and job.exported is None and not is_other(job.model)
    return reparameterize(calibrate(model, batch) if random else model)


@torch.no_grad()
def calibrate(model: nn.Module, batch: torch.Tensor) -> nn.Module:
    """Give every batch norm the statistics of `batch`, in place; returns the model in eval mode.

    A single picture is joined by its mirror image.

    A freshly initialised network paints one flat colour, and two flat colours agree too easily to
    prove anything. With its activations normalised, its labels vary with what the picture shows.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average: after one batch, just its statistics
    # Of a single small picture the coarsest map is one pixel, which has no statistics.
    model.train()(torch.cat([batch, batch.flip(3)]) if len(batch) == 1 else batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of "float32", "float16" or "bfloat16"."""
    if name not in DTYPES:
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {name!r}")
    return DTYPES[name]
