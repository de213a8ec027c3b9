"""What the GPU report measures, and in which order."""

from __future__ import annotations

import itertools

import fassd
from benchmarks.plan import FULL, build_plan, untuned
from fassd.bench.candidates import SWITCHED
from fassd.bench.subjects import MODULES, OPERATORS, PICTURES
from fassd_kernels.operators import OPERATORS as TABLE


def test_the_plan_holds_everything():
    names = [item.name for item in build_plan(FULL)]
    assert len(set(names)) == len(names)
    subjects = [f"modules/{name}" for name in MODULES]
    subjects += [f"networks/{name}" for name in fassd.list_models()]
    sizes, dtypes = ("1024x2048", "512x1024"), ("float16", "bfloat16", "float32")
    groups = ("library", "ours", "compile", "max-autotune")
    for where in itertools.product(subjects, (1, 8), sizes, dtypes, groups):
        assert "{}/{}x{}/{}/{}".format(*where) in names
    here = "1x1024x2048/float16"
    for name in ("fassd_net", "fassd_net_l2"):
        groups = ("native", "dependent", "carve-out", "threads", "choice")
        wanted = {f"networks/{name}/{here}/{group}" for group in groups}
        wanted |= {f"runner/{name}", f"profile/cuda/{name}"}
        wanted |= {f"variants/{name}/{here}", f"choices/{name}/{here}"}
        assert wanted <= set(names)
    tools = {"memcheck", "racecheck", "initcheck", "synccheck"}
    assert {f"sanitizer/{tool}" for tool in tools} | {"counters/fassd_net"} <= set(names)
    assert "sanitizer/memcheck/fassd_net" in names
    operators = {place.operator for place in OPERATORS.values()}
    operators |= {subject.partition(" ")[0] for subject in PICTURES}
    modules = {place.operator for place in MODULES.values()}
    assert operators | modules == set(TABLE) - {"pack_weight"}


def test_the_first_two_minutes_hold_the_headline():
    plan = build_plan(FULL)
    first = [item.name for item in plan if item.first]
    assert [item.name for item in plan[: len(first)]] == first
    here, half = "1x1024x2048/float16", "1x512x1024/float16"
    networks = ("networks/fassd_net", "networks/fassd_net_l2")
    assert first == [
        "build",
        "environment",
        "smoke/cuda",
        *(f"{network}/{place}/native" for place in (here, half) for network in networks),
        "profile/cuda/fassd_net",
        "profile/cuda/fassd_net_l2",
        *(f"{network}/{here}/{group}" for network in networks for group in SWITCHED),
    ]


def test_the_most_important_comes_first():
    names = [item.name for item in build_plan(FULL)]
    network, baseline = "networks/fassd_net", "networks/baseline"
    here, half, crowd = "1x1024x2048/float16", "1x512x1024/float16", "8x1024x2048/float16"
    wanted = [
        f"{network}/{here}/dependent",
        f"{network}/{here}/ours",
        f"{network}/{here}/library",
        f"{network}/{here}/compile",
        "counters/fassd_net",
        "conformance/cuda/sample",
        "conformance/cuda/dependent/sample",
        "runner/fassd_net_l2",
        f"{network}/{crowd}/native",
        "ceilings",
        "sanitizer/memcheck/fassd_net",
        f"tune/fassd_net/{here}",
        f"choices/fassd_net/{here}",
        f"{network}/{here}/choice",
        f"{network}/{here}/max-autotune",
        f"variants/fassd_net/{here}",
        "sanitizer/racecheck",
        f"modules/HarDBlock base.4/{here}/library",
        f"{baseline}/{here}/library",
        "conformance/cuda",
        f"tune/fassd_net/{half}",
        f"{network}/{half}/library",
        f"{baseline}/8x512x1024/float32/ours",
        f"networks/fassd_net_l1/{here}/compile",
    ]
    assert [name for name in names if name in wanted] == wanted


def test_tuning_changes_ours_at_its_place():
    plan = build_plan(FULL)
    tuning = next(item for item in plan if item.name == "tune/fassd_net/8x1024x2048/float16")
    names = {item.name for item in untuned(plan, tuning)}
    assert "networks/baseline/8x1024x2048/float16/ours" in names
    assert "operators/upsample/8x1024x2048/float16/ours" in names
    assert all(name.endswith("/8x1024x2048/float16/ours") for name in names)
    first = next(item for item in plan if item.name == "choices/fassd_net/1x1024x2048/float16")
    assert {item.name for item in untuned(plan, first)} == {
        f"networks/{name}/1x1024x2048/float16/choice" for name in ("fassd_net", "fassd_net_l2")
    }
