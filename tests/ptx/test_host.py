"""How the CUDA backend launches: kernels that overlap, attributes, what a capture could not stand.

What the environment says is read once in a process, so that programs of their own are run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conformance.harness import EXECUTED
from install.wheels import compiled_tree
from ptx import host

pytestmark = pytest.mark.skipif(EXECUTED != "cuda", reason="PTX_SETTINGS is not set: see README.md")
PATH = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
DEPENDENT, CARVEOUT = "FASSD_KERNELS_DEPENDENT_LAUNCH", "FASSD_KERNELS_CARVEOUT"

HEAD = """
import json, torch
from conformance import cases, harness
from ptx import executor
from fassd_kernels.triton.packing import pack
from ptx.test_cuda import CONVOLUTIONS, SEVERAL, check, subject

def run(call, **changes):
    call = call.to(torch.float16).with_(**changes)
    return call(getattr(torch.ops.fassd_kernels_cuda, call.operator))
"""


def output_of(program: str, **environment: str) -> str:
    variables = {**os.environ, "PTX_SETTINGS": "capability=90", **environment}
    variables["PYTHONPATH"] = os.pathsep.join(PATH)
    command = [sys.executable, "-c", HEAD + program]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- programmatic dependent launch ----------------------------------------------------------------

GLOBAL = re.compile(
    r"^(?:@\S+ )?(?:ld|st|atom|red|cp|prefetch)\.(?!\S*(?:shared\.|param|local|const))"
)


def test_kernels_wait_before_they_touch_memory() -> None:
    found = 0
    for path in host.library().parent.glob("*sm_90*.ptx"):
        for entry in re.split(r"^\.?(?:visible |weak )?\.entry ", path.read_text(), flags=re.M)[1:]:
            lines = [line.strip() for line in entry.splitlines()]
            touching = [i for i, line in enumerate(lines) if GLOBAL.match(line)]
            waiting = [i for i, line in enumerate(lines) if line == "griddepcontrol.wait;"]
            assert waiting and touching, lines[0]
            assert waiting[0] < touching[0], (lines[0], lines[touching[0]])
            found += 1
    assert found > 50


CHAIN = """
executor.change(overlap=0)
def chain():
    made = [run(cases.normalize_conv_act(1, 16, (68, 132), stride=(2, 2), activation="relu"))]
    def then(call, **changes):
        names = changes or {"input": made[-1]}
        made.append(run(call, **names))
    then(cases.conv_act(1, (16,), 20, (34, 66), pool=2), inputs=[made[-1]])
    then(cases.hardblock(1, 20, (10, 18, 10, 28), (17, 33)))
    then(cases.mda(1, 48, 24, (17, 33), 2))
    then(cases.dapf(1, 48, 20, 40, (17, 33), (3, 12, 24)))
    then(cases.aspp(1, 40, 24, 40, (17, 33), (2, 5)))
    skip = made[0]
    both = cases.upsample_conv1x1(1, (40,), (16,), 19, (17, 33), (34, 66))
    then(both, low=[made[-1]], skip=[skip])
    # Packed before, so that they follow each other: of many inputs, of three channels, of few.
    ten = (3, 1, 2, 1, 1, 2, 1, 4, 2, 1)
    parts = torch.randn(1, 18, 34, 66).half().split(ten, 1)
    many = cases.conv_act(1, (*ten[:7], 19, *ten[7:]), 3, (34, 66))
    joined = [*parts[:7], made[-1], *parts[7:]]
    three = cases.conv_act(1, (3,), 19, (34, 66))
    packed = [pack(call.arguments["weight"].half()) for call in (many, three)]
    then(many, inputs=joined, packed=packed[0])
    then(three, inputs=[made[-1]], packed=packed[1])
    logits = made[-1]
    then(cases.upsample_argmax(size=(68, 132)), input=logits)
    then(cases.conv_act(1, (19, 16), 19, (34, 66)), inputs=[logits, skip])
    then(cases.upsample(size=(68, 132)))
    then(cases.conv_act(1, (19, 16), 19, (34, 66)), inputs=[logits, skip])
    weight = made[-1][0, :, :19, :1, None]
    then(cases.conv_act(1, (19,), 19, (34, 66), (1, 1)), inputs=[logits], weight=weight)
    executor.synchronize()
    return made
before = executor.dependent_launches()
torch.manual_seed(0)
right = chain()
launched = executor.dependent_launches() - before
for seed in (0, 1, 7):
    executor.change(overlap=2, seed=seed, arrival="random" if seed else "late")
    torch.manual_seed(0)
    for one, other in zip(chain(), right, strict=True):
        assert torch.equal(one, other), one.shape
print(launched)
"""


@pytest.mark.parametrize("asked", ["1", "0"])
def test_kernels_that_overlap_compute_the_same(asked: str) -> None:
    """Each kernel begins before the one ahead of it has ended, of the same operator or not."""
    launched = int(output_of(CHAIN, **{DEPENDENT: asked}))
    assert launched > 20 if asked == "1" else launched == 0


def test_what_was_shown_decides_whether_kernels_overlap() -> None:
    source = (host.build.CSRC / "cuda" / "launch.cuh").read_text()
    (shown,) = re.findall(r"dependent_launch_was_shown = (true|false);", source)
    program = "run(CONVOLUTIONS[0]); print(executor.dependent_launches())"
    assert (int(output_of(program, **{DEPENDENT: ""})) > 0) == (shown == "true")


# --- attributes -----------------------------------------------------------------------------------

PLANS = """
found = []
for call in (*CONVOLUTIONS, *SEVERAL):
    call = call.to(torch.float16)
    executor.forget_counts()
    run(call)
    kernels = {one.kernel: executor.carveout(one.kernel) for one in executor.counts()}
    planned = getattr(torch.ops.fassd_kernels_plan, call.operator)
    gpu = [132, 227 * 1024, 90]
    plans = json.loads(planned(*call.positional, **call.keywords, gpu=gpu))
    found.append([kernels, plans])
print(json.dumps(found))
"""


def needed(plan: dict) -> int:
    """Bytes of a multiprocessor that all blocks of a launch take that are there at once."""
    most = max(block["shared_bytes"] for block in plan["blocks"])
    return max(block["resident"] for block in plan["blocks"]) * (most + 1024)


def test_multiprocessors_have_the_shared_memory_that_plans_count_on() -> None:
    largest: dict[str, int] = {}
    for kernels, plans in json.loads(output_of(PLANS, **{CARVEOUT: ""})):
        wanted = [needed(plan) for plan in plans if plan["blocks"]]
        for kernel, percent in kernels.items():
            if any(name in kernel for name in ("convolution_kernel", "pair", "stem")):
                assert percent >= 0, kernel
                largest[kernel] = percent
        if len(kernels) == 1 and len(plans) == 1:
            (percent,) = kernels.values()
            assert percent * 228 * 1024 >= 100 * min(wanted[0], 228 * 1024)
    assert len(largest) > 5 and len(set(largest.values())) > 1


ASKED = """
import os
wrong, right = ("101", "-1", "most"), os.environ["FASSD_KERNELS_CARVEOUT"]
for value in wrong:  # which are not kept: the next call reads the variable again
    os.environ["FASSD_KERNELS_CARVEOUT"] = value
    try:
        run(CONVOLUTIONS[0])
    except RuntimeError as error:
        print(error)
os.environ["FASSD_KERNELS_CARVEOUT"] = right
executor.forget_counts()
run(CONVOLUTIONS[0])
print({executor.carveout(one.kernel) for one in executor.counts() if "convolution" in one.kernel})
"""


@pytest.mark.parametrize(("value", "percent"), [("40", 40), ("driver", -1)])
def test_the_carveout_may_be_asked_for(value: str, percent: int) -> None:
    said = output_of(ASKED, **{CARVEOUT: value})
    for wrong in ("101", "-1", "most"):
        message = f"{CARVEOUT} is '{wrong}'; expected a percentage, 0 to 100, or driver"
        assert said.count(message) == 1
    assert said.splitlines()[-1] == f"{{{percent}}}"


def test_the_switch_is_one_or_zero() -> None:
    with pytest.raises(AssertionError, match=f"{DEPENDENT} is 'yes'; expected 0 or 1"):
        output_of("run(CONVOLUTIONS[0])", **{DEPENDENT: "yes"})


# --- under capture --------------------------------------------------------------------------------

STEADY = """
types = (torch.float16, torch.float32)
calls = [call.to(dtype) for call in (*CONVOLUTIONS, *SEVERAL[1::2]) for dtype in types]
for call in calls:
    call(getattr(torch.ops.fassd_kernels_cuda, call.operator))
before = executor.attributes_set()
for call in calls[::-1]:
    call(getattr(torch.ops.fassd_kernels_cuda, call.operator))
print(before, executor.attributes_set())
"""


def test_nothing_is_set_up_twice() -> None:
    """What a warm-up has called can be captured: no attribute of a kernel is set again."""
    before, after = map(int, output_of(STEADY).split())
    assert 0 < before == after


def test_memory_comes_from_pytorch_alone() -> None:
    """Its allocator knows the pool of a graph that is captured; the CUDA runtime's does not."""
    symbols = set()
    for path in host.objects(compiled_tree()):
        listed = subprocess.run(["nm", "-u", path], capture_output=True, text=True, check=True)
        symbols |= set(re.findall(r"U (_?_?cuda\w+|cu[A-Z]\w+)", listed.stdout))
    symbols = {symbol for symbol in symbols if not symbol.startswith("__cuda")}
    allowed = {"cudaLaunchKernelExC", "cudaFuncSetAttribute", "cudaDeviceGetAttribute"}
    allowed.add("cudaGetDriverEntryPointByVersion")  # of what describes boxes
    assert "cudaLaunchKernelExC" in symbols and symbols <= allowed
