"""Mistakes in csrc/cuda that `ptx.mutations` plants: what stands there, and what it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
        (CONVOLUTION, "convolution_kernel.cuh", "acc.clear", "__syncthreads();  // the mem", "//"),
        (CONVOLUTION, "convolution_kernel.cuh", "float* staging", " + set * pixels_of_set", ""),
        (CONVOLUTION, "convolution_kernel.cuh", "float* staging", BARRIER, ""),
        (CONVOLUTION, "convolution_kernel.cuh", "add_sets<", BARRIER, ""),
        (CONVOLUTION, "epilogue.cuh", "void add_sets", "set * set_floats", "set_floats"),
        (CONVOLUTION, "epilogue.cuh", "void add_sets", "i % parts * 4", "i % parts"),
        (CONVOLUTION, "epilogue.cuh", "void add_sets", "set = 1;", "set = 2;"),
        # Several convolutions in one launch.
        (
            CONVOLUTION,
            "convolution_kernel.cuh",
            "group_kernel(",
            "convolutions[blockIdx.y]",
            "convolutions[0]",
        ),
        (CONVOLUTION, "convolution_kernel.cuh", "group_kernel(", "blockIdx.x < conv", "0 < conv"),
        (CONVOLUTION, "convolution_kernel.cuh", "bool slides", "sliding && (", "sliding || ("),
        (CONVOLUTION, "convolution_kernel.cuh", "bool slides", "!mixed || conv.slides", "true"),
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
        (CONVOLUTION, "multiply.cuh", "multiply(HalfMath<T>", "set * 32", "0"),
        (CONVOLUTION, "multiply.cuh", "at = base + a", "at += splits * 32", "at += 32"),
        (CONVOLUTION, "multiply.cuh", "at = base + a", f"splits{SPLIT}", SPLIT[3:]),
        (CONVOLUTION, "multiply.cuh", "factors[4];", "ptx::load", "if (lane != 7) ptx::load"),
        (CONVOLUTION, "multiply.cuh", "factors[4];", "factors[2],", "factors[3],"),
        (CONVOLUTION, "multiply.cuh", "void multiply_sliding", "first_step * 32 + ", ""),
        (CONVOLUTION, "multiply.cuh", "void multiply_sliding", "+= steps * 32", "+= 32"),
        (CONVOLUTION, "multiply.cuh", "void multiply_sliding", "set % columns", "0"),
        (CONVOLUTION, "multiply.cuh", "void multiply_sliding", "column += columns", "column++"),
        (CONVOLUTION, "multiply.cuh", "void multiply_sliding", "set / columns", "set"),
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
        (
            CONVOLUTION,
            "convolution_kernel.cuh",
            "group_kernel(",
            "boxes.of[blockIdx.y]",
            "boxes.of[0]",
        ),
        (PAIR, "asymmetric_conv.cuh", "second_boxes =", " - first_chunks) *", ") *"),
        (PAIR, "asymmetric_conv.cuh", "begin_boxes =", "boxes.first_weight", "boxes.second_weight"),
    )
]
