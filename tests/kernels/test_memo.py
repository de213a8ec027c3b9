"""Plans that were made are remembered, and are those that would be made."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What a convolution's plan depends on, and two values of each.
ASKED = {
    "batch": (1, 2),
    "height": (64, 65),
    "width": (128, 36),
    "in_channels": (48, 24),
    "out_channels": (32, 90),
    "dilation": (1, 3),
    "pool": (1, 2),
    "multiprocessors": (132, 20),
    "shared_bytes": (232448, 65536),
    "dtype": ("float16", "float32"),
}
PROGRAM = """
import json, sys, torch, fassd_kernels
def plan(batch, height, width, in_channels, out_channels, dilation, pool, multiprocessors,
         shared_bytes, dtype):
    x = torch.empty(batch, in_channels, height, width, dtype=getattr(torch, dtype))
    weight = torch.empty(out_channels, in_channels, 3, 3, dtype=x.dtype)
    answer = torch.ops.fassd_kernels_plan.conv_act(
        [x], weight, dilation=[dilation] * 2, pool=pool, gpu=[multiprocessors, shared_bytes, 90])
    return json.loads(answer)[0]["blocks"]
print(json.dumps([plan(**call) for call in json.loads(sys.stdin.read())]))
"""


def answers(calls: list[dict[str, object]]) -> list[object]:
    """The plans of calls, in a process of their own."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(calls), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_memo(tmp_path: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    program = tmp_path / "memo"
    source = Path(__file__).with_name("memo.cpp")
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-pthread", f"-I{ROOT}"]
    subprocess.run([*compiler, *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def test_no_question_gets_the_answer_of_another() -> None:
    """Calls that differ in one thing alone, asked in one order and in the other."""
    first = {name: values[0] for name, values in ASKED.items()}
    calls = [first, *({**first, name: values[1]} for name, values in ASKED.items())]
    pairs = [{**call, "dtype": "float32"} for call in calls]
    forth, back = answers([*calls, *pairs]), answers([*pairs[::-1], *calls[::-1]])
    assert forth == back[::-1]
    differ = [i for i, call in enumerate(calls[1:]) if forth[i + 1] != forth[0]]
    assert len(differ) == len(ASKED)
