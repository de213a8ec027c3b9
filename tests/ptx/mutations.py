"""Mistakes planted in copies of csrc/cuda, each of which the tests have to notice.

``python -m ptx.mutations [WORDS]`` from ``tests`` tries those whose name has all the words, or all,
and says of each what was noticed, or that its PTX is that of the sources as they stand.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from ptx import build, executor, test_primitives

SAME = "the same PTX"
MISSED = "NOT NOTICED"


@dataclass(frozen=True)
class Mutation:
    """A mistake in a file of csrc/cuda.

    Attributes:
        file: its name.
        architecture: that shows it.
        after: what stands before it; its first line may be named by a part.
        old: the text behind that.
        new: what it becomes.
    """

    file: str
    architecture: int
    after: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}, sm_{self.architecture}, {self.after}: {self.old!r} -> {self.new!r}"

    def apply(self, csrc: Path) -> None:
        path = csrc / "cuda" / self.file
        text = path.read_text()
        at = text.index(self.old, text.index(self.after))
        path.write_text(text[:at] + self.new + text[at + len(self.old) :])


MEMORY = '\n               : "memory"'
HALVES = '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])'
EXCHANGED = '"r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3])'
LOAD = """"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)"""
PRIMITIVES = [
    Mutation("ptx.cuh", architecture, after, old, new)
    for architecture, after, old, new in (
        (80, "void copy_async(", '"r"(source_bytes)', '"r"(16)'),
        (80, "void copy_async(", "[%1], 16, %2;", "[%1], 16;"),
        (
            80,
            "void copy_async(",
            "cg.shared.global [%0], [%1], 16",
            "ca.shared.global [%0], [%1], 8",
        ),
        (80, "void copy_async(", MEMORY, ""),
        (80, "void copy_async_commit(", 'asm volatile("cp.async.commit_group;" ::: "memory");', ""),
        (80, "void copy_async_commit(", '::: "memory"', ""),
        (80, "void copy_async_wait(", '"n"(pending)', '"n"(pending + 1)'),
        (80, "void copy_async_wait(", '"n"(pending)', '"n"(0)'),
        (80, "void copy_async_wait(", "cp.async.wait_group %0;", "// %0"),
        (80, "void copy_async_wait(", ' : "memory"', ""),
        (75, "void copy_async(", "half(0) | half(1) << 16", "half(1) | half(0) << 16"),
        (75, "void copy_async(", "{%1, %2, %3, %4}", "{%1, %3, %2, %4}"),
        (75, "void copy_async(", "2 * i < source_bytes", "2 * i <= source_bytes"),
        (75, "void copy_async(", "source_bytes == 16", "source_bytes >= 8"),
        (75, '"r"(value.z)', MEMORY, ""),
        (80, "void load_matrices(", "x4.shared", "x4.trans.shared"),
        (80, "void load_matrices(", "{%0, %1, %2, %3}", "{%0, %2, %1, %3}"),
        (80, "void load_matrices(", f"volatile({LOAD}{MEMORY}", f"({LOAD}"),
        (80, "void load_matrices_transposed(", "x4.trans", "x4"),
        (80, "void load_matrices_transposed(", "{%0, %1, %2, %3}", "{%3, %1, %2, %0}"),
        (80, "// Two matrices", "x2.trans", "x2"),
        (80, "// Two matrices", "{%0, %1}", "{%1, %0}"),
        (80, "void multiply<__half>", '"r"(b0), "r"(b1)', '"r"(b1), "r"(b0)'),
        (80, "void multiply<__half>", HALVES, EXCHANGED),
        (80, "void multiply<__half>", '"+f"', '"=f"'),
        (80, "void multiply<__half>", "f32 {%0, %1, %2, %3}", "f32 {%0, %2, %1, %3}"),
        (80, "void multiply<__half>", '{%0, %1, %2, %3};"', '{%1, %0, %2, %3};"'),
        (80, "void multiply<__half>", "asm volatile", "asm"),
        (75, "#else  // Turing", '"r"(a[0]), "r"(a[1])', '"r"(a[0]), "r"(a[2])'),
        (75, "#else  // Turing", '"r"(a[2]), "r"(a[3])', '"r"(a[3]), "r"(a[2])'),
        (75, "#else  // Turing", '"r"(b1)', '"r"(b0)'),
        (80, "void multiply<__nv_bfloat16>", "f32.bf16.bf16.f32", "f32.f16.f16.f32"),
        (80, "void multiply<__nv_bfloat16>", '"r"(b0), "r"(b1)', '"r"(b1), "r"(b0)'),
        (80, "void multiply_tf32", HALVES, EXCHANGED),
        (80, "void multiply_tf32", '"r"(b0), "r"(b1)', '"r"(b1), "r"(b0)'),
        (80, "uint32_t to_tf32", "return rounded", "return bits"),
        (90, "void wait_for_previous_kernels", "griddepcontrol.wait;", ""),
        (90, "void wait_for_previous_kernels", '::: "memory"', ""),
        (90, "void wait_for_previous_kernels", "wait;", "launch_dependents;"),
        (90, "void let_next_kernel_start", "griddepcontrol.launch_dependents;", ""),
        (90, "void let_next_kernel_start", '::: "memory"', ""),
    )
]


def instructions(ptx: str) -> list[str]:
    return [line for line in ptx.splitlines() if not line.lstrip().startswith("//")]


def noticed(mutation: Mutation) -> str:
    """What the tests of the primitives say of a mistake."""
    with tempfile.TemporaryDirectory() as folder:
        csrc = shutil.copytree(build.CSRC, Path(folder) / "csrc")
        mutation.apply(csrc)
        text = test_primitives.load(mutation.architecture, csrc)
    as_it_stands = build.ptx_of(test_primitives.SOURCE, mutation.architecture)
    if instructions(text) == instructions(as_it_stands):
        return SAME
    for name, test in vars(test_primitives).items():
        if name.startswith("test_"):
            try:
                test(mutation.architecture)
            except (AssertionError, executor.Fault, pytest.fail.Exception) as error:
                return f"{name}: {str(error).strip().partition(chr(10))[0]}"
    return MISSED


def main() -> None:
    asked = [m for m in PRIMITIVES if all(word in str(m) for word in sys.argv[1:])]
    missed = 0
    for mutation in asked:
        said = noticed(mutation)
        missed += said == MISSED
        print(f"{mutation}\n    {said}", flush=True)
    print(f"{len(asked) - missed} of {len(asked)} are noticed, or change no instruction")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
