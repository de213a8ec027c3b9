"""Instructions of single lanes, each against a definition of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ptx import executor, kernels

RANDOM = np.random.default_rng(0)
EDGES = [0, 1, 2, 31, 32, 33, 63, 64, 127, 128, 255, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31]
EDGES += [2**31 + 1, 2**32 - 1, 2**32 - 2]


def integers(bits: int) -> np.ndarray:
    """(32,) random ones, and those that end somewhere."""
    values = [*EDGES, *RANDOM.integers(0, 2**bits, 32, dtype=np.uint64).tolist()]
    RANDOM.shuffle(values)
    return np.array([value % 2**bits for value in values[:32]], f"uint{bits}")


def signed(value: int, bits: int) -> int:
    value %= 2**bits
    return value - 2**bits if value >= 2 ** (bits - 1) else value


def divided(a: int, b: int) -> int:
    quotient = abs(a) // abs(b) if b else -1
    return quotient if b == 0 or (a < 0) == (b < 0) else -quotient


BINARY: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, bits: a + b,
    "sub": lambda a, b, bits: a - b,
    "mul.lo": lambda a, b, bits: a * b,
    "mul.hi": lambda a, b, bits: a * b >> bits,
    "min": lambda a, b, bits: min(a, b),
    "max": lambda a, b, bits: max(a, b),
    "div": lambda a, b, bits: divided(a, b),
    "rem": lambda a, b, bits: a - divided(a, b) * b if b else a,
}


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64", "u16", "s16"])
@pytest.mark.parametrize("name", BINARY)
def test_integers(name: str, kind: str) -> None:
    bits = int(kind[1:])
    register = {16: "h", 32: "r", 64: "rd"}[bits]
    a, b = integers(bits), integers(bits)
    result = kernels.of_lanes(
        f"{name}.{kind} {{d}}, {{0}}, {{1}};", [a, b], register, [register] * 2
    )
    for x, y, z in zip(a.tolist(), b.tolist(), result.tolist(), strict=True):
        if kind[0] == "s":
            x, y = signed(x, bits), signed(y, bits)
        assert z == BINARY[name](x, y, bits) % 2**bits, (x, y)


@pytest.mark.parametrize("kind", ["u32", "s32", "u16", "s16"])
def test_wide_products(kind: str) -> None:
    """Of 32 bits plus a third value."""
    bits = int(kind[1:])
    narrow, wide = ("r", "rd") if bits == 32 else ("h", "r")
    a, b, c = integers(bits), integers(bits), integers(2 * bits)
    text = f"mad.wide.{kind} {{d}}, {{0}}, {{1}}, {{2}};"
    if bits == 16:
        text, c = f"mul.wide.{kind} {{d}}, {{0}}, {{1}};", 0 * c
    result = kernels.of_lanes(text, [a, b, c], wide, [narrow, narrow, wide])
    for x, y, z, got in zip(a.tolist(), b.tolist(), c.tolist(), result.tolist(), strict=True):
        if kind[0] == "s":
            x, y = signed(x, bits), signed(y, bits)
        assert got == (x * y + z) % 2 ** (2 * bits)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shl.b32", lambda a, n: a << n if n < 32 else 0),
        ("shr.u32", lambda a, n: a >> n),
        ("shr.s32", lambda a, n: signed(a, 32) >> min(n, 31)),
    ],
)
def test_shifts(name: str, expected: Callable[[int, int], int]) -> None:
    a = integers(32)
    n = np.array([*range(16), *range(24, 36), 63, 64, 255, 2**32 - 1], np.uint32)
    result = kernels.of_lanes(f"{name} {{d}}, {{0}}, {{1}};", [a, n], "r", ["r", "r"])
    for x, y, z in zip(a.tolist(), n.tolist(), result.tolist(), strict=True):
        assert z == expected(x, y) % 2**32


def test_funnel_shifts() -> None:
    low, high = integers(32), integers(32)
    n = np.arange(20, 52, dtype=np.uint32)
    result = kernels.of_lanes("shf.r.wrap.b32 {d}, {0}, {1}, {2};", [low, high, n], "r", ["r"] * 3)
    for a, b, c, got in zip(low.tolist(), high.tolist(), n.tolist(), result.tolist(), strict=True):
        assert got == ((b << 32 | a) >> c % 32) % 2**32


def test_logic_of_three() -> None:
    a, b, c = integers(32), integers(32), integers(32)
    for table in (0x96, 0xE8, 0xCA, 0x01, 0x80):
        result = kernels.of_lanes(
            f"lop3.b32 {{d}}, {{0}}, {{1}}, {{2}}, {table};", [a, b, c], "r", ["r"] * 3
        )
        expected = np.zeros(32, np.uint32)
        for bit in range(32):
            row = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
            expected |= (np.uint32(table) >> row & 1) << np.uint32(bit)
        np.testing.assert_array_equal(result, expected)


def test_bytes_are_permuted() -> None:
    a, b = integers(32), integers(32)
    selector = RANDOM.integers(0, 2**16, 32).astype(np.uint32)
    result = kernels.of_lanes("prmt.b32 {d}, {0}, {1}, {2};", [a, b, selector], "r", ["r"] * 3)
    for x, y, s, got in zip(
        a.tolist(), b.tolist(), selector.tolist(), result.tolist(), strict=True
    ):
        source = (y << 32 | x).to_bytes(8, "little")
        chosen = [source[s >> 4 * i & 7] for i in range(4)]
        signs = [s >> 4 * i & 8 for i in range(4)]
        made = [
            255 * (byte >> 7) if sign else byte for byte, sign in zip(chosen, signs, strict=True)
        ]
        assert got == int.from_bytes(bytes(made), "little")


def test_bit_fields() -> None:
    value, into = integers(32), integers(32)
    position, length = np.arange(32, dtype=np.uint32), np.arange(32, 0, -1).astype(np.uint32)
    extracted = kernels.of_lanes(
        "bfe.u32 {d}, {0}, {1}, {2};", [value, position, length], "r", ["r"] * 3
    )
    with_sign = kernels.of_lanes(
        "bfe.s32 {d}, {0}, {1}, {2};", [value, position, length], "r", ["r"] * 3
    )
    inserted = kernels.of_lanes(
        "bfi.b32 {d}, {0}, {1}, {2}, {3};", [value, into, position, length], "r", ["r"] * 4
    )
    for i in range(32):
        v, w, p, n = int(value[i]), int(into[i]), int(position[i]), int(length[i])
        field = v >> p & (2**n - 1)
        assert extracted[i] == field
        sign = v >> min(p + n - 1, 31) & 1
        assert with_sign[i] == (field | (-1 << min(n, 32 - p) if sign else 0)) % 2**32
        mask = (2**n - 1) << p & 0xFFFFFFFF
        assert inserted[i] == (w & ~mask | v << p & mask) % 2**32


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clz.b32", lambda x: 32 - x.bit_length()),
        ("not.b32", lambda x: ~x),
        ("neg.s32", lambda x: -x),
        ("abs.s32", lambda x: abs(signed(x, 32))),
    ],
)
def test_of_one_integer(name: str, expected: Callable[[int], int]) -> None:
    values = integers(32)
    result = kernels.of_lanes(f"{name} {{d}}, {{0}};", [values], "r", ["r"])
    assert result.tolist() == [expected(x) % 2**32 for x in values.tolist()]


NUMBERS = np.array(
    [
        *(0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, 3.5, 1e-45, -1e-40, 65504, 65519.9, 65520, -7e4),
        *(1e-8, 6e-8, 2.98e-8, 2.9802323e-8, 1e30, -1e38, 3.4e38, np.inf, -np.inf, np.nan),
        *(1.00048828125, 1.0009765625, 2**-24, 3 * 2**-26, 1 / 3, 2**31, -(2.0**31)),
    ],
    np.float32,
)


def same(result: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(result[number], expected[number])
    np.testing.assert_array_equal(np.signbit(result[number]), np.signbit(expected[number]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversions_of_halves(dtype: torch.dtype) -> None:
    kind = "f16" if dtype == torch.float16 else "bf16"
    bits = kernels.of_lanes(f"cvt.rn.{kind}.f32 {{d}}, {{0}};", [NUMBERS], "h", ["f"])
    expected = torch.from_numpy(NUMBERS).to(dtype)
    same(
        torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy(), expected.float().numpy()
    )
    back = kernels.of_lanes(f"cvt.f32.{kind} {{d}}, {{0}};", [bits], "f", ["h"])
    same(back, expected.float().numpy())
    two = kernels.of_lanes(
        f"cvt.rn.{kind}x2.f32 {{d}}, {{0}}, {{1}};", [NUMBERS[::-1], NUMBERS], "r", ["f", "f"]
    )
    low, high = (two & 0xFFFF).astype(np.uint16), (two >> 16).astype(np.uint16)
    np.testing.assert_array_equal(low, bits)
    np.testing.assert_array_equal(high, bits[::-1])


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float16, "rz"), (torch.float16, "rm"), (torch.float16, "rp"), (torch.bfloat16, "rz")],
)
def test_directed_roundings(dtype: torch.dtype, rounding: str) -> None:
    """Between its neighbours in the format: the one on the right side."""
    kind = "f16" if dtype == torch.float16 else "bf16"
    values = RANDOM.normal(size=32).astype(np.float32) * 100
    bits = kernels.of_lanes(f"cvt.{rounding}.{kind}.f32 {{d}}, {{0}};", [values], "h", ["f"])
    result = torch.from_numpy(bits.view(np.int16)).view(dtype)
    exact, made = torch.from_numpy(values).double(), result.double()
    nearest = torch.from_numpy(values).to(dtype).double()
    assert (
        (made - exact).abs() <= 2 * (nearest - exact).abs().clamp_min(exact.abs() * 2**-8)
    ).all()
    if rounding == "rz":
        assert (made.abs() <= exact.abs()).all()
    else:
        assert ((made <= exact) if rounding == "rm" else (made >= exact)).all()


def test_two_sums_in_one_register() -> None:
    x, y = np.array([0x1FFFF, 0xFFFF0001, 5], np.uint32), np.array([1, 0x1FFFF, 3], np.uint32)
    made = kernels.of_lanes(
        "add.s16x2 {d}, {0}, {1};", [x.repeat(11)[:32], y.repeat(11)[:32]], "r", ["r", "r"]
    )
    np.testing.assert_array_equal(made[[0, 11, 22]], [0x10000, 0, 8])


def test_tf32_is_rounded_away_from_zero_at_a_tie() -> None:
    values = np.array(
        [1 + 2**-11, -(1 + 2**-11), 1 + 2**-11 - 2**-23, 1 + 2**-10, 3 + 2**-10] + [0.1] * 27
    )
    values = values.astype(np.float32)
    result = kernels.of_lanes("cvt.rna.tf32.f32 {d}, {0};", [values], "r", ["f"]).view(np.float32)
    assert result[:5].tolist() == [1 + 2**-10, -(1 + 2**-10), 1, 1 + 2**-10, 3 + 2**-9]
    bits = values.view(np.uint32)
    np.testing.assert_array_equal(result.view(np.uint32), bits + 0x1000 & 0xFFFFE000)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "u16", "s8", "u8"])
@pytest.mark.parametrize("rounding", ["rni", "rzi", "rmi", "rpi"])
def test_floats_to_integers(kind: str, rounding: str) -> None:
    bits = int(kind[1:])
    register = "rd" if bits == 64 else "r"
    result = kernels.of_lanes(
        f"cvt.{rounding}.{kind}.f32 {{d}}, {{0}};", [NUMBERS], register, ["f"]
    )
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind[0] == "s" else (0, 2**bits - 1)
    way: Any = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding]
    for value, got in zip(NUMBERS.tolist(), result.tolist(), strict=True):
        if np.isnan(value):
            expected = 1 << 63 if bits == 64 else 0
        elif np.isinf(value):
            expected = most if value > 0 else least
        else:
            expected = min(max(int(way(value)), least), most)
        assert got % 2**bits == expected % 2**bits, value


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_integers_to_floats(kind: str) -> None:
    bits = int(kind[1:])
    values = integers(bits)
    signs = values.view(f"int{bits}") if kind[0] == "s" else values
    register = "rd" if bits == 64 else "r"
    result = kernels.of_lanes(f"cvt.rn.f32.{kind} {{d}}, {{0}};", [values], "f", [register])
    np.testing.assert_array_equal(result, signs.astype(np.float32))


def test_saturation() -> None:
    values = NUMBERS.copy()
    result = kernels.of_lanes("cvt.sat.f32.f32 {d}, {0};", [values], "f", ["f"])
    expected = np.where(np.isnan(values), 0, np.clip(values, 0, 1))
    np.testing.assert_array_equal(result, expected)
    wide = np.array([-1, -129, 127, 128, 255, 256, 2**31 - 1, -(2**31)] * 4, np.int32)
    for kind, ends in (("s8", (-128, 127)), ("u8", (0, 255))):
        made = kernels.of_lanes(
            f"cvt.sat.{kind}.s32 {{d}}, {{0}};", [wide.view(np.uint32)], "r", ["r"]
        )
        assert (made.view(np.int32) == np.clip(wide, *ends)).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("add.f32", lambda a, b: a + b),
        ("sub.f32", lambda a, b: a - b),
        ("mul.f32", lambda a, b: a * b),
        ("div.rn.f32", lambda a, b: a / b),
        ("min.f32", np.fmin),
        ("max.f32", np.fmax),
        ("min.NaN.f32", np.minimum),
        ("max.NaN.f32", np.maximum),
    ],
)
@np.errstate(all="ignore")
def test_floats(name: str, expected: Callable[..., np.ndarray]) -> None:
    a, b = NUMBERS, RANDOM.permutation(NUMBERS)
    b = np.where((a == 0) & (b == 0), 1, b).astype(np.float32)  # the sign of a zero is tested below
    same(kernels.of_lanes(f"{name} {{d}}, {{0}}, {{1}};", [a, b], "f", ["f", "f"]), expected(a, b))


def test_minus_zero_is_less() -> None:
    a, b = np.array([0, -0.0] * 16, np.float32), np.array([-0.0, 0] * 16, np.float32)
    least = kernels.of_lanes("min.f32 {d}, {0}, {1};", [a, b], "f", ["f", "f"])
    most = kernels.of_lanes("max.f32 {d}, {0}, {1};", [a, b], "f", ["f", "f"])
    assert np.signbit(least).all()
    assert not np.signbit(most).any()


def test_a_fused_product_is_rounded_once() -> None:
    a = np.full(32, 1 + 2**-12, np.float32)
    c = np.full(32, -(1 + 2**-11), np.float32)
    result = kernels.of_lanes("fma.rn.f32 {d}, {0}, {0}, {1};", [a, c], "f", ["f", "f"])
    assert (result == np.float32(2**-24)).all()


def test_a_sign_is_copied() -> None:
    signs = np.resize(np.float32([1, -1, 0, -0.0, np.inf, -np.inf]), 32)
    values = RANDOM.normal(size=32).astype(np.float32)
    made = kernels.of_lanes("copysign.f32 {d}, {0}, {1};", [signs, values], "f", ["f", "f"])
    assert (made == np.copysign(values, signs)).all()


def test_subnormals_are_flushed_where_it_says_so() -> None:
    tiny = np.full(32, 1e-40, np.float32)
    kept = kernels.of_lanes("add.f32 {d}, {0}, {0};", [tiny], "f", ["f"])
    flushed = kernels.of_lanes("add.ftz.f32 {d}, {0}, {0};", [tiny], "f", ["f"])
    assert (kept > 0).all()
    assert (flushed == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma.rn", "min", "max"])
def test_halves_in_pairs(dtype: torch.dtype, name: str) -> None:
    kind = "f16x2" if dtype == torch.float16 else "bf16x2"
    values = [torch.from_numpy(RANDOM.normal(size=64)).to(dtype) for _ in range(3)]
    count = 3 if name == "fma.rn" else 2
    inputs = [x.view(torch.int16).numpy().view(np.uint32) for x in values[:count]]
    slots = ", ".join(f"{{{i}}}" for i in range(count))
    made = kernels.of_lanes(f"{name}.{kind} {{d}}, {slots};", inputs, "r", ["r"] * count)
    a, b, c = (x.double() for x in values)
    exact = {
        "add": a + b,
        "sub": a - b,
        "mul": a * b,
        "fma.rn": a * b + c,
        "min": torch.minimum(a, b),
        "max": torch.maximum(a, b),
    }[name]
    result = torch.from_numpy(made.view(np.int16)).view(dtype)
    assert torch.equal(result, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_in_pairs_are_compared(dtype: torch.dtype) -> None:
    kind = "f16x2" if dtype == torch.float16 else "bf16x2"
    values = [torch.randint(-2, 3, (64,)).to(dtype) for _ in range(2)]
    values[0][:5] = torch.tensor([0.0, -0.0, torch.nan, torch.inf, 1.0])
    values[1][:5] = torch.tensor([-0.0, 0.0, 1.0, 65504.0, torch.nan])
    inputs = [x.view(torch.int16).numpy().view(np.uint32) for x in values]
    made = kernels.of_lanes(f"set.gt.u32.{kind} {{d}}, {{0}}, {{1}};", inputs, "r", ["r", "r"])
    expected = np.where((values[0] > values[1]).numpy(), 0xFFFF, 0)
    assert (made.view(np.uint16) == expected).all()


COMPARISONS = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@pytest.mark.parametrize("kind", ["f32", "bf16"])
@pytest.mark.parametrize("unordered", ["", "u"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name: str, unordered: str, kind: str) -> None:
    a, b = NUMBERS, np.concatenate([NUMBERS[1:], NUMBERS[:1]])
    b[::3] = a[::3]
    given, registers = [a, b], ["f", "f"]
    if kind == "bf16":  # the upper half of a float
        given = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b)]
        a, b = ((bits.astype(np.uint32) << 16).view(np.float32) for bits in given)
        registers = ["h", "h"]
    text = f"setp.{name}{unordered}.{kind} %p1, {{0}}, {{1}}; selp.u32 {{d}}, 1, 0, %p1;"
    result = kernels.of_lanes(text, given, "r", registers)
    with np.errstate(invalid="ignore"):
        expected = COMPARISONS[name](a, b)
    if unordered:
        expected = expected | np.isnan(a) | np.isnan(b)
    np.testing.assert_array_equal(result, expected)


def test_pieces_of_a_register() -> None:
    a = integers(32)
    text = "mov.b32 {{%h20, %h21}}, {0}; mov.b32 {d}, {{%h21, %h20}};"
    result = kernels.of_lanes(text, [a], "r", ["r"])
    np.testing.assert_array_equal(result, a >> 16 | a << 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frobnicate.b32 %r1, %r2;", "unknown instruction frobnicate"),
        ("add.sat.s32 %r1, %r2, %r3;", "unknown modifier .sat"),
        ("add.s32 %r1, %r2;", "2 operands; expected are 3"),
        ("add.s32 %rd1, %r2, %r3;", "%rd1 has 64 bits, not 32"),
        ("add.s32 %r1, %r2, %x3;", "unknown name %x3"),
        ("bra NOWHERE;", "no label NOWHERE"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r2}, {%f2};", "m8n8k4"),
    ],
)
def test_what_is_not_known_is_an_error_that_names_it(text: str, message: str) -> None:
    with pytest.raises(executor.Fault, match=message) as error:
        kernels.run(text, np.zeros(1), np.zeros(1))
    assert ".ptx:1" in str(error.value), "file and line"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".version 12.0\n.target sm_90\n", "bad.ptx:1: PTX of version 12.0"),
        (".version 8.0\n.target gfx90\n", "bad.ptx:2: unknown target gfx90"),
        ("", "no .target"),
        (".version 8.0\n.target sm_80\n.visible .entry k(.param .u64 a)\n{ ret;", "ends within"),
    ],
)
def test_what_is_no_module(text: str, message: str) -> None:
    with pytest.raises(executor.Fault, match=message):
        executor.load("bad.ptx", text)
