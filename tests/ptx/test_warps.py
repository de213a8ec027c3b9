"""What lanes tell one another; divergence, barriers, and who is told of it when they go wrong."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import executor, kernels

LANES = np.arange(32, dtype=np.uint32)
RANDOM = np.random.default_rng(2)
TILE = ".shared .align 16 .b8 tile[4096];"
# Of thread i: %r1 = &tile[4 i], %rd10 = &out[i], %rd11 = &in[i].
PLACES = """mov.u32 %r2, tile; mad.lo.u32 %r1, %r0, 4, %r2;
add.s64 %rd10, %rd1, %rd0; add.s64 %rd11, %rd2, %rd0;"""


@pytest.mark.parametrize("clamp", [0x1F, 0x1C1F, 0x181F, 0, 0x1800])
@pytest.mark.parametrize("way", ["bfly", "idx"])
def test_shuffles(way: str, clamp: int) -> None:
    values = RANDOM.integers(0, 2**32, 32, dtype=np.uint32)
    by = RANDOM.integers(0, 32, 32).astype(np.uint32)
    text = f"""shfl.sync.{way}.b32 %r20|%p1, {{0}}, {{1}}, {clamp}, -1;
@!%p1 xor.b32 %r20, %r20, 1; mov.b32 {{d}}, %r20;"""
    made = kernels.of_lanes(text, [values, by], "r", ["r", "r"])
    segment, least = clamp >> 8 & 31, clamp & 31
    for lane in range(32):
        begin, end = lane & segment, lane & segment | least & ~segment
        n = int(by[lane])
        source = {"bfly": lane ^ n, "idx": begin | n & ~segment}[way]
        expected = values[source] if source <= end else values[lane] ^ 1
        assert made[lane] == expected, lane


def test_votes() -> None:
    text = """setp.lt.u32 %p1, %r0, 1; setp.gt.u32 %p2, %r0, 99;
vote.sync.any.pred %p3, %p1, -1; vote.sync.any.pred %p4, %p2, -1; vote.sync.any.pred %p5, !%p1, -1;
selp.u32 %r21, 1, 0, %p3; selp.u32 %r22, 2, 0, %p4; selp.u32 %r23, 4, 0, %p5;
or.b32 %r21, %r21, %r22; or.b32 {d}, %r21, %r23;"""
    assert set(kernels.of_lanes(text, [LANES], "r", ["r"]).tolist()) == {1 | 4}


@pytest.mark.parametrize("name", ["min", "max"])
def test_reductions(name: str) -> None:
    values = RANDOM.integers(-(2**31), 2**31, 32).astype(np.int32)
    text = f"redux.sync.{name}.s32 {{d}}, {{0}}, -1;"
    made = kernels.of_lanes(text, [values.view(np.uint32)], "r", ["r"]).view(np.int32)
    assert set(made.tolist()) == {int(getattr(values, name)())}


def test_one_lane_is_elected() -> None:
    text = "elect.sync %r20|%p1, -1; selp.u32 {d}, 1, 0, %p1;"
    assert kernels.of_lanes(text, [LANES], "r", ["r"]).sum() == 1


def test_lanes_that_diverged_meet_again() -> None:
    """A loop of as many turns as the lane's number, then an instruction of the whole warp."""
    body = f"""{PLACES}
mov.u32 %r3, 0; mov.u32 %r4, 0;
LOOP: setp.ge.u32 %p1, %r3, %r0; @%p1 bra OUT;
add.u32 %r4, %r4, %r3; add.u32 %r3, %r3, 1; bra.uni LOOP;
OUT: shfl.sync.bfly.b32 %r5, %r4, 1, 31, -1; st.global.b32 [%rd10], %r5;"""
    out: np.ndarray = np.zeros(32, np.uint32)
    kernels.run(body, out, out, outside=TILE)
    np.testing.assert_array_equal(out, ((LANES ^ 1) * ((LANES ^ 1) - 1.0) / 2).astype(np.uint32))


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_barriers_order_warps(seed: int) -> None:
    """Every thread reads what one of another warp wrote."""
    body = f"""{PLACES}
ld.global.b32 %r3, [%rd11]; st.shared.b32 [%r1], %r3; bar.sync 0;
xor.b32 %r4, %r0, 224; mad.lo.u32 %r4, %r4, 4, %r2; ld.shared.b32 %r5, [%r4];
st.global.b32 [%rd10], %r5;"""
    values = RANDOM.integers(0, 2**32, 256, dtype=np.uint32)
    out: np.ndarray = np.zeros(256, np.uint32)
    with executor.settings(seed=seed, races=True):
        kernels.run(body, out, values, outside=TILE, block=(256,))
    np.testing.assert_array_equal(out, values[np.arange(256) ^ 224])


@pytest.mark.parametrize("one", [0, 40, 95, 96])
def test_barriers_ask(one: int) -> None:
    """Whether any thread of the block says yes; by barriers with a name and a number, too."""
    body = f"""{PLACES} setp.eq.u32 %p1, %r0, {one};
bar.red.or.pred %p2, 0, %p1; bar.red.or.pred %p3, 3, 96, %p1;
selp.u32 %r5, 1, 0, %p2; selp.u32 %r6, 2, 0, %p3; add.u32 %r4, %r5, %r6;
st.global.b32 [%rd10], %r4;"""
    out: np.ndarray = np.zeros(96, np.uint32)
    kernels.run(body, out, out, outside=TILE, block=(96,))
    assert set(out.tolist()) == {3 if one < 96 else 0}


@pytest.mark.parametrize("space", ["shared", "global"])
def test_atomics(space: str) -> None:
    target = "%r2" if space == "shared" else "%rd2"
    body = f"""{PLACES} setp.ne.u32 %p1, %r0, 0; @!%p1 st.shared.b32 [%r2], 0; bar.sync 0;
atom.{space}.add.u32 %r3, [{target}], 1; bar.sync 0; atom.{space}.exch.b32 %r4, [{target}], %r0;
st.global.b32 [%rd10], %r3;"""
    out: np.ndarray = np.zeros(64, np.uint32)
    with executor.settings(races=True):
        kernels.run(body, out, np.zeros(1, np.uint32), outside=TILE, block=(64,))
    assert sorted(out.tolist()) == list(range(64))


WRONG = {
    "out of bounds of global memory": ("ld.global.b32 %r3, [%rd2+128];", "in no allocation"),
    "before it": ("ld.global.b32 %r3, [%rd2+-4];", "in no allocation"),
    "out of bounds of shared memory": (
        "st.shared.b32 [%r1+4096], %r0;",
        r"shared address 4096 \+ 4 beyond 4096",
    ),
    "misaligned": ("ld.global.v2.b32 {%r3, %r4}, [%rd2+4];", "not aligned to 8 bytes"),
    "never written": (
        "ld.shared.b32 %r3, [%r1];",
        r"shared address 0 \+ 4 holds what nothing wrote",
    ),
    "a barrier that half of a warp comes to": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 bra END; bar.sync 0; END: bar.sync 1;",
        "wait for others of their warp",
    ),
    "a matrix of half a warp": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 bra END;"
        " ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r3}, [%r2]; END: mov.u32 %r0, 0;",
        "the whole warp, of which lanes have ended|wait for others",
    ),
    "a shuffle from outside of the mask": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.idx.b32 %r3, %r0, 20, 31, 0xFFFF;",
        "reads from lane 20",
    ),
    "trap": ("trap;", "trap"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(name: str) -> None:
    text, message = WRONG[name]
    values: np.ndarray = np.zeros(32, np.uint32)
    with pytest.raises(executor.Fault, match=message) as error:
        kernels.run(PLACES + text, values, values.copy(), outside=TILE)
    assert "block 0,0,0 warp 0 lane" in str(error.value)


def test_a_deadlock_says_who_waits_where() -> None:
    body = PLACES + "setp.lt.u32 %p1, %r0, 32; @%p1 bra END; bar.sync 2, 64; END: mov.u32 %r0, 0;"
    values: np.ndarray = np.zeros(64, np.uint32)
    with pytest.raises(executor.Fault, match="deadlock; the warps: ended at barrier 2"):
        kernels.run(body, values, values.copy(), outside=TILE, block=(64,))


def test_a_loop_without_end_is_stopped() -> None:
    values: np.ndarray = np.zeros(32, np.uint32)
    with (
        executor.settings(most_instructions=100000),
        pytest.raises(executor.Fault, match="more than 100000 instructions"),
    ):
        kernels.run("LOOP: add.u32 %r1, %r1, 1; bra LOOP;", values, values.copy())


@pytest.mark.parametrize(
    ("distance", "order", "block"), [(1, "bar.warp.sync -1;", 32), (32, "bar.sync 0;", 96)]
)
def test_races_in_shared_memory(distance: int, order: str, block: int) -> None:
    """A thread reads what another of its warp, or of the next, wrote."""
    body = f"""{PLACES} setp.lt.u32 %p1, %r0, {block - distance};
st.shared.b32 [%r1], %r0; bar.sync 0; st.shared.b32 [%r1], %r0; {{order}}
@%p1 ld.shared.b32 %r3, [%r1+{4 * distance}];"""
    values: np.ndarray = np.zeros(block, np.uint32)
    with executor.settings(races=True):
        kernels.run(body.format(order=order), values, values, outside=TILE, block=(block,))
        with pytest.raises(executor.Fault, match="race: shared byte"):
            kernels.run(body.format(order=""), values, values, outside=TILE, block=(block,))


@pytest.mark.parametrize("writer", [31, 32], ids=["of the readers", "of another warp"])
def test_a_write_after_anothers_read_is_a_race(writer: int) -> None:
    values: np.ndarray = np.zeros(64, np.uint32)
    body = f"""{PLACES} setp.lt.u32 %p1, %r0, 32; setp.eq.u32 %p2, %r0, 0;
@%p2 st.shared.b32 [%r2], %r0; bar.sync 0; @%p1 ld.shared.b32 %r3, [%r2]; {{sync}}
setp.eq.u32 %p3, %r0, {writer}; @%p3 st.shared.b32 [%r2], %r0;"""
    with executor.settings(races=True):
        kernels.run(body.format(sync="bar.sync 0;"), values, values, outside=TILE, block=(64,))
        with pytest.raises(
            executor.Fault,
            match=r"race: shared byte 0 was (read by (lanes of )?warp 0|written by warp 1)",
        ):
            kernels.run(body.format(sync=""), values, values, outside=TILE, block=(64,))


def test_writers_of_one_value_are_no_race() -> None:
    values: np.ndarray = np.zeros(64, np.uint32)
    body = "st.shared.b32 [tile], {value};"
    with executor.settings(races=True):
        kernels.run(body.format(value=7), values, outside=TILE, block=(64,))
        for block in 2, 33:  # of one warp, of two
            with pytest.raises(executor.Fault, match="race: shared byte 0 was written"):
                kernels.run(body.format(value="%r0"), values, outside=TILE, block=(block,))


@pytest.mark.parametrize("kind", ["two writers", "a reader"])
def test_races_between_blocks(kind: str) -> None:
    """Blocks write one element, or read their neighbour's."""
    store = "st.global.b32 [%rd1], %r0;"
    if kind == "a reader":
        store = """mov.u32 %r5, %ctaid.x; mul.wide.u32 %rd5, %r5, 4; add.s64 %rd5, %rd5, %rd1;
st.global.b32 [%rd5], %r5; ld.global.b32 %r6, [%rd1];"""
    values: np.ndarray = np.zeros(4, np.uint32)
    kernels.run(store, values, grid=(4,), block=(1,))
    with executor.settings(races=True), pytest.raises(executor.Fault, match="race: global byte"):
        kernels.run(store, values, grid=(4,), block=(1,))
