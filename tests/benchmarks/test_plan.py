"""What the GPU report measures, and in which order."""

from __future__ import annotations

from benchmarks.plan import FULL, build_plan
from benchmarks.report import PARTS
from fassd.bench.candidates import SWITCHED

PLAN = build_plan(FULL)
HERE, HALF, CROWD = "1x1024x2048/float16", "1x512x1024/float16", "8x1024x2048/float16"


def test_every_item_has_a_name_of_its_own_and_a_part() -> None:
    assert len({item.name for item in PLAN}) == len(PLAN)
    assert {item.part for item in PLAN} == set(PARTS)


def test_the_first_two_minutes_hold_the_headline() -> None:
    first = [item.name for item in PLAN if item.first]
    assert [item.name for item in PLAN[: len(first)]] == first
    networks = ("networks/fassd_net", "networks/fassd_net_l2")
    assert first == [
        "build",
        "environment",
        "smoke/cuda",
        *(f"{network}/{place}/native" for place in (HERE, HALF) for network in networks),
        "profile/cuda/fassd_net",
        "profile/cuda/fassd_net_l2",
        *(f"{network}/{HERE}/{group}" for group in SWITCHED for network in networks),
    ]


def test_the_most_important_comes_first() -> None:
    names = [item.name for item in PLAN]
    network = "networks/fassd_net"
    wanted = [
        f"{network}/{HERE}/dependent",
        f"{network}/{HERE}/ours",
        f"{network}/{HERE}/library",
        f"{network}/{HERE}/compile",
        "counters/fassd_net",
        "conformance/cuda/sample",
        "conformance/cuda/dependent/sample",
        "runner/fassd_net_l2",
        f"{network}/{CROWD}/native",
        "ceilings",
        "memcheck/fassd_net",
        f"modules/MDA(63, 2)/{HERE}/library",
        f"tune/fassd_net/{HERE}",
        "profile/triton/fassd_net",
        f"choices/fassd_net/{HERE}",
        f"{network}/{HERE}/choice",
        f"modules/DAPF(224)/{HERE}/compile",
        f"{network}/{HERE}/max-autotune",
        "conformance/triton/sample",
        f"networks/fassd_net_l2/{HERE.replace('float16', 'float32')}/native",
        f"networks/baseline/{HERE}/native",
        "conformance/cuda",
    ]
    assert [name for name in names if name in wanted] == wanted


def test_switched_kernels_run_in_an_environment_of_their_own() -> None:
    found = {item.name.rpartition("/")[2]: item.environment for item in PLAN if item.environment}
    assert found == {**SWITCHED, "sample": SWITCHED["dependent"]}
