"""Copies on their way: cp.async, tiles of tensors, and barriers that count them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
from ptx import executor, kernels

RANDOM = np.random.default_rng(3)
TILE = ".shared .align 1024 .b8 tile[16384]; .shared .align 8 .b8 barrier[16];"
# %r2 = &tile, %r1 = &tile[16 i], %r3 = &barrier; %rd10 = &out[16 i], %rd11 = &in[16 i] (bytes).
PLACES = """mov.u32 %r2, tile; mad.lo.u32 %r1, %r0, 16, %r2; mov.u32 %r3, barrier;
mul.wide.u32 %rd5, %r0, 16; add.s64 %rd10, %rd1, %rd5; add.s64 %rd11, %rd2, %rd5;"""
BACK = """ld.shared.v4.b32 {%r20, %r21, %r22, %r23}, [%r1];
st.global.v4.b32 [%rd10], {%r20, %r21, %r22, %r23};"""


def arrays(count: int = 128) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(count, np.uint32), RANDOM.integers(0, 2**32, count, dtype=np.uint32)


@pytest.mark.parametrize("arrival", executor.ARRIVALS)
@pytest.mark.parametrize("given", [0, 5, 16])
def test_a_copy_fills_up_with_zeros(arrival: str, given: int) -> None:
    out, values = arrays()
    body = f"""{PLACES} mov.u32 %r4, {given};
cp.async.cg.shared.global [%r1], [%rd11], 16, %r4; cp.async.commit_group; cp.async.wait_group 0;
{BACK}"""
    with executor.settings(arrival=arrival):
        kernels.run(body, out, values, outside=TILE)
    expected = values.view(np.uint8).reshape(32, 16).copy()
    expected[:, given:] = 0
    np.testing.assert_array_equal(out.view(np.uint8).reshape(32, 16), expected)


@pytest.mark.parametrize("pending", [1, 0])
def test_groups_are_waited_for_in_order(pending: int) -> None:
    """Of two groups the first, or both; what has not arrived is NaN."""
    out, values = arrays()
    body = f"""{PLACES}
cp.async.ca.shared.global [%r1], [%rd11], 8; cp.async.commit_group;
cp.async.ca.shared.global [%r1+8], [%rd11+8], 8; cp.async.commit_group;
cp.async.wait_group {pending}; {BACK}"""
    kernels.run(body, out, values, outside=TILE)
    made, given = out.reshape(32, 4), values.reshape(32, 4)
    np.testing.assert_array_equal(made[:, :2], given[:, :2])
    if pending == 0:
        np.testing.assert_array_equal(made, given)
    else:
        assert (made[:, 2:] == 0xFFFFFFFF).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cp.async.cg.shared.global [%r1+8], [%rd11], 16;", "not aligned to 16 bytes"),
        ("cp.async.cg.shared.global [%r1], [%rd11+4], 16;", "source is not aligned"),
        ("cp.async.cg.shared.global [%r1+16384], [%rd11], 16;", "beyond"),
        ("cp.async.cg.shared.global [%r1], [%rd11+16], 16;", "in no allocation"),
        ("mov.u32 %r4, 17; cp.async.cg.shared.global [%r1], [%rd11], 16, %r4;", "src-size 17"),
        ("cp.async.cg.shared.global [%r1], [%rd11], 8;", "a copy of 8 bytes"),
    ],
)
def test_wrong_copies(text: str, message: str) -> None:
    with pytest.raises(executor.Fault, match=message):
        kernels.run(PLACES + text, *arrays(), outside=TILE)


def test_a_copy_that_another_warp_reads_needs_a_barrier() -> None:
    body = f"""{PLACES} st.shared.v4.b32 [%r1], {{{{0, 0, 0, 0}}}}; bar.sync 0;
cp.async.cg.shared.global [%r1], [%rd11], 16; cp.async.commit_group;
cp.async.wait_group 0; {{order}}
xor.b32 %r4, %r0, 32; mad.lo.u32 %r1, %r4, 16, %r2; {BACK.replace("{", "{{").replace("}", "}}")}"""
    out, values = arrays(256)
    with executor.settings(races=True):
        kernels.run(body.format(order="bar.sync 0;"), out, values, outside=TILE, block=(64,))
        np.testing.assert_array_equal(out.reshape(2, 128)[::-1].reshape(-1), values)
        with pytest.raises(executor.Fault, match="race"):
            kernels.run(body.format(order=""), out, values, outside=TILE, block=(64,))


INIT = """setp.eq.u32 %p1, %r0, 0; @%p1 mbarrier.init.shared::cta.b64 [%r3], 1; bar.sync 0;
@!%p1 bra WAIT;"""
WAIT = """WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0; @!%p2 bra WAIT;"""


# ---- tiles


def tensor_map(
    values: np.ndarray, box: Sequence[int], swizzle: int, strides: Sequence[int] | None = None
) -> np.ndarray:
    """The map of a tensor, innermost dimension first as the driver has them: 128 bytes."""
    rank = values.ndim
    room: np.ndarray = np.zeros(256, np.uint8)
    map_ = room[-room.ctypes.data % 64 :][:128]
    kinds = {1: 0, 2: 1, 4: 2}  # unsigned integers
    sizes = (ctypes.c_uint64 * rank)(*values.shape[::-1])
    steps = (ctypes.c_uint64 * rank)(*(strides or values.strides[-2::-1]))
    status = executor.library().cuTensorMapEncodeTiled(
        ctypes.c_void_p(map_.ctypes.data),
        kinds[values.itemsize],
        rank,
        ctypes.c_void_p(values.ctypes.data),
        sizes,
        steps,
        (ctypes.c_uint32 * rank)(*box),
        (ctypes.c_uint32 * rank)(*[1] * rank),
        0,
        {0: 0, 32: 1, 64: 2, 128: 3}[swizzle],
        0,
        0,
    )
    if status:
        raise ValueError(status)
    return map_


COPY = """mov.u32 %r10, 0;
cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
 [%r2], [%rd2, {%r10}], [%r3];"""


def test_a_phase_that_never_completes_is_a_deadlock() -> None:
    out, values = arrays(256)
    body = f"""{PLACES} {INIT}
mbarrier.arrive.expect_tx.shared::cta.b64 %rd20, [%r3], 1040; {COPY} {WAIT} {BACK}"""
    with (
        executor.watched(values),
        pytest.raises(executor.Fault, match="deadlock; the warps: polling polling"),
    ):
        kernels.run(body, out, tensor_map(values, (256,), 0), outside=TILE, block=(64,))


def test_reading_before_the_wait_is_seen() -> None:
    out, values = arrays(256)
    body = f"""{PLACES} {INIT}
mbarrier.arrive.expect_tx.shared::cta.b64 %rd20, [%r3], 1024; {COPY} WAIT: bar.sync 0; {BACK}"""
    with executor.watched(values):
        map_ = tensor_map(values, (256,), 0)
        kernels.run(body, out, map_, outside=TILE, block=(64,))
        assert (out == 0xFFFFFFFF).all(), "late"
        with executor.settings(races=True), pytest.raises(executor.Fault, match="on its way"):
            kernels.run(body, out, map_, outside=TILE, block=(64,))


@pytest.mark.parametrize("arrival", executor.ARRIVALS)
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("corner", [(0, 0, 0), (16, 3, 1), (-8, -2, 0), (40, 6, 1)])
def test_tiles_of_tensors(corner: tuple[int, int, int], swizzle: int, arrival: str) -> None:
    """A box of an image (y, x, c), with zeros beyond its borders."""
    values = RANDOM.integers(1, 2**16, (2, 9, 48), dtype=np.uint16)
    box = (swizzle // 2 or 16, 4, 2)
    count = int(np.prod(box))
    map_ = tensor_map(values, box, swizzle)
    out: np.ndarray = np.zeros(count, np.uint16)
    x, y, z = corner
    body = f"""{PLACES} {INIT}
mbarrier.arrive.expect_tx.shared::cta.b64 %rd20, [%r3], {2 * count};
mov.u32 %r10, {x}; mov.u32 %r11, {y}; mov.u32 %r12, {z};
cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
 [%r2], [%rd2, {{%r10, %r11, %r12}}], [%r3];
{WAIT} setp.ge.u32 %p3, %r0, {count // 8}; @%p3 bra END; {BACK} END: mov.u32 %r0, 0;"""
    how = executor.settings(arrival=arrival, races=True, seed=arrival == "random")
    with executor.watched(values), how:
        kernels.run(body, out, map_, outside=TILE, block=(128,))
    expected: np.ndarray = np.zeros(box[::-1], np.uint16)
    for index in np.ndindex(expected.shape):
        place = (z + index[0], y + index[1], x + index[2])
        if all(0 <= p < n for p, n in zip(place, values.shape, strict=True)):
            expected[index] = values[place]
    made: np.ndarray = np.zeros_like(expected).reshape(-1)
    for i in range(count):
        at = 2 * i
        made[i] = out[(at ^ (at >> 7 & max(0, swizzle // 16 - 1)) << 4) // 2]
    np.testing.assert_array_equal(made.reshape(expected.shape), expected)


def test_maps_that_the_driver_refuses() -> None:
    values: np.ndarray = np.zeros((8, 24), np.uint16)
    with pytest.raises(ValueError, match="1"):
        tensor_map(values, (300, 1), 0)
    with pytest.raises(ValueError, match="1"):
        tensor_map(values, (12, 1), 0)  # 24 bytes
    with pytest.raises(ValueError, match="1"):
        tensor_map(values, (16, 1), 0, strides=(40,))  # no multiple of 16
    with pytest.raises(ValueError, match="1"):
        tensor_map(values, (64, 1), 64)  # 128 bytes


def test_what_is_no_map() -> None:
    out, values = arrays()
    body = f"""{PLACES} {INIT} mov.u32 %r10, 0;
cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes
 [%r2], [%rd4, {{%r10}}], [%r3]; WAIT: mov.u32 %r0, 0;"""
    room: np.ndarray = np.zeros(256, np.uint8)
    aligned = room[-room.ctypes.data % 64 :][:128]
    with pytest.raises(executor.Fault, match="no tensor map of rank 1"):
        kernels.run(body, out, values, values, aligned, outside=TILE)
