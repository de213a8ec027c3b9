"""Each function of the emulation against a definition of its own, written here.

Tables of fragments are those of the PTX ISA, "Matrix Fragments for mma.m16n8k16" and the like.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from cuda_emulation import build

SOURCE = build.HERE / "kernels" / "primitives.cu"
# What serves other CPUs: fibers without assembly, conversions of halves without an instruction.
BUILDS = {"native": [], "portable": ["-DFASSD_EMULATION_UCONTEXT", "-mno-f16c"]}
LANES = np.arange(32)


class Library:
    """The functions of primitives.cu; arrays are passed as they are."""

    def __init__(self, path: str) -> None:
        self.functions = ctypes.CDLL(path)

    def tell(self, name: str, *arguments: object) -> str:
        """What went wrong; empty if nothing did."""
        function = self.functions[name]
        function.restype = ctypes.c_char_p
        return function(*map(passed, arguments)).decode()

    def run(self, name: str, *arguments: object) -> None:
        assert self.tell(name, *arguments) == ""

    def convert(self, name: str, values: np.ndarray, dtype: Any, count: int = -1) -> np.ndarray:
        result: np.ndarray = np.empty(values.shape, dtype)
        self.functions[name](passed(values), passed(result), count if count >= 0 else values.size)
        return result


def passed(argument: object) -> object:
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    return argument


def load(which: str) -> Library:
    flags = [flag for flag in BUILDS[which] if flag != "-mno-f16c" or build.instruction_set()]
    return Library(str(build.build([SOURCE], f"primitives_{which}.so", "plain", more=flags)))


@pytest.fixture(scope="session")
def library() -> Library:
    return load("native")


@pytest.fixture(scope="session", params=BUILDS)
def any_build(request: pytest.FixtureRequest) -> Library:
    return load(request.param)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


# --- tensor cores ---------------------------------------------------------------------------------


def table(rule: Callable[[int, int, int], tuple[int, int]], elements: int) -> np.ndarray:
    """(row, column) of element i of lane (g, t) of a fragment: [lane][element][2]."""
    return np.array([[rule(lane // 4, lane % 4, i) for i in range(elements)] for lane in range(32)])


# Elements of two bytes, two to a register; then of four bytes, one to a register.
A16 = table(lambda g, t, i: (g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4)), 8)
B16 = table(lambda g, t, i: (2 * t + i % 2 + 8 * (i // 2), g), 4)
A32 = table(lambda g, t, i: (g + 8 * (i % 2), t + 4 * (i // 2)), 4)
B32 = table(lambda g, t, i: (t + 4 * i, g), 2)
D = table(lambda g, t, i: (g + 8 * (i // 2), 2 * t + i % 2), 4)


def fragment(matrix: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix[places[..., 0], places[..., 1]])


def test_the_tables_name_every_element_once() -> None:
    for places, size in ((A16, 256), (B16, 128), (A32, 128), (B32, 64), (D, 128)):
        assert len({tuple(place) for place in places.reshape(-1, 2).tolist()}) == size


def half_bits(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("warps", [1, 3])
@pytest.mark.parametrize("product", ["half", "bfloat16", "tf32"])
def test_multiply(library: Library, product: str, warps: int) -> None:
    depth = 8 if product == "tf32" else 16
    random = generator()
    # Small integers: sums are exact, and no two places of a matrix can be taken for each other.
    a = random.integers(-60, 61, (warps, 16, depth)).astype(np.float32)
    b = random.integers(-60, 61, (warps, depth, 8)).astype(np.float32)
    before = random.integers(-1000, 1001, (warps, 16, 8)).astype(np.float32)
    if product == "tf32":
        places = (A32, B32)
        bits = [matrix.view(np.uint32) for matrix in (a, b)]
    else:
        dtype = torch.float16 if product == "half" else torch.bfloat16
        places = (A16, B16)
        bits = [half_bits(matrix, dtype) for matrix in (a, b)]
    registers = [
        np.stack([fragment(matrix, place) for matrix in matrices])
        for matrices, place in zip(bits, places, strict=True)
    ]
    d = np.stack([fragment(matrix, D) for matrix in before])
    kind = ["half", "bfloat16", "tf32"].index(product)
    library.run("multiply", kind, warps, *registers, d)
    expected = np.stack([fragment(matrix, D) for matrix in a @ b + before])
    np.testing.assert_array_equal(d, expected)


def test_multiply_of_fractions(library: Library) -> None:
    random = generator()
    a = torch.from_numpy(random.normal(size=(16, 16))).half()
    b = torch.from_numpy(random.normal(size=(16, 8))).half()
    d = np.zeros((32, 4), np.float32)
    bits = [matrix.view(torch.int16).numpy() for matrix in (a, b)]
    library.run("multiply", 0, 1, fragment(bits[0], A16), fragment(bits[1], B16), d)
    np.testing.assert_allclose(d, fragment((a.double() @ b.double()).numpy(), D), rtol=0, atol=4e-6)


def test_tf32_ignores_the_lower_bits(library: Library) -> None:
    a = np.full((32, 4), 0x3F801FFF, np.uint32)  # more than 1, in bits that do not count
    b = np.full((32, 2), 0x40000000, np.uint32)
    d = np.zeros((32, 4), np.float32)
    library.run("multiply", 2, 1, a, b, d)
    np.testing.assert_array_equal(d, 16)


def test_turing_multiplies_halves_only(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASSD_EMULATED_CAPABILITY", "75")
    zeros = np.zeros((32, 4), np.uint32)
    assert library.tell("multiply", 0, 1, zeros, zeros, np.zeros((32, 4), np.float32)) == ""
    for kind in (1, 2):
        assert "Turing" in library.tell(
            "multiply", kind, 1, zeros, zeros, np.zeros((32, 4), np.float32)
        )


@pytest.mark.parametrize("kind", ["four", "four_transposed", "two_transposed"])
def test_load_matrices(library: Library, kind: str) -> None:
    matrices = 2 if kind == "two_transposed" else 4
    random = generator()
    memory = random.permutation(2048).astype(np.uint16)
    rows = random.permutation(256)[:32].astype(np.uint32)  # in units of 8 halves
    out = np.zeros((32, matrices), np.uint32)
    index = ["four", "four_transposed", "two_transposed"].index(kind)
    library.run("load_matrices", index, memory, memory.size, rows * 16, out)
    for matrix in range(matrices):
        values = np.stack([memory[8 * row : 8 * row + 8] for row in rows[8 * matrix :][:8]])
        if "transposed" in kind:
            values = values.T
        # Lane 4g + t has elements 2t and 2t + 1 of row g: in memory order, two to a register.
        np.testing.assert_array_equal(
            out[:, matrix], np.ascontiguousarray(values).view(np.uint32).reshape(32)
        )


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_load_matrices_checks_addresses(library: Library, kind: int) -> None:
    memory, out = np.zeros(256, np.uint16), np.zeros((32, 4), np.uint32)
    for lane in (0, 31):
        for address, words in ((8, "is not a multiple of 16"), (512, "is beyond")):
            rows = np.zeros(32, np.uint32)
            rows[lane] = address
            told = library.tell("load_matrices", kind, memory, 256, rows, out)
            assert words in told and f"thread ({lane}, 0, 0)" in told


# --- asynchronous copies --------------------------------------------------------------------------


def test_copies_arrive_at_the_wait(library: Library) -> None:
    source = np.array([11, 12, 21, 22], np.uint64)
    seen = np.zeros((4, 2, 2), np.uint64)
    nothing = [2**64 - 1] * 2  # not a number, in any type
    library.run("copy_steps", aligned(source), seen)
    assert seen.tolist() == [
        [nothing, [7, 7]],
        [[11, 12], nothing],
        [[11, 12], nothing],
        [[11, 12], [21, 22]],
    ]


def aligned(values: np.ndarray, offset: int = 0) -> np.ndarray:
    """A copy that begins `offset` bytes after a multiple of 16."""
    memory = np.zeros(values.nbytes + 48, np.uint8)
    begin = -memory.ctypes.data % 16 + offset
    result = memory[begin : begin + values.nbytes].view(values.dtype).reshape(values.shape)
    result[...] = values
    return result


def test_copies_of_fewer_bytes_are_filled_with_zeros(library: Library) -> None:
    source = aligned(np.arange(1, 17, dtype=np.uint8))
    for count in range(17):
        out = np.full(16, 99, np.uint8)
        library.run("copy_bytes", source, count, out)
        assert out.tolist() == source.tolist()[:count] + [0] * (16 - count)


def test_many_copies(library: Library) -> None:
    for count in (1, 63, 64, 65, 200):
        source = aligned(generator().integers(0, 2**32, (3, count, 4), dtype=np.uint32))
        out = aligned(np.zeros_like(source))
        library.run("copy_many", source, count, out)
        np.testing.assert_array_equal(out, source)


def test_copies_are_checked(library: Library) -> None:
    source = aligned(np.zeros(64, np.uint8))
    assert library.tell("copy_to", source, 48, 16, 1) == ""
    assert "20 is not a multiple of 16" in library.tell("copy_to", source, 20, 16, 1)
    assert "64 is beyond the block's 64 bytes" in library.tell("copy_to", source, 64, 16, 1)
    assert "source_bytes is 17" in library.tell("copy_to", source, 0, 17, 1)
    assert "source_bytes is -1" in library.tell("copy_to", source, 0, -1, 1)
    assert "is not aligned to 16 bytes" in library.tell("copy_to", source[2:], 0, 4, 1)
    assert "1 of its asynchronous copies" in library.tell("copy_to", source, 0, 16, 0)


# --- lanes ----------------------------------------------------------------------------------------


def shuffled(kind: int, lane: int, argument: int, width: int) -> int:
    """The lane that is read, as the CUDA C++ Programming Guide has it."""
    begin = lane // width * width
    if kind == 0:
        return begin + argument % width
    if kind == 1:
        source = lane ^ argument
        return source if source < begin + width else lane
    if kind == 2:
        return lane + argument if lane + argument < begin + width else lane
    return lane - argument if lane - argument >= begin else lane


@pytest.mark.parametrize("kind", range(4), ids=["from", "xor", "down", "up"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("shuffle_int", np.int32),
        ("shuffle_float", np.float32),
        ("shuffle_long", np.int64),
        ("shuffle_double", np.float64),
    ],
)
def test_shuffles(library: Library, name: str, dtype: Any, kind: int) -> None:
    random = generator()
    values = random.permutation(10**6)[:64].astype(dtype)
    if dtype in (np.int64, np.float64):
        values = values * 2**33
    for width in (32, 8, 2):
        for argument in (0, 1, 2, 5, 16, 31):
            # Only a source may differ from lane to lane; the deltas are the same for all.
            arguments = np.full(64, argument, np.int32)
            if kind == 0:
                arguments = random.integers(0, 64, 64).astype(np.int32)
            out = np.zeros(64, dtype)
            library.run(name, kind, values, arguments, width, 0xFFFFFFFF, out)
            expected = [
                values[lane // 32 * 32 + shuffled(kind, lane % 32, int(arguments[lane]), width)]
                for lane in range(64)
            ]
            np.testing.assert_array_equal(out, np.array(expected))


def test_shuffle_of_some_lanes(library: Library) -> None:
    mask = 0x00F0F00F
    named = [lane for lane in range(64) if mask >> lane % 32 & 1]
    values = np.arange(100, 164, dtype=np.int32)
    arguments = np.full(64, 23, np.int32)
    out = np.full(64, -1, np.int32)
    library.run("shuffle_int", 0, values, arguments, 32, mask, out)
    expected = [values[lane // 32 * 32 + 23] if lane in named else -1 for lane in range(64)]
    assert out.tolist() == expected


def test_halves_of_a_warp_go_their_own_ways(any_build: Library) -> None:
    out = np.zeros(32, np.int32)
    any_build.run("diverged", out)
    first = [(lane + 5) % 16 for lane in range(16)]
    assert out.tolist() == first + [lane ^ 1 for lane in range(16, 32)]


@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0F0F0001])
def test_votes(library: Library, mask: int) -> None:
    random = generator()
    cases = [np.zeros(64), np.ones(64) * 4, random.integers(0, 2, 64), LANES.repeat(2) == 5]
    for votes in (case.astype(np.int32) for case in cases):
        out = np.full((64, 3), 77, np.uint32)
        library.run("vote", votes, mask, out)
        for thread in range(64):
            voters = [lane for lane in range(32) if mask >> lane & 1]
            if thread % 32 not in voters:
                assert out[thread].tolist() == [77] * 3
                continue
            cast = {lane: bool(votes[thread // 32 * 32 + lane]) for lane in voters}
            ballot = sum(1 << lane for lane, yes in cast.items() if yes)
            expected = [ballot, any(cast.values()), all(cast.values())]
            assert out[thread].tolist() == expected


# --- blocks and grids -----------------------------------------------------------------------------


def test_indices(any_build: Library) -> None:
    grid, block = (3, 2, 4), (5, 4, 3)
    out = np.zeros((*grid[::-1], *block[::-1], 6), np.uint32)
    any_build.run("indices", out)
    for place in np.ndindex(out.shape[:-1]):
        assert out[place].tolist() == [*place[2::-1], *place[5:2:-1]]


@pytest.mark.parametrize("threads", [1, 32, 45, 256, 1024])
def test_syncthreads(any_build: Library, threads: int) -> None:
    out = np.zeros(threads, np.int32)
    any_build.run("barrier", threads, 5, out)
    values = np.arange(threads)
    for _ in range(5):
        values = values + np.roll(values, -1)
    assert out.tolist() == values.tolist()


def test_syncthreads_counts(library: Library) -> None:
    for votes in (np.zeros(96), np.ones(96), np.arange(96) % 3):
        out = np.zeros((96, 3), np.int32)
        library.run("counts", 96, votes.astype(np.int32), out)
        count = int((votes != 0).sum())
        assert (out == [count, count > 0, count == 96]).all()


def test_named_barriers(any_build: Library) -> None:
    out = np.zeros(64, np.int32)
    any_build.run("named_barrier", 4, out)
    assert out.tolist() == [sum(100 * i + 63 - n for i in range(4)) for n in range(64)]


@pytest.mark.parametrize(("name", "dtype"), [("int", np.int32), ("short", np.int16)])
def test_static_shared_memory(library: Library, name: str, dtype: Any) -> None:
    fresh, out = np.zeros((3, 64), np.uint32), np.zeros((3, 64), dtype)
    library.run(f"static_shared_{name}", fresh, out)
    assert (fresh == 2 ** (8 * out.itemsize) - 1).all()
    assert out.tolist() == [[63 - i + block for i in range(64)] for block in range(3)]


@pytest.mark.parametrize("size", [0, 1, 100, 48 * 1024])
def test_dynamic_shared_memory_is_new_for_every_block(library: Library, size: int) -> None:
    differing, misaligned = np.zeros(1, np.int32), np.zeros(1, np.int32)
    library.run("fresh_shared", size, differing, misaligned)
    assert (differing[0], misaligned[0]) == (0, 0)


def test_large_parameters(library: Library) -> None:
    values, out = generator().normal(size=64), np.zeros(64)
    library.run("large_parameter", values, out)
    np.testing.assert_array_equal(out, values)


def test_grid_barrier(any_build: Library) -> None:
    counter, out = np.zeros(1, np.int32), np.full(6 * 64, 9, np.int32)
    any_build.run("grid_barrier", 6, 5, counter, out)
    assert counter[0] == 5 * 6 * 64 and not out.any()


def test_the_last_block_sees_what_all_wrote(library: Library) -> None:
    parts, arrived = np.zeros(10, np.int32), np.zeros(1, np.uint32)
    total = np.zeros(1, np.int32)
    library.run("last_block", parts, arrived, total)
    assert total[0] == 55


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("int", np.int32), ("unsigned", np.uint32), ("long", np.uint64), ("float", np.float32)],
)
def test_atomics(library: Library, name: str, dtype: Any) -> None:
    cells, olds = np.array([1000, 3, 50, 9, 0], dtype), np.zeros(128, dtype)
    library.run(f"atomics_{name}", cells, olds)
    assert sorted(olds.tolist()) == list(range(1000, 1128))
    expected = [1128, 3, 50, 55, 0] if name == "float" else [1128, 127, 0, 55, 128]
    assert cells.tolist() == expected


def test_launches_from_several_threads(library: Library) -> None:
    def work(_: int) -> list[int]:
        out = np.zeros(256, np.int32)
        fresh = np.zeros((3, 64), np.uint32)
        static = np.zeros((3, 64), np.int32)
        for _ in range(20):
            library.run("barrier", 256, 5, out)
            library.run("static_shared_int", fresh, static)
            assert (fresh == 2**32 - 1).all()
        return out.tolist()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(8)))
    values = np.arange(256)
    for _ in range(5):
        values = values + np.roll(values, -1)
    assert results == [values.tolist()] * 8


# --- mistakes -------------------------------------------------------------------------------------

# The order of the enumeration in primitives.cu, and what is said of each.
MISTAKES = {
    "none": r"$",
    "ends_early": r".*deadlock.*\n  block \(0, 0, 0\): threads 0 to 31 at __syncthreads of 64 "
    r"\(.*primitives.cu:\d+\); threads 32 to 63 have ended$",
    "two_barriers": r".*deadlock.*\n  block \(0, 0, 0\): threads 0 to 31 at barrier 3 of 64 "
    r"\(.*\); threads 32 to 63 at barrier 4 of 64 \(.*\)$",
    "two_syncthreads": r".*block \(0, 0, 0\), thread \(32, 0, 0\): comes to __syncthreads at "
    r".*primitives.cu:\d+, where others wait at .*primitives.cu:\d+$",
    "other_count": r".*comes to barrier 1 for 32 threads, at .*, where others wait for 64, at ",
    "lane_missing": r".*deadlock.*\n.*threads 0 to 6 at __shfl_sync of 32 .*; thread 7 has ended; "
    r"threads 8 to 31 at __shfl_sync of 32 .*; threads 32 to 63 have ended$",
    "mask_without_me": r".*lane 0 comes to __syncwarp at .* with the mask fffffffe",
    "different_meeting": r".*thread \(1, 0, 0\): comes to __syncwarp at .*, where other lanes of "
    r"its warp wait at __any_sync",
    "from_outside": r".*lane 0 reads lane 20, which takes no part",
    "trap": r".*thread \(3, 0, 0\): __trap",
    "exception": r".*thread \(3, 0, 0\): the kernel threw: as asked",
    "grid_barrier": r".*in a launch that is not cooperative",
    "far_address": r".*takes the shared address of a pointer -?\d+ bytes from the beginning",
    "guard_zone": r".*the guard zone at byte 64 of 256 bytes of dynamic shared memory was written",
    "past_the_end": r".*guard zone at byte 256 of 256 bytes of dynamic shared memory was written",
    "barrier_name": r".*names barrier 16 at .*; expected 1 to 15",
    "barrier_count": r".*barrier 1 for 40 threads .*; expected a multiple of 32, of a block of 64",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(any_build: Library, mistake: str) -> None:
    out = np.zeros(64, np.int32)
    told = any_build.tell("mistake", list(MISTAKES).index(mistake), out)
    assert re.match(MISTAKES[mistake], told), told
    # The next launch is none the worse for it.
    test_syncthreads(any_build, 256)


def test_a_block_that_misses_the_grids_barrier(any_build: Library) -> None:
    told = any_build.tell("lonely_block")
    assert re.match(
        r".*deadlock.*\n  block \(0, 0, 0\): threads 0 to 31 at the grid's barrier of 96 .*"
        r"\n  block \(1, 0, 0\): threads 0 to 31 have ended"
        r"\n  block \(2, 0, 0\): threads 0 to 31 at the grid's barrier of 96 .*$",
        told,
    ), told


# --- the emulated device --------------------------------------------------------------------------


def dimensions(x: int, y: int = 1, z: int = 1) -> np.ndarray:
    return np.array([x, y, z], np.uint32)


@pytest.mark.parametrize(
    ("grid", "block", "told"),
    [
        ((1,), (1,), ""),
        ((3, 65535), (1,), ""),
        ((1,), (1024,), ""),
        ((1,), (16, 1, 64), ""),
        ((0,), (1,), "invalid configuration argument"),
        ((1, 0), (1,), "invalid configuration argument"),
        ((2**31,), (1,), "invalid configuration argument"),
        ((1, 65536), (1,), "invalid configuration argument"),
        ((1, 1, 65536), (1,), "invalid configuration argument"),
        ((1,), (0,), "invalid configuration argument"),
        ((1,), (1025,), "invalid configuration argument"),
        ((1,), (32, 33), "invalid configuration argument"),
        ((1,), (1, 1, 65), "invalid configuration argument"),
    ],
)
def test_refused_shapes(
    library: Library, grid: tuple[int, ...], block: tuple[int, ...], told: str
) -> None:
    assert library.tell("launch", dimensions(*grid), dimensions(*block), 0, 0) == told


def test_refused_shared_memory(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(size: int) -> str:
        return library.tell("launch", dimensions(1), dimensions(32), ctypes.c_size_t(size), 0)

    assert launch(49152) == ""
    assert launch(49153) == "invalid argument"

    def with_consent(size: int, allowed: int) -> str:
        return library.tell("launch_with_consent", ctypes.c_size_t(size), allowed)

    # What was allowed can be used: the kernel begins, and waits for its other block.
    assert "deadlock" in with_consent(101376, 101376)
    assert with_consent(101376, 101375) == "invalid argument"
    assert with_consent(0, 101377) == "consent: invalid argument"
    monkeypatch.setenv("FASSD_EMULATED_CAPABILITY", "75")
    assert "deadlock" in with_consent(65536, 65536)
    assert with_consent(0, 65537) == "consent: invalid argument"


def test_refused_cooperation(library: Library) -> None:
    def launch(blocks: int, threads: int, size: int = 0) -> str:
        return library.tell(
            "launch", dimensions(blocks), dimensions(threads), ctypes.c_size_t(size), 1
        )

    too_large = "too many blocks in cooperative launch"
    assert launch(6, 768) == ""  # two blocks on each of three multiprocessors
    assert launch(7, 32) == too_large
    assert launch(3, 1024) == ""
    assert launch(4, 1024) == too_large
    assert launch(6, 32, 49152) == ""
    assert launch(7, 32, 49152) == too_large


def test_attributes(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def attributes() -> list[int]:
        # Multiprocessors, capability, and the most shared memory that a block can have.
        return [library.functions.device_attribute(which) for which in (16, 75, 76, 97)]

    assert attributes() == [3, 8, 6, 101376]
    monkeypatch.setenv("FASSD_EMULATED_CAPABILITY", "120")
    assert attributes() == [3, 12, 0, 101376]
    monkeypatch.setenv("FASSD_EMULATED_CAPABILITY", "75")
    assert attributes() == [3, 7, 5, 65536]


# --- conversions ----------------------------------------------------------------------------------

FORMATS = {"half": torch.float16, "bfloat16": torch.bfloat16}
PLURALS = {"half": "halves", "bfloat16": "bfloat16s"}


@pytest.mark.parametrize("name", FORMATS)
def test_every_pattern_to_float(any_build: Library, name: str) -> None:
    bits = np.arange(65536).astype(np.uint16)
    floats = any_build.convert(f"{PLURALS[name]}_to_floats", bits, np.float32)
    expected = torch.from_numpy(bits.view(np.int16)).view(FORMATS[name]).float().numpy()
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(floats), nan)
    np.testing.assert_array_equal(floats.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


def interesting_floats(name: str) -> np.ndarray:
    """All values of a format, the points between neighbours, what is next to those, and others."""
    bits = torch.arange(0x8000, dtype=torch.int32).to(torch.int16)
    values = bits.view(FORMATS[name]).double().numpy()
    values = values[np.isfinite(values)]
    middles = (values[1:] + values[:-1]) / 2
    overflow = values[-1] + (values[-1] - values[-2]) / 2
    middles = np.append(middles, overflow).astype(np.float32)
    infinity = np.float32(np.inf)
    beside = [np.nextafter(middles, infinity), np.nextafter(middles, -infinity)]
    random = generator().integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    all_values = np.concatenate([values.astype(np.float32), middles, *beside, random])
    return np.concatenate([all_values, -all_values, np.array([np.inf, np.nan, 0], np.float32)])


def check_bits(bits: np.ndarray, expected: torch.Tensor) -> None:
    nan = expected.isnan().numpy()
    np.testing.assert_array_equal(
        bits[~nan], expected.view(torch.int16).numpy().view(np.uint16)[~nan]
    )
    assert (bits[nan] == 0x7FFF).all()


@pytest.mark.parametrize("name", FORMATS)
def test_from_float(any_build: Library, name: str) -> None:
    floats = interesting_floats(name)
    expected = torch.from_numpy(floats).to(FORMATS[name])
    check_bits(any_build.convert(f"floats_to_{PLURALS[name]}", floats, np.uint16), expected)
    even = floats[: floats.size // 2 * 2]
    pairs = any_build.convert(f"floats_to_{name}_pairs", even, np.uint16, even.size // 2)
    check_bits(pairs, expected[: even.size])


@pytest.mark.parametrize("name", FORMATS)
def test_from_double_rounds_once(any_build: Library, name: str) -> None:
    function = f"doubles_to_{PLURALS[name]}"
    floats = interesting_floats(name)
    # A float has its own half, whichever way it is taken.
    expected = torch.from_numpy(floats).to(FORMATS[name])
    doubles = torch.from_numpy(floats).double().numpy()
    check_bits(any_build.convert(function, doubles, np.uint16), expected)
    # Next to a middle between two neighbours: in float, it would be the middle itself.
    bits = np.arange(0x7F00 if name == "bfloat16" else 0x7BFF).astype(np.uint16)
    values = any_build.convert(f"{PLURALS[name]}_to_floats", bits, np.float32).astype(np.float64)
    middles = (values[1:] + values[:-1]) / 2
    below = any_build.convert(function, np.nextafter(middles, 0), np.uint16)
    above = any_build.convert(function, np.nextafter(middles, np.inf), np.uint16)
    at = any_build.convert(function, middles, np.uint16)
    np.testing.assert_array_equal(below, bits[:-1])
    np.testing.assert_array_equal(above, bits[1:])
    np.testing.assert_array_equal(at, bits[:-1] + bits[:-1] % 2)
    extremes = np.array([1e300, -1e300, 1e-300, -1e-300, 5e-324, np.inf, -np.inf])
    infinity = {"half": 0x7C00, "bfloat16": 0x7F80}[name]
    assert any_build.convert(function, extremes, np.uint16).tolist() == [
        infinity,
        infinity | 0x8000,
        0,
        0x8000,
        0,
        infinity,
        infinity | 0x8000,
    ]


def test_to_tf32(any_build: Library) -> None:
    bits = generator().integers(0, 2**32, 100_000, dtype=np.uint32)
    bits = np.concatenate([bits, bits & 0xFFFFF000, [0x7F7FFFFF, 0x7F800000, 0xFF800000, 0]])
    bits = bits.astype(np.uint32)
    bits = bits[~np.isnan(bits.view(np.float32))]
    rounded = any_build.convert("floats_to_tf32", bits, np.uint32)
    assert not (rounded & 0x1FFF).any()
    values, results = (array.view(np.float32).astype(np.float64) for array in (bits, rounded))
    finite = np.isfinite(results) & np.isfinite(values)
    step = np.exp2(np.maximum(np.floor(np.log2(np.abs(values[finite]) + 1e-300)), -126) - 10)
    error = np.abs(results[finite]) - np.abs(values[finite])
    # Away from zero where both are as near.
    assert (np.abs(error) <= step / 2).all() and (error != -step / 2).all()
    assert (rounded[~finite] & 0x7FFFFFFF == 0x7F800000).all()
