"""Matrices over a warp. The tables are those of the PTX ISA's figures, "Matrix Fragments for
mma.m16n8k16" and the like, written here a second time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ptx import executor, kernels

RANDOM = np.random.default_rng(1)


def table(rule: Callable[[int, int, int], tuple[int, int]], elements: int) -> np.ndarray:
    """(row, column) of element i of lane (g, t) of a fragment: [lane][element][2]."""
    return np.array([[rule(lane // 4, lane % 4, i) for i in range(elements)] for lane in range(32)])


def a16(depth: int) -> np.ndarray:
    return table(lambda g, t, i: (g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4)), depth // 2)


def b16(depth: int) -> np.ndarray:
    return table(lambda g, t, i: (2 * t + i % 2 + 8 * (i // 2), g), depth // 4)


def a32(depth: int) -> np.ndarray:
    return table(lambda g, t, i: (g + 8 * (i % 2), t + 4 * (i // 2)), depth // 2)


def b32(depth: int) -> np.ndarray:
    return table(lambda g, t, i: (t + 4 * i, g), depth // 4)


D = table(lambda g, t, i: (g + 8 * (i // 2), 2 * t + i % 2), 4)
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}


def bits_of(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "tf32":
        return values.astype(np.float32).view(np.uint32)
    halves = torch.from_numpy(values).to(DTYPES[kind])
    return halves.view(torch.int16).numpy().view(np.uint16)


def fragment(matrix: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Registers of all lanes: [lane][register]."""
    return np.ascontiguousarray(matrix[places[..., 0], places[..., 1]]).view(np.uint32)


def test_the_tables_name_every_element_once() -> None:
    for places, size in ((a16(16), 256), (b16(16), 128), (a32(8), 128), (b32(8), 64), (D, 128)):
        assert len({tuple(place) for place in places.reshape(-1, 2).tolist()}) == size


def product(kind: str, depth: int, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """D (16, 8) of one mma."""
    half = kind != "tf32"
    left = fragment(bits_of(a, kind), a16(depth) if half else a32(depth))
    right = fragment(bits_of(b, kind), b16(depth) if half else b32(depth))
    sums = fragment(c.astype(np.float32), D)
    lines = ["mul.wide.u32 %rd30, %r0, 16; add.s64 %rd31, %rd4, %rd30; add.s64 %rd32, %rd1, %rd30;"]
    for name, count, pointer in (("%r1", left.shape[1], 2), ("%r2", right.shape[1], 3)):
        lines.append(f"mul.wide.u32 %rd33, %r0, {4 * count}; add.s64 %rd33, %rd33, %rd{pointer};")
        lines += [f"ld.global.b32 {name}{i}, [%rd33+{4 * i}];" for i in range(count)]
    lines.append("ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd31];")
    registers = [
        ", ".join(f"{name}{i}" for i in range(count))
        for name, count in (("%r1", left.shape[1]), ("%r2", right.shape[1]))
    ]
    lines.append(
        f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 {{%f5, %f6, %f7, %f8}}, "
        f"{{{registers[0]}}}, {{{registers[1]}}}, {{%f1, %f2, %f3, %f4}};"
    )
    lines.append("st.global.v4.f32 [%rd32], {%f5, %f6, %f7, %f8};")
    result: np.ndarray = np.zeros((32, 4), np.float32)
    kernels.run("\n".join(lines), result, left, right, sums)
    made: np.ndarray = np.full((16, 8), np.nan)
    made[D[..., 0], D[..., 1]] = result
    return made


SHAPES = [("f16", 16), ("bf16", 16), ("f16", 8), ("tf32", 8)]


@pytest.mark.parametrize(("kind", "depth"), SHAPES)
def test_products(kind: str, depth: int) -> None:
    # Small integers: sums are exact, and no two places of a matrix can be taken for each other.
    a = RANDOM.integers(-60, 61, (16, depth)).astype(float)
    b = RANDOM.integers(-60, 61, (depth, 8)).astype(float)
    c = RANDOM.integers(-1000, 1001, (16, 8)).astype(float)
    np.testing.assert_array_equal(product(kind, depth, a, b, c), a @ b + c)


@pytest.mark.parametrize("kind", DTYPES)
def test_products_of_fractions(kind: str) -> None:
    depth = 8 if kind == "tf32" else 16
    a, b = RANDOM.normal(size=(16, depth)), RANDOM.normal(size=(depth, 8))
    made = product(kind, depth, a, b, np.zeros((16, 8)))
    read = (
        [(bits_of(x, kind) & 0xFFFFE000).view(np.float32).astype(float) for x in (a, b)]
        if kind == "tf32"
        else [torch.from_numpy(x).to(DTYPES[kind]).double().numpy() for x in (a, b)]
    )
    np.testing.assert_array_equal(made, (read[0] @ read[1]).astype(np.float32))


def test_tensor_cores_drop_the_low_bits_of_a_float() -> None:
    a, b = np.zeros((16, 8)), np.zeros((8, 8))
    a[0, 0] = b[0, 0] = 1 + 2**-10 - 2**-23
    assert product("tf32", 8, a, b, np.zeros((16, 8)))[0, 0] == 1


def test_sums_may_be_rounded_towards_zero() -> None:
    a, b, c = np.ones((16, 16)), np.full((16, 8), 2**-24 * 0.9375 / 16), np.ones((16, 8))
    b *= 16
    c[:] = 1 + 2**-23
    with executor.settings(truncate_products=True):
        down = product("bf16", 16, a, b, c)
    assert (down <= 1 + 2**-23 + 16 * 2**-24).all()
    assert (down <= product("bf16", 16, a, b, c)).all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("instruction", ["ldmatrix", "stmatrix"])
def test_matrices_of_shared_memory(instruction: str, count: int, transposed: bool) -> None:
    stored = instruction == "stmatrix"
    matrices = RANDOM.integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    out: np.ndarray = np.zeros((32, 4), np.uint32) if not stored else np.zeros_like(matrices)
    values = ", ".join(f"%r{10 + i}" for i in range(count))
    trans = ".trans" if transposed else ""
    whole = "mul.wide.u32 %rd5, %r0, 16; add.s64 %rd6, %rd1, %rd5; add.s64 %rd7, %rd2, %rd5;"
    address = "mov.u32 %r1, tile; mad.lo.u32 %r2, %r0, 16, %r1;"
    if stored:
        body = f"""{whole} {address}
ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd7];
st.shared.v4.b32 [%r2], {{0, 0, 0, 0}}; bar.sync 0;
stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r2], {{{values}}}; bar.sync 0;
ld.shared.v4.b32 {{%r20, %r21, %r22, %r23}}, [%r2];
st.global.v4.b32 [%rd6], {{%r20, %r21, %r22, %r23}};"""
    else:
        body = f"""{whole} {address}
ld.global.v4.b32 {{%r20, %r21, %r22, %r23}}, [%rd7];
st.shared.v4.b32 [%r2], {{%r20, %r21, %r22, %r23}}; bar.sync 0;
mov.b32 %r10, 0; mov.b32 %r11, 0; mov.b32 %r12, 0; mov.b32 %r13, 0;
ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{values}}}, [%r2];
st.global.v4.b32 [%rd6], {{%r10, %r11, %r12, %r13}};"""
    places = table(lambda g, t, i: (g, 2 * t + i), 2)
    expected_registers: np.ndarray = np.zeros((32, 4), np.uint32)
    for i in range(count):
        matrix = matrices[i].T if transposed else matrices[i]
        expected_registers[:, i] = fragment(matrix, places)[:, 0]
    given = expected_registers if stored else matrices
    kernels.run(body, out, given, outside=".shared .align 16 .b8 tile[512];")
    if stored:
        np.testing.assert_array_equal(out[:count], matrices[:count])
    else:
        np.testing.assert_array_equal(out, expected_registers)


# ---- wgmma: the canonical layouts, by the ISA's words: rows of 32, 64 or 128 bytes in groups of
# eight, of which units of 16 bytes are exchanged by the row's number.

SWIZZLES = {0: 0, 32: 3, 64: 2, 128: 1}


def laid_out(matrix: np.ndarray, swizzle: int) -> tuple[np.ndarray, int, int]:
    """A K-major operand (rows, k) of two bytes in shared memory; and both offsets in bytes."""
    rows, depth = matrix.shape
    width = swizzle or 16
    per = width // 2
    chunks = depth // per
    memory: np.ndarray = np.zeros(rows * depth, np.uint16)
    for row in range(rows):
        for k in range(depth):
            if swizzle:
                at = row // 8 * 8 * width + row % 8 * width + k % per * 2
                at += k // per * rows * width
                at ^= (at >> 7 & (swizzle // 16 - 1)) << 4
            else:
                at = k // per * rows * 16 + row // 8 * 128 + row % 8 * 16 + k % per * 2
            memory[at // 2] = matrix[row, k]
    leading = rows * 16 if not swizzle else rows * width * min(1, chunks - 1)
    return memory, leading, 8 * width


def wgmma(
    kind: str, n: int, swizzle: int, arrival: str, from_registers: bool
) -> tuple[np.ndarray, np.ndarray]:
    depth = max(16, swizzle // 2)
    a = RANDOM.integers(-30, 31, (64, depth)).astype(float)
    b = RANDOM.integers(-30, 31, (n, depth)).astype(float)
    c = RANDOM.integers(-100, 101, (64, n)).astype(np.float32)
    left, a_leading, stride = laid_out(bits_of(a, kind), swizzle)
    right, b_leading, _ = laid_out(bits_of(b, kind), swizzle)
    both = np.concatenate([left, right])
    mode = SWIZZLES[swizzle] << 62

    def descriptor(leading: int) -> int:
        return mode | stride // 16 << 32 | leading // 16 << 16

    sums = n // 2
    listed = ", ".join(f"%f{i}" for i in range(sums))
    lines = [
        "mov.u32 %r1, tile; cvt.u64.u32 %rd10, %r1;",
        # All threads copy the operands.
        f"mov.u32 %r2, %r0; COPY: setp.ge.u32 %p1, %r2, {both.nbytes // 4}; @%p1 bra DONE;",
        "mul.wide.u32 %rd11, %r2, 4; add.s64 %rd12, %rd3, %rd11; ld.global.b32 %r3, [%rd12];",
        "mad.lo.u32 %r4, %r2, 4, %r1; st.shared.b32 [%r4], %r3; add.u32 %r2, %r2, 128; bra COPY;",
        "DONE: bar.sync 0;",
        f"mul.wide.u32 %rd13, %r0, {4 * sums};",
        "add.s64 %rd14, %rd1, %rd13; add.s64 %rd15, %rd2, %rd13;",
        *(f"ld.global.f32 %f{i}, [%rd15+{4 * i}];" for i in range(sums)),
        f"shr.u64 %rd16, %rd10, 4; add.u64 %rd17, %rd16, {descriptor(a_leading)};",
        f"add.u64 %rd18, %rd10, {left.nbytes}; shr.u64 %rd18, %rd18, 4;",
        f"add.u64 %rd18, %rd18, {descriptor(b_leading)};",
        "setp.eq.u32 %p2, 0, 0; fence.proxy.async; wgmma.fence.sync.aligned;",
    ]
    if from_registers:
        lines.append("mul.wide.u32 %rd20, %r0, 16; add.s64 %rd20, %rd4, %rd20;")
    for step in range(depth // 16):
        # Along k: 32 bytes further within a row, or two chunks of 16 bytes.
        a_step = 2 * step if swizzle else 2 * step * a_leading // 16
        b_step = 2 * step if swizzle else 2 * step * b_leading // 16
        lines.append(f"add.u64 %rd21, %rd17, {a_step}; add.u64 %rd22, %rd18, {b_step};")
        operand, tail = "%rd21", "0, 0"
        if from_registers:
            lines.append(f"ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd20+{128 * 16 * step}];")
            operand, tail = "{%r10, %r11, %r12, %r13}", "0"
        lines.append(
            f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind} {{{listed}}}, "
            f"{operand}, %rd22, %p2, 1, 1, {tail};"
        )
        if from_registers:  # the registers are read until the product has arrived
            lines.append("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;")
    lines += [
        "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
        *(f"st.global.f32 [%rd14+{4 * i}], %f{i};" for i in range(sums)),
    ]
    places = table(lambda g, t, i: (g + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * t + i % 2), sums)
    given = np.stack(
        [fragment(c[16 * warp : 16 * warp + 16], places).view(np.float32) for warp in range(4)]
    )
    fragments = np.stack(
        [
            fragment(bits_of(a[16 * warp : 16 * warp + 16, k : k + 16], kind), a16(16))
            for k in range(0, depth, 16)
            for warp in range(4)
        ]
    )
    made: np.ndarray = np.zeros_like(given)
    with executor.settings(arrival=arrival):
        kernels.run(
            "\n".join(lines),
            made,
            given,
            both,
            fragments,
            outside=f".shared .align 1024 .b8 tile[{both.nbytes}];",
            block=(128,),
        )
    result: np.ndarray = np.full((64, n), np.nan, np.float32)
    for warp in range(4):
        result[16 * warp : 16 * warp + 16][places[..., 0], places[..., 1]] = made[warp]
    return result, a @ b.T + c


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_products_of_a_warpgroup(kind: str, swizzle: int) -> None:
    made, expected = wgmma(kind, 24, swizzle, "late", False)
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("arrival", executor.ARRIVALS)
@pytest.mark.parametrize("from_registers", [False, True])
def test_products_of_a_warpgroup_arrive(arrival: str, from_registers: bool) -> None:
    made, expected = wgmma("f16", 64, 128, arrival, from_registers)
    np.testing.assert_array_equal(made, expected)


def test_products_in_turns_keep_their_sums() -> None:
    """Two sums of a matrix of ones, each added to twice before anything is waited for."""
    sums = [", ".join(f"%f{i}" for i in range(first, first + 4)) for first in (0, 4)]
    product = (
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{{}}}, %rd5, %rd5, %p1, 1, 1, 0, 0;"
    )
    body = f"""mov.u32 %r1, tile; mad.lo.u32 %r2, %r0, 16, %r1; mov.b32 %r3, 0x3c003c00;
st.shared.v4.b32 [%r2], {{%r3, %r3, %r3, %r3}}; bar.sync 0; fence.proxy.async;
shr.u32 %r4, %r1, 4; cvt.u64.u32 %rd5, %r4; setp.eq.u32 %p1, 0, 0;
{" ".join(f"mov.f32 %f{i}, 0f3F800000;" for i in range(8))} wgmma.fence.sync.aligned;
{" ".join(product.format(each) for each in 2 * sums)}
wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
mul.wide.u32 %rd6, %r0, 32; add.s64 %rd6, %rd6, %rd1;
st.global.v4.f32 [%rd6], {{{sums[0]}}}; st.global.v4.f32 [%rd6+16], {{{sums[1]}}};"""
    made: np.ndarray = np.zeros((128, 8), np.float32)
    kernels.run(body, made, outside=".shared .align 1024 .b8 tile[2048];", block=(128,))
    assert (made == 1 + 2 * 16).all()
