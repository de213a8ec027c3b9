"""torch.export programs and AOTInductor packages: PyTorch's formats, both in .pt2 files."""

from __future__ import annotations

import logging
import platform
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fassd.export.metadata import KEY, ExportError, Metadata
from fassd.export.network import Deployed, example_input, free_sides
from fassd.io.packages import quiet

EXTRA_FILE = f"{KEY}.json"
PORTABLE = "x86-64-v3"
"""CPU features required by packages with our operators: AVX2 and FMA."""


def traced(
    deployed: Deployed, metadata: Metadata, example_size: tuple[int, int]
) -> torch.export.ExportedProgram:
    """The network as a program without tensors that it does not use.

    Raises:
        ExportError: torch.export cannot trace it.
    """
    example = example_input(metadata.shape_of(example_size), metadata.takes_pictures)
    free = free_sides(metadata.takes_pictures, metadata.size)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            program = torch.export.export(deployed, (example,), dynamic_shapes=free)
            graph = program.module()
            for node in [each for each in graph.graph.nodes if each.op == "get_attr"]:
                if not node.users:  # the network also has its plain weights
                    graph.graph.erase_node(node)
            # Copied with the tensors that it refers to.
            graph = fx.GraphModule(graph, graph.graph)
            return torch.export.export(graph, (example,), dynamic_shapes=free)
    except (torch._dynamo.exc.UserError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"torch.export cannot trace the network: {reason}") from error


def smallest_side(program: Any) -> int:
    """The smallest height and width of a program for any size, which tracing may raise."""
    return max((int(bounds.lower) for bounds in program.range_constraints.values()), default=0)


def write_program(program: Any, metadata: Metadata, path: Path) -> None:
    """Write a torch.export program, without its example input."""
    example, program._example_inputs = program._example_inputs, None
    try:
        # The warnings are about its own shared storage.
        with quiet(logging.WARNING), path.open("wb") as file:
            torch.export.save(program, file, extra_files={EXTRA_FILE: metadata.to_json()})
    finally:
        program._example_inputs = example


def write_aoti(program: Any, metadata: Metadata, path: Path) -> None:
    """Compile a program to a shared library in a package that runs without Python.

    Raises:
        ExportError: there is no C++ compiler, or it failed.
    """
    settings: dict[str, Any] = {"aot_inductor.metadata": {KEY: metadata.to_json()}}
    if metadata.backend is not None and platform.machine() == "x86_64":
        # The operators select their instructions at run time; the code generated around them is
        # small, and need not restrict the package to this CPU.
        settings |= {"cpp.simdlen": 256}
        if hasattr(torch._inductor.config.cpp, "march"):
            settings["cpp.march"] = PORTABLE
    try:
        with quiet(logging.ERROR, "torch._inductor"):
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=settings
            )
    except Exception as error:  # Inductor's own errors, a compiler's exit
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"AOTInductor failed ({reason}); it needs a C++ compiler (g++, or CXX=...)"
        ) from error
