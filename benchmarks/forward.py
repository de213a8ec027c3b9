"""A forward of a network through our CUDA kernels, for a profiler that looks over its shoulder.

``python benchmarks/launch.py benchmarks.forward '{"network": "fassd_net", "batch": 1, "height":
1024, "width": 2048, "dtype": "float16"}'``. What warms up comes before the profiler is started.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from benchmarks.peers import NATIVE
from benchmarks.subjects import Case, input_set, subject_of
from benchmarks.timing import warm_up


def forward(network: str, **place: Any) -> None:
    device = torch.device("cuda")
    case = Case("networks", network, **place)
    subject = subject_of(case, device, "")
    call = subject.candidate(NATIVE).call
    (x,) = input_set(0, subject, case.torch_dtype, device)
    inputs = (x.to(memory_format=torch.channels_last),)
    with torch.no_grad():
        warm_up(call, [inputs])
        torch.cuda.profiler.start()
        call(*inputs)
        torch.cuda.synchronize(device)
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    forward(**json.loads(sys.argv[1]))
