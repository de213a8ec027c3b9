"""Which instructions are meant in which kernel, and which are not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from install.cuda_resources import threads_of
from install.cuda_sass import Code, count

HALF = r"(HalfMath<__half>|stem_kernel<__half\b)"
HALF_PIXELS = r"HalfMath<__half>"  # a stem's are no matrices
TENSOR_KERNELS = r"(convolution|pair|stem)_kernel<"
BFLOAT16 = rf"{TENSOR_KERNELS}.*__nv_bfloat16"
COPYING_KERNELS = r"(convolution|pair)_kernel<"
AMPERE = 80  # and later: asynchronous copies, bfloat16 and TF32, 16 x 8 x 16 products
ALL = 1 << 30
DOUBLE = r"D(ADD|MUL|FMA|SETP|MMA|MNMX)|F2[IF]\S*\.F64|I2F\S*\.F64|MUFU\.R\w+64H"


@dataclass(frozen=True)
class Rule:
    """How often an instruction may occur in the kernels of a name, on a range of architectures."""

    kernels: str
    instruction: str
    least: int = 1
    most: int = ALL
    since: int = 0
    before: int = 1000

    def covers(self, number: int, name: str) -> bool:
        if number < AMPERE and self.least > 0 and re.search(BFLOAT16, name):
            return False  # they begin with a trap, behind which nothing need be left
        return self.since <= number < self.before and re.search(self.kernels, name) is not None


def never(kernels: str, instruction: str, since: int = 0, before: int = 1000) -> Rule:
    return Rule(kernels, instruction, 0, 0, since, before)


# fmt: off
RULES = (
    never(r"", r"LDL|STL"),
    # Generic addresses: the compiler has lost sight of which memory it is.
    never(r"", r"(LD|ST)(\.|\s)"),
    never(r"^(?!normalize_kernel)", DOUBLE),
    # Tensor cores. Turing's kernels of bfloat16 and TF32 are never launched.
    Rule(HALF, r"HMMA\.16816\.F32 ", since=AMPERE),
    Rule(HALF, r"HMMA\.1688\.F32 ", before=AMPERE),
    never(HALF, r"HMMA\.1688", since=AMPERE),
    Rule(BFLOAT16, r"HMMA\.16816\.F32\.BF16 ", since=AMPERE),
    Rule(r"Tf32Math", r"HMMA\.1688\.F32\.TF32 ", since=AMPERE),
    never(r"FloatMath", r"HMMA"),
    Rule(r"FloatMath", r"FFMA", least=32),
    # Matrix fragments come four at once.
    Rule(HALF_PIXELS, r"LDSM\.16\.M88\.4"),
    Rule(HALF, r"LDSM\.16\.MT88\.4"),
    Rule(rf"{COPYING_KERNELS}.*__nv_bfloat16", r"LDSM\.16\.M88\.4", since=AMPERE),
    Rule(BFLOAT16, r"LDSM\.16\.MT88\.4", since=AMPERE),
    Rule(r"Tf32Math", r"LDSM\.16\.M88\.4", since=AMPERE),
    # Copies to shared memory pass by the registers and the first cache, 16 bytes at a time.
    Rule(COPYING_KERNELS, r"LDGSTS\S*\.BYPASS\S*\.128", since=AMPERE),
    never(r"", r"LDGSTS(?!\S*\.BYPASS\S*\.128)"),
    never(r"", r"LDGSTS", before=AMPERE),
    # Epilogues, and whatever else goes from picture to picture.
    Rule(rf"{TENSOR_KERNELS}|(join|upsample)_kernel<", r"STG\.E\S*\.128"),
    Rule(rf"{TENSOR_KERNELS}|(join|upsample|upsample_argmax)_kernel<", r"LDG\.E\S*\.128"),
    Rule(TENSOR_KERNELS, r"LDS\S*\.128"),
    Rule(TENSOR_KERNELS, r"STS\S*\.64", least=4),
)
# fmt: on

# What has no place among products: memory beyond shared memory, calls, conversions of integers,
# addresses of 64 bits.
FOREIGN = r"LDG|STG|LDL|STL|CALL|MUFU|I2F|F2I|IMAD\.WIDE|\S+\.X\b|BAR|BSSY"
SLIDING_OVERHEAD, PLAIN_OVERHEAD = 24, 10  # instructions of a loop beside products and fragments
# From here on the compiler interleaves moves between products, up to 80 in a loop, and how many is
# its own affair: whether they cost anything, a GPU would have to tell.
MOVES_AMONG_PRODUCTS = 120


@dataclass(frozen=True)
class Loop:
    """An innermost loop over 16-bit values: m_tiles x n_tiles products of 16 x 8.

    Plain, a step brings m_tiles fragments of pixels and one row of weights, of one tap. Sliding, it
    brings m_tiles + 2 of pixels and three rows of weights, for products with three rows of taps.
    """

    m_tiles: int
    n_tiles: int
    sliding: bool = False

    def meant(self, number: int) -> dict[str, int]:
        """How often each instruction occurs, on an architecture."""
        rows = 3 if self.sliding else 1
        instructions = 1 if number >= AMPERE else 2  # Turing's multiply half as many channels
        return {
            "HMMA": rows * self.m_tiles * self.n_tiles * instructions,
            r"LDSM\.16\.M88\.4": self.m_tiles + (2 if self.sliding else 0),
            r"LDSM\.16\.MT88\.4": rows * (self.n_tiles // 2),
            r"LDSM\.16\.MT88\.2": rows * (self.n_tiles % 2),
            FOREIGN: 0,
        }

    def faults(self, number: int, body: list[str]) -> list[str]:
        meant = self.meant(number)
        found = [
            f"an innermost loop has {count(body, pattern)} of {pattern}, {expected} are meant"
            for pattern, expected in meant.items()
            if count(body, pattern) != expected
        ]
        beside = len(body) - sum(meant.values())
        if number < MOVES_AMONG_PRODUCTS and beside > (
            SLIDING_OVERHEAD if self.sliding else PLAIN_OVERHEAD
        ):
            found.append(f"an innermost loop has {beside} instructions beside those meant")
        return found


def loops_of(name: str) -> list[Loop]:
    """The loops that multiply in a kernel of 16-bit values, by its template's arguments."""
    found = re.fullmatch(r"(\w+)_kernel<(?:HalfMath<\w+>|__half|__nv_bfloat16), (.+)>", name)
    family, arguments = (found[1], found[2].split(", ")) if found else ("", [])
    if family == "convolution":
        return [Loop(int(arguments[1]), int(arguments[2]), arguments[3] == "true")]
    if family == "pair":
        return [Loop(1, int(arguments[1]))]
    return []  # a stem's products are written out


def unmeant_loops(number: int, name: str, code: Code) -> list[str]:
    """What is wrong with the innermost loops of a kernel of 16-bit values."""
    loops = loops_of(name)
    if not loops or (number < AMPERE and "__nv_bfloat16" in name):
        return []
    bodies = code.bodies("HMMA")
    if not bodies:
        return ["no innermost loop has products"]
    # Each is one of those meant: at fault is what the likest of them has not.
    return [
        fault
        for body in bodies
        for fault in min((loop.faults(number, body) for loop in loops), key=len)
    ]


def unmeant(arch: str, name: str, code: Code) -> list[str]:
    """What is wrong with a kernel's instructions."""
    number = int(arch.removeprefix("sm_"))
    found = []
    for rule in RULES:
        occurs = code.count(rule.instruction) if rule.covers(number, name) else rule.least
        if not rule.least <= occurs <= max(rule.least, rule.most):
            limit = f"at most {rule.most}" if occurs > rule.most else f"at least {rule.least}"
            found.append(f"{rule.instruction} occurs {occurs} times, {limit} is meant")
    found += unmeant_loops(number, name, code)
    if code.threads != threads_of(name):
        found.append(f"its blocks have {code.threads} threads, not {threads_of(name)}")
    return [f"{name} for {arch}: {each}" for each in found]
