"""Mistakes planted in copies of csrc/cuda, each of which the tests have to notice.

``python -m ptx.mutations [WORDS]`` from ``tests`` tries those whose name has all the words, or all,
and says of each what was noticed, or that its PTX is that of the sources as they stand. Mistakes in
kernels are shown by calls of operators, so they are tried where the CUDA backend is executed:
README.md says how.
"""

from __future__ import annotations

import functools
import re
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conformance import cases, harness
from ptx import build, executor, test_primitives

SAME = "the same PTX"
MISSED = "NOT NOTICED"


@dataclass(frozen=True)
class Mutation:
    """A mistake in a file of csrc/cuda.

    Attributes:
        source: what is compiled: primitives.cu, or a file of csrc/cuda.
        architecture: that shows it.
        file: that it is in.
        after: what stands before it.
        old: the text behind that.
        new: what it becomes.
    """

    source: str
    architecture: int
    file: str
    after: str
    old: str
    new: str

    def __str__(self) -> str:
        where = f"{self.source}, sm_{self.architecture}, {self.file}, {self.after}"
        return f"{where}: {self.old!r} -> {self.new!r}"

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
    Mutation("primitives.cu", architecture, "ptx.cuh", after, old, new)
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
        (75, "void store_shared(", "{%1, %2, %3, %4}", "{%1, %3, %2, %4}"),
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

CONVOLUTION = "convolution_half.cu"
PAIR, STEM, UPSAMPLE = "asymmetric_conv_half.cu", "stem.cu", "upsample.cu"
BARRIER, SPLIT = "__syncthreads();", " * 16 * row_bytes"
CLEAR = "clear_outside<threads>(shared, layout, {}.stage_count, pixels, slots, pitch);"
KERNELS = [
    Mutation(source, 80, *rest)
    for source, *rest in (
        # What a block does.
        (CONVOLUTION, "convolution_kernel.cuh", "bool reaches", "left + (width - 1)", "left + 0"),
        (CONVOLUTION, "convolution_kernel.cuh", "Place place", "place.columns * n", "0"),
        (CONVOLUTION, "convolution_kernel.cuh", "_or(outside)", CLEAR.format("conv"), ""),
        (CONVOLUTION, "convolution_kernel.cuh", "_or(outside)", "conv.stage_count", "1"),
        (CONVOLUTION, "convolution_kernel.cuh", "int set", "(32 * warps / splits)", "32 % splits"),
        (CONVOLUTION, "convolution_kernel.cuh", "int across", "(down * m_tiles <<", "(down <<"),
        (CONVOLUTION, "convolution_kernel.cuh", "int row =", "at * conv.columns.slot_step", "at"),
        (CONVOLUTION, "convolution_kernel.cuh", "begin_copy =", "source.channels - ", "0 * "),
        (CONVOLUTION, "convolution_kernel.cuh", "begin_copy =", "to + layout.weights", "to"),
        (CONVOLUTION, "convolution_kernel.cuh", "transform =", "now.channel", "0"),
        (CONVOLUTION, "convolution_kernel.cuh", "int sets =", "sets > 0", "false"),
        (CONVOLUTION, "convolution_kernel.cuh", "int sets =", BARRIER, ""),
        (CONVOLUTION, "convolution_kernel.cuh", "acc.clear", "__syncthreads();  // the mem", "//"),
        (
            CONVOLUTION,
            "convolution.cuh",
            "Place place_of",
            "dividend, inverse)",
            "dividend, inverse - 1)",
        ),
        (CONVOLUTION, "convolution.cuh", "Place place_of", "row - picture * tiles.down", "row"),
        (CONVOLUTION, "convolution.cuh", "int position(", "group * axis.dilation", "axis.dilation"),
        (CONVOLUTION, "convolution.cuh", "bool holds", "at < axis.size", "at <= axis.size"),
        (CONVOLUTION, "convolution.cuh", "round_up_to(int", "value + multiple - 1", "value"),
        (CONVOLUTION, "convolution.cuh", "struct Cursor", "left < chunk ? left : chunk", "chunk"),
        (CONVOLUTION, "convolution.cuh", "struct Cursor", "left <= 0", "left < 0"),
        (CONVOLUTION, "convolution.cuh", "bool locate_slots", " && holds(columns, at_x)", ""),
        (CONVOLUTION, "convolution.cuh", "bool locate_slots", "row += down", "row += 0"),
        (CONVOLUTION, "convolution.cuh", "bool locate_slots", "column += across", "column += 0"),
        (CONVOLUTION, "convolution.cuh", "row += down", "column >= columns", "column > columns"),
        (CONVOLUTION, "convolution.cuh", "void clear_outside", "byte < pitch", "byte < 16"),
        (CONVOLUTION, "convolution.cuh", "void divide", "threadIdx.x >> shift", "threadIdx.x"),
        (CONVOLUTION, "convolution.cuh", "void copy_elements", "e < there ?", "true ?"),
        (CONVOLUTION, "convolution.cuh", "void copy_elements", "to += to_next", "to += step"),
        (CONVOLUTION, "convolution.cuh", "void copy_pixels", "there * int(sizeof(T))", "16"),
        (CONVOLUTION, "convolution.cuh", "void copy_pixels", "(together - 1)", "0"),
        (CONVOLUTION, "convolution.cuh", "void transform_pixels", "pixels[slot] >= 0", "true"),
        (CONVOLUTION, "convolution.cuh", "class HalfTransform", "== 1 ? 0xFFFFu", "== 1 ? ~0u"),
        (CONVOLUTION, "convolution.cuh", "class HalfTransform", "below, x);", "x, below);"),
        (CONVOLUTION, "ptx.cuh", "signs_of", "0xBB99", "0x9999"),
        (CONVOLUTION, "convolution.cuh", "void copy_weights", "k < there && ", ""),
        (CONVOLUTION, "convolution.cuh", "void copy_weights", "int64_t(first + k)", "int64_t(k)"),
        (CONVOLUTION, "convolution.cuh", "void copy_weights", "at += tap_step *", "at +="),
        (CONVOLUTION, "convolution.cuh", "void copy_weights", " + taps.weights[tap]", ""),
        (CONVOLUTION, "convolution.cuh", "void wait_for_stage", "wait<0>", "wait<1>"),
        (CONVOLUTION, "convolution.cuh", "void wait_for_stage", "wait<1>", "wait<2>"),
        (CONVOLUTION, "convolution.cuh", "wait_for_stage(stages);", BARRIER, ""),
        (CONVOLUTION, "convolution.cuh", "int behind", "stage + 1 ==", "stage =="),
        (CONVOLUTION, "convolution.cuh", "copy_async_commit();", "ptx::copy_async_wait<0>();", ""),
        (CONVOLUTION, "convolution.cuh", "copy_async_commit();", BARRIER, ""),
        (CONVOLUTION, "convolution.cuh", "copy_async_commit();", "chunk < 0 ? 0 : ", ""),
        (CONVOLUTION, "convolution.cuh", "void multiply_taps", " + taps.offset[tap]", ""),
        (CONVOLUTION, "convolution.cuh", "sums, set);", " + taps.offset[tap]", ""),
        (CONVOLUTION, "convolution.cuh", "void multiply_taps", "live >> tap", "live >> 1 >> tap"),
        (CONVOLUTION, "multiply.cuh", "int lane_row", "lane % 16", "lane % 8"),
        (CONVOLUTION, "multiply.cuh", "int lane_bytes", "lane / 16 * 16", "lane / 8 % 2 * 16"),
        (CONVOLUTION, "multiply.cuh", "multiply(HalfMath<T>", "a += set * 32", "a += 0"),
        (CONVOLUTION, "multiply.cuh", "a += set * 32", "a += splits * 32", "a += 32"),
        (CONVOLUTION, "multiply.cuh", "a += set * 32", f"splits{SPLIT}", SPLIT[3:]),
        (CONVOLUTION, "multiply.cuh", "factors[4];", "ptx::load", "if (lane != 7) ptx::load"),
        (CONVOLUTION, "multiply.cuh", "factors[4];", "factors[2],", "factors[3],"),
        (CONVOLUTION, "multiply.cuh", "void multiply_sliding", "set * 32 + column", "column"),
        (CONVOLUTION, "multiply.cuh", "void multiply_sliding", "+= splits * 32", "+= 32"),
        (CONVOLUTION, "multiply.cuh", "void multiply_sliding", "m_tiles + 2", "m_tiles + 1"),
        (CONVOLUTION, "multiply.cuh", "void multiply_sliding", "row * 3 *", "row *"),
        # The epilogues.
        (
            CONVOLUTION,
            "image.cuh",
            "uint4 rounded(",
            "values[2], values[3]",
            "values[3], values[2]",
        ),
        (CONVOLUTION, "epilogue.cuh", "void load_values", " && first < count", ""),
        (CONVOLUTION, "epilogue.cuh", "struct StagedSums", "step = threads", "step = 8 + threads"),
        (CONVOLUTION, "epilogue.cuh", "struct StagedSums", "patch.column + part", "part"),
        (CONVOLUTION, "epilogue.cuh", "void write_share", " || share.channel >= most_lanes", ""),
        (CONVOLUTION, "epilogue.cuh", "void write_share", "column >= columns", "column > columns"),
        (CONVOLUTION, "epilogue.cuh", "(finish == Finish::prelu", "share.channel", "patch.column"),
        (CONVOLUTION, "epilogue.cuh", "int corner = (", "column * 2", "column"),
        (CONVOLUTION, "epilogue.cuh", "int corner = (", "window % 2", "window / 2"),
        (CONVOLUTION, "epilogue.cuh", "constexpr (residual)", "from, at,", "from, pixel,"),
        (CONVOLUTION, "epilogue.cuh", "constexpr (resized)", BARRIER, ""),
        (
            CONVOLUTION,
            "epilogue.cuh",
            "Edge edge_of",
            "1.0f - at.weight, at",
            "at.weight, 1.0f - at",
        ),
        (CONVOLUTION, "epilogue.cuh", "void find_edges", "patch.rows + columns", "patch.rows"),
        (
            CONVOLUTION,
            "epilogue.cuh",
            "void add_resized",
            "column.after_weight",
            "column.before_weight",
        ),
        (CONVOLUTION, "epilogue.cuh", "values[k] + loaded[k]", " + shift[k]", ""),
        (CONVOLUTION, "epilogue.cuh", "void store_pairs", "2 * pair <", "2 * pair + 2 <"),
        (CONVOLUTION, "epilogue.cuh", "constexpr (placed)", "to_copy, at,", "to_copy, pixel,"),
        (CONVOLUTION, "epilogue.cuh", "void write_any", "(window & 1)", "(window >> 1)"),
        (CONVOLUTION, "epilogue.cuh", "void write_any", "out_x >= patch", "out_x > patch"),
        (CONVOLUTION, "epilogue.cuh", "void write_any", "channel < target.lanes", "true"),
        # Pairs.
        (PAIR, "convolution.cuh", "wait_for_stage(stages);", BARRIER, ""),
        (PAIR, "asymmetric_conv.cuh", "of slope 1", BARRIER, ""),
        (
            PAIR,
            "asymmetric_conv.cuh",
            "== Activation::relu",
            "Activation::relu>",
            "Activation::none>",
        ),
        (PAIR, "asymmetric_conv.cuh", "float value =", "inside[i][half] && ", ""),
        (PAIR, "asymmetric_conv.cuh", "shared + zeros)", "[i] = 0", "[i] = ~0u"),
        (PAIR, "asymmetric_conv.cuh", "_or(outside)", CLEAR.format("pair"), ""),
        (PAIR, "asymmetric_conv.cuh", "copy_second =", "- first_chunks) *", ") *"),
        (PAIR, "asymmetric_conv.cuh", "second.count == 0", "at_x < pair", "at_x <= pair"),
        (PAIR, "asymmetric_conv.cuh", "int channel_bytes", " - first_chunks", ""),
        (PAIR, "asymmetric_conv.cuh", "int channel_bytes", " * pair.columns.pitch", ""),
        (PAIR, "asymmetric_conv.cuh", "int channel_bytes", "!holds(pair.columns, slot)", "false"),
        (PAIR, "asymmetric_conv.cuh", "stage_sums<", BARRIER, ""),
        (PAIR, "epilogue.cuh", "if constexpr (affine) {\n      float", "from, at,", "from, pixel,"),
        # The first layer.
        (STEM, "stem.cuh", "values)[threadIdx.x]", BARRIER, ""),
        (STEM, "stem.cuh", "make_uint2(0, 0);\n  }\n  __sync", BARRIER, ""),
        (STEM, "stem.cuh", "ptx::multiply", BARRIER, ""),
        (STEM, "stem.cuh", "int byte = ", "stem_channels - 1 - channel", "channel"),
        (STEM, "stem.cuh", "load_packed_pixels(", " || source.width - x < 6", ""),
        (STEM, "stem.cuh", "load_packed_pixels(", "8 * odd", "0"),
        (STEM, "stem.cuh", "PixelGroup group = {}", "at_y) <", "at_y) <="),
        (STEM, "stem.cuh", "int step =", "tap < 3 ? stem.dilation_h * pitch : 0", "0"),
        (STEM, "stem.cuh", "at[i / 2]", "begin + stem.eighths[i]", "begin"),
        # Resizing.
        (UPSAMPLE, "upsample.cu", "void offer", "larger, channel + k * one", "larger, channel"),
        (UPSAMPLE, "upsample.cu", "uint8_t label()", "odd > even ?", "even > odd ?"),
        (UPSAMPLE, "upsample.cu", "unsigned rest = columns", "columns.rest + ", ""),
        (UPSAMPLE, "upsample.cu", "float least", "-65504.0f", "65504.0f"),
        (UPSAMPLE, "image.cuh", "int after =", "before + 1 > size - 1", "before > size - 1"),
        (UPSAMPLE, "image.cuh", "uint64_t scaled", "(size - 1)", "size"),
        (UPSAMPLE, "image.cuh", "int c = ", "c < source.channels", "c <= source.channels"),
    )
]
# Where the engine copies, and blocks compute several tiles. (That a fence is missing, nothing here
# sees.)
BOXES = [
    Mutation(source, 90, *rest)
    for source, *rest in (
        (CONVOLUTION, "ptx.cuh", "void create_barrier", "[%0], 1;", "[%0], 2;"),
        (CONVOLUTION, "ptx.cuh", "void wait_for_phase", "ended == 0", "false"),
        (CONVOLUTION, "ptx.cuh", "int z, int w)", '"r"(x), "r"(y)', '"r"(y), "r"(x)'),
        (CONVOLUTION, "convolution.cuh", "void copy_boxes", "columns.shift", "0"),
        (CONVOLUTION, "convolution.cuh", "void copy_boxes", "rows.shift", "0"),
        (PAIR, "convolution.cuh", "void copy_boxes", "top += rows.dilation", "top += 0"),
        (PAIR, "convolution.cuh", "void copy_boxes", "rows.pitch * row_bytes", "row_bytes"),
        (CONVOLUTION, "convolution.cuh", "if (boxes) {", BARRIER, ""),
        (CONVOLUTION, "convolution.cuh", "if (boxes) {", "filling = stages - 1", "filling = 0"),
        (CONVOLUTION, "convolution.cuh", "show_to_engine();\n        ", BARRIER, ""),
        (CONVOLUTION, "convolution.cuh", "if (boxes) {", "^= reading == 0", "^= 1"),
        (CONVOLUTION, "convolution_kernel.cuh", "int tiles = 1", "gridDim.x >= conv", "1 >= conv"),
        (CONVOLUTION, "convolution_kernel.cuh", "begin_boxes =", "slots * pitch +", ""),
        (CONVOLUTION, "convolution_kernel.cuh", "begin_boxes =", "there.columns * n", "0"),
        (CONVOLUTION, "convolution_kernel.cuh", "begin_boxes =", "ahead.channel", "0"),
        (CONVOLUTION, "convolution_kernel.cuh", "begin_boxes =", "conv.taps.index[0]", "0"),
        (CONVOLUTION, "convolution_kernel.cuh", "begin_boxes =", "ahead = Cursor()", ""),
        (CONVOLUTION, "convolution_kernel.cuh", "begin_boxes =", "+= gridDim.x", "+= 0"),
        (CONVOLUTION, "convolution_kernel.cuh", "turn > 0", "place = place_of(", "place_of("),
        (CONVOLUTION, "convolution_kernel.cuh", "acc.clear", "next(begun + ", "next("),
        (CONVOLUTION, "convolution_kernel.cuh", "acc.clear", "__syncthreads();  // the mem", "//"),
        (PAIR, "asymmetric_conv.cuh", "second_boxes =", " - first_chunks) *", ") *"),
        (PAIR, "asymmetric_conv.cuh", "begin_boxes =", "boxes.first_weight", "boxes.second_weight"),
    )
]
# Calls that launch a source's kernels, with the variant that is asked for and whether launches are
# fused.
CALLS = {
    CONVOLUTION: [
        ("never", variant, call)
        for variant, call in (
            # One stage, two and three; tap by tap, and sliding.
            ("8,2,7,0", cases.conv_act(1, (31,), 33, (40, 21), stride=(2, 2), dilation=(1, 3))),
            ("4,1,2,0", cases.conv_act(1, (64, 144), 19, (9, 67), kernel=(1, 1), residual=True)),
            ("4,4,3,1", cases.conv_act(1, (40,), 10, (33, 34), pool=2)),
            # Warps that share pixels, each of which takes several steps of a chunk.
            ("8,1,2,0,2", cases.conv_act(1, (40, 24), 24, (18, 21), residual=True)),
            ("8,1,2,0,2", cases.conv_act(1, (40,), 16, (18, 21), dilation=(5, 5))),
            ("8,1,2,1,2", cases.conv_act(1, (80,), 16, (20, 34), activation="relu", pool=2)),
            # What operators are made of: enlarged residuals, prologues, addends, places in a block.
            (
                "4,1,2,0",
                cases.upsample_conv1x1(1, (24,), (20,), 24, (9, 13), (17, 26), activation="relu"),
            ),
            ("8,2,7,0", cases.mda(1, 40, 20, (13, 22))),
            ("4,4,3,1", cases.hardblock(1, 48, (10, 28, 10), (19, 20))),
            ("4,4,3,1", cases.conv_act(2, (18, 16, 33), 70, (37, 45), activation="relu")),
            ("8,2,7,0", cases.conv_act(2, (18, 16, 33), 70, (37, 45), activation="relu")),
        )
    ],
    PAIR: [
        ("always", "4,2,4,0", call)
        for call in (
            cases.asymmetric_conv(2, 31, 31, 31, (37, 45), 8, activation="prelu"),
            cases.asymmetric_conv(1, 40, 30, 30, (9, 150), 4),
            cases.dapf(1, 40, 20, 40, (33, 50), (3, 12, 24)),
            cases.mda(1, 24, 20, (13, 22)),
        )
    ],
    STEM: [
        ("", "", cases.conv_act(1, (3,), 24, (37, 45), stride=(2, 2))),
        ("", "", cases.normalize_conv_act(2, 16, (33, 50), stride=(2, 2), activation="relu")),
    ],
    UPSAMPLE: [
        ("", "", cases.upsample(2, 10, (9, 13), (33, 50))),
        ("", "", cases.upsample_argmax(1, 19, (9, 13), (33, 50))),
    ],
}


def padded(tensor: torch.Tensor) -> torch.Tensor:
    """An image whose pixels begin at whole vectors, with NaN behind their channels."""
    if tensor.dim() != 4:
        return tensor
    batch, channels, height, width = tensor.shape
    buffer = harness.poison((batch, height, width, -(-channels // 8) * 8), tensor)
    return buffer[..., :channels].permute(0, 3, 1, 2).copy_(tensor)


# How images lie, copies arrive, and the seed of the order of warps.
RUNS = (("channels_last", "late", 0), ("padded", "random", 3))

# The kernels that those calls ask for. All that there are take minutes to compile.
FEWER = (
    (
        "plan/plan.h",
        "(half_variants.. = )[^;]*",
        r"\1{{8, 2, 7}, {4, 1, 2}, {4, 4, 3, true}, {8, 1, 2, false, 2}, {8, 1, 2, true, 2}}",
    ),
    ("plan/plan.h", "(half_pairs.. = )[^;]*", r"\1{{4, pair_m_tiles, 4}}"),
    ("cuda/asymmetric_conv_half.cu", "template[^;]*bfloat16[^;]*;", ""),
)


def compiled(source: str, architecture: int, mistake: Mutation | None = None) -> str:
    """The PTX of a source, of a copy of csrc with a mistake or without."""
    with tempfile.TemporaryDirectory() as folder:
        csrc = shutil.copytree(build.CSRC, Path(folder) / "csrc")
        (csrc.parent / "fassd_kernels").symlink_to(build.ROOT / "fassd_kernels")
        for name, old, new in FEWER:
            path = csrc / name
            path.write_text(re.sub(old, new, path.read_text()))
        if mistake:
            mistake.apply(csrc)
        if source in CALLS:
            return build.ptx_of(csrc / "cuda" / source, architecture, csrc, flags())
        return build.ptx_of(build.HERE / source, architecture, csrc)


@functools.cache
def flags() -> list[str]:
    """What nvcc needs for PyTorch's headers."""
    from torch.utils.cpp_extension import include_paths

    includes = [f"-isystem={path}" for path in (*include_paths(), sysconfig.get_path("include"))]
    return [*includes, "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={build.TORCH_TARGET}"]


# What names of kernels in a namespace without a name owe to the place of their source.
PLACE = r"_GLOBAL__N__[0-9a-f]{8}_(\d+_\w+?_cu)_[0-9a-f]{8}"


@functools.cache
def places() -> dict[str, str]:
    from ptx import host

    texts = [path.read_text() for path in host.library().parent.glob("*.ptx")]
    return {found[1]: found[0] for text in texts for found in re.finditer(PLACE, text)}


def load(source: str, ptx: str) -> None:
    """Put kernels into the place of those that the backend was built with."""
    renamed = re.sub(PLACE, lambda found: places()[found[1]], ptx)
    executor.load(f"{source}.ptx", renamed)


def code(ptx: str) -> list[str]:
    """PTX without comments and places."""
    lines = re.sub(PLACE, r"\1", ptx).splitlines()
    return [line for line in lines if not line.lstrip().startswith("//")]


def primitives_say(architecture: int) -> str:
    for name, test in vars(test_primitives).items():
        if name.startswith("test_"):
            try:
                test(architecture)
            except (AssertionError, executor.Fault, pytest.fail.Exception) as error:
                return f"{name}: {str(error).strip().partition(chr(10))[0]}"
    return MISSED


def calls_say(source: str, architecture: int) -> str:
    """What is said of calls that launch the kernels of a source."""
    for fusion, variant, call in CALLS[source]:
        subject = harness.Subject(call.operator, harness.targets(["cuda"], ["cpu"])[0])
        for layout, arrival, seed in RUNS:
            capability = {80: 86}.get(architecture, architecture)
            settings = executor.settings(
                capability=capability, races=True, arrival=arrival, seed=seed
            )
            with pytest.MonkeyPatch.context() as patch, settings:
                patch.setenv("FASSD_KERNELS_CUDA_FUSION", fusion)
                patch.setenv("FASSD_KERNELS_CUDA_VARIANT", variant)
                patch.setitem(harness.LAYOUTS, "padded", padded)
                # Of a picture, pixels that lie side by side.
                layout = "contiguous" if "image" in call.arguments else layout
                try:
                    harness.check(subject, call, torch.float16, layout)
                except (AssertionError, RuntimeError) as error:
                    return f"{call.operator}: {str(error).strip().partition(chr(10))[0]}"
    return MISSED


def said_of(source: str, architecture: int) -> str:
    return calls_say(source, architecture) if source in CALLS else primitives_say(architecture)


@functools.cache
def as_it_stands(source: str, architecture: int) -> str:
    """The PTX of a source without a mistake, of which nothing is said."""
    ptx = compiled(source, architecture)
    load(source, ptx)
    assert said_of(source, architecture) == MISSED
    return ptx


def noticed(mutation: Mutation) -> str:
    """What the tests of the primitives, or calls of operators, say of a mistake."""
    source, architecture = mutation.source, mutation.architecture
    ptx, right = compiled(source, architecture, mutation), as_it_stands(source, architecture)
    if code(ptx) == code(right):
        return SAME
    load(source, ptx)
    try:
        return said_of(source, architecture)
    finally:
        load(source, right)


def tried() -> list[Mutation]:
    """Those that the executed GPU shows: of a 9.0 what the engine copies, of others all else."""
    if not harness.EXECUTED:
        return PRIMITIVES
    return BOXES if executor.DEFAULTS["capability"] >= 90 else [*PRIMITIVES, *KERNELS]


def main() -> None:
    asked = [m for m in tried() if all(word in str(m) for word in sys.argv[1:])]
    missed = 0
    for mutation in asked:
        said = noticed(mutation)
        missed += said == MISSED
        print(f"{mutation}\n    {said}", flush=True)
    print(f"{len(asked) - missed} of {len(asked)} are noticed, or change no instruction")
    if not harness.EXECUTED:
        print(f"{len(KERNELS) + len(BOXES)} in kernels were left out: PTX_SETTINGS is not set")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
