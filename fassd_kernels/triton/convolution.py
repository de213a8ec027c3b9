"""Device functions that the convolution kernels share: taps, activations, addresses of pixels.

A tile is BLOCK_M pixels by BLOCK_N output channels, an implicit GEMM: for every chunk of BLOCK_K
input channels, all taps are multiplied one after the other (unrolled by `static_range`; a flattened
loop over taps was seen to miscompile at 8 warps), so that a chunk's nine shifted reads of one
neighbourhood follow each other in the caches.

Strides of pixels are given in units of VECTOR elements and multiplied by it here, so that the
compiler can infer that rows are aligned, and loads 16 bytes at a time. DENSE images have their
pixels at equal distances, across rows and pictures: one product gives an address, and one register
holds a stride.
"""

import triton
import triton.language as tl


@triton.jit
def up_to_six(x):
    """min(max(x, 0), 6)."""
    return tl.where(x > 6, 6.0, tl.where(x < 0, 0.0, x))


@triton.jit
def activate(x, slope, ACTIVATION: tl.constexpr):
    """One of `fassd_kernels.checks.ACTIVATIONS`; NaN stays NaN."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "prelu":
        x = tl.where(x > 0, x, x * slope)
    elif ACTIVATION == "relu6":
        x = up_to_six(x)
    elif ACTIVATION == "hardswish":
        x = x * (up_to_six(x + 3) / 6)
    elif ACTIVATION == "hardsigmoid":
        x = up_to_six(x + 3) / 6
    elif ACTIVATION == "sigmoid":
        x = 1 / (1 + tl.exp(-x))
    elif ACTIVATION == "silu":
        x = x / (1 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        x = x * (0.5 + 0.5 * tl.erf(x * 0.7071067811865475))
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh(u)) / 2 = sigmoid(2 u)
        x = x / (1 + tl.exp(-1.5957691216057308 * x * (1 + 0.044715 * x * x)))
    return x


@triton.jit
def round_tf32(x):
    """float32 values with ten bits of mantissa, the nearest, ties away from zero.

    The result of ptxas for `cvt.rna.tf32.f32`, instruction by instruction, in operations that the
    interpreter and every GPU support.
    """
    bits = x.to(tl.int32, bitcast=True) + tl.where(tl.abs(x) < float("inf"), 0x1000, 0)
    return (bits & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def multiply(value, weight, row, real, column, weight_stride, acc, PRECISION: tl.constexpr):
    """acc + value @ the rows that begin at `row`; "tf32", "ieee" only differ for float32 values."""
    factors = tl.load(
        weight + row[:, None] + column[None, :],
        mask=real[:, None] & (column < weight_stride)[None, :],
        other=0.0,
    )
    # The PTX ISA leaves undefined what happens to the 13 bits that TF32 has no room for, and so
    # does Triton. They are usually dropped, which makes products 0.065% too small.
    if PRECISION == "tf32":
        value = round_tf32(value)
        factors = round_tf32(factors)
    return tl.dot(value, factors, acc, input_precision=PRECISION)


@triton.jit
def load_vector(pointer, index, inside):
    """Values per channel as float32, zeros outside."""
    return tl.load(pointer + index, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def locate(m, height, width, POOL: tl.constexpr):
    """Picture, row and column of pixel `m`; the pixels of a pooling window are consecutive."""
    window = m // (POOL * POOL)
    corner = m % (POOL * POOL)
    x = (window % width) * POOL + corner % POOL
    y = ((window // width) % height) * POOL + corner // POOL
    return window // (width * height), y, x


@triton.jit
def own_pixels(height, width, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """A program's pixels, with the picture, row and column of each, and its channels."""
    tile = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if WIDE:
        tile = tile.to(tl.int64)
        c = c.to(tl.int64)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n, y, x = locate(m, height, width, 1)
    return m, n, y, x, c


@triton.jit
def multiply_chunk(
    acc, inputs, addend, weight, scale, shift, in_slope, strides, channels, chunk, n, y, x, inside,
    column, height, width, weight_stride, dilation_h, dilation_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, TAPS: tl.constexpr, PROLOGUE: tl.constexpr,
    CLEAN: tl.constexpr, DENSE: tl.constexpr, SKIP: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Add one chunk of input channels, at all taps, to `acc` [BLOCK_M, BLOCK_N].

    The chunk is counted across the virtual concatenation of `inputs`; every input starts a new one.
    Scalars are selected, not branched on, so that the loop over chunks can be pipelined.
    """
    source = inputs[0]
    stride_n, stride_h, stride_w, stride_c = strides[0], strides[1], strides[2], strides[3]
    count = channels[0]
    first_chunk = 0  # first chunk of this input
    first_row = 0  # first row of its channels in the weight
    next_chunk = tl.cdiv(channels[0], BLOCK_K)
    rows = channels[0]
    for i in tl.static_range(1, len(inputs)):
        here = chunk >= next_chunk
        source = tl.where(here, inputs[i], source)
        if not DENSE:
            stride_n = tl.where(here, strides[4 * i], stride_n)
            stride_h = tl.where(here, strides[4 * i + 1], stride_h)
        stride_w = tl.where(here, strides[4 * i + 2], stride_w)
        stride_c = (
            strides[4 * i + 3] if VECTOR > 1 else tl.where(here, strides[4 * i + 3], stride_c)
        )
        count = tl.where(here, channels[i], count)
        first_chunk = tl.where(here, next_chunk, first_chunk)
        first_row = tl.where(here, rows, first_row)
        next_chunk += tl.cdiv(channels[i], BLOCK_K)
        rows += channels[i]

    k = (chunk - first_chunk) * BLOCK_K + tl.arange(0, BLOCK_K)
    if WIDE:
        k = k.to(tl.int64)
    real = k < count
    # Whole vectors are loaded; lanes after the last channel are zero (CLEAN) or cleared below.
    loaded = k < tl.cdiv(count, VECTOR) * VECTOR
    if PROLOGUE:
        factor = tl.load(scale + k, mask=real, other=0.0).to(tl.float32)[None, :]
        term = tl.load(shift + k, mask=real, other=0.0).to(tl.float32)[None, :]
        slope = tl.load(in_slope + k, mask=real, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(KERNEL_H * KERNEL_W):
        if (TAPS >> tap) & 1:
            row = y + (tap // KERNEL_W - KERNEL_H // 2) * dilation_h
            col = x + (tap % KERNEL_W - KERNEL_W // 2) * dilation_w
            here = inside & (row >= 0) & (row < height) & (col >= 0) & (col < width)
            alive = True
            if SKIP:
                alive = tl.max(here.to(tl.int32), axis=0) > 0
            if alive:
                if DENSE:
                    offset = ((n * height + row) * width + col) * stride_w * VECTOR
                else:
                    offset = (n * stride_n + row * stride_h + col * stride_w) * VECTOR
                at = offset[:, None] + (k * stride_c)[None, :]
                value = tl.load(source + at, mask=here[:, None] & loaded[None, :], other=0.0)
                if PROLOGUE:
                    value = value.to(tl.float32)
                    if addend is not None:
                        value += tl.load(
                            addend + at, mask=here[:, None] & loaded[None, :], other=0.0
                        ).to(tl.float32)
                    value = activate(value * factor + term, slope, "prelu")
                    # Padding comes after the activation, not before it.
                    value = tl.where(here[:, None] & real[None, :], value, 0.0)
                    value = value.to(weight.dtype.element_ty)
                elif not CLEAN:
                    value = tl.where(real[None, :], value, 0.0)
                at_row = (tap * rows + first_row + k) * weight_stride
                acc = multiply(value, weight, at_row, real, column, weight_stride, acc, PRECISION)
    return acc


@triton.jit
def convolve(
    inputs, addend, weight, scale, shift, in_slope, strides, channels, n, y, x, inside, column,
    height, width, weight_stride, dilation_h, dilation_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, TAPS: tl.constexpr, PROLOGUE: tl.constexpr,
    CLEAN: tl.constexpr, DENSE: tl.constexpr, SKIP: tl.constexpr, FLUSH: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolve at input positions (n, y, x) [BLOCK_M], output channels `column` [BLOCK_N].

    Returns float32 [BLOCK_M, BLOCK_N]. With FLUSH, every FLUSH chunks are summed separately first:
    a single sum of 18,000 float32 terms would lose more than the tolerance.
    """
    chunks = 0
    for i in tl.static_range(len(inputs)):
        chunks += tl.cdiv(channels[i], BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if FLUSH == 0:
        for chunk in range(0, chunks):
            acc = multiply_chunk(
                acc, inputs, addend, weight, scale, shift, in_slope, strides, channels, chunk, n, y,
                x, inside, column, height, width, weight_stride, dilation_h, dilation_w,
                KERNEL_H, KERNEL_W, TAPS, PROLOGUE, CLEAN, DENSE, SKIP, PRECISION, WIDE, VECTOR,
                BLOCK_K,
            )  # fmt: skip
    else:
        for first in range(0, chunks, FLUSH):
            part = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for chunk in range(first, tl.minimum(first + FLUSH, chunks)):
                part = multiply_chunk(
                    part, inputs, addend, weight, scale, shift, in_slope, strides, channels, chunk,
                    n, y, x, inside, column, height, width, weight_stride, dilation_h, dilation_w,
                    KERNEL_H, KERNEL_W, TAPS, PROLOGUE, CLEAN, DENSE, SKIP, PRECISION, WIDE,
                    VECTOR, BLOCK_K,
                )  # fmt: skip
            acc += part
    return acc


@triton.jit
def source_of(position, size, out_size, ALIGN_CORNERS: tl.constexpr):
    """Bilinear: the pixel before, the pixel after, and the weight of the latter.

    The centres of the corners coincide, ``position * (size - 1) / (out_size - 1)``, or their outer
    edges do, ``(position + 1/2) * size / out_size - 1/2``, at least 0. Computed exactly, in whole
    numbers: float32 would be off by 3e-5 of a pixel in a row of 512. An axis that keeps its size
    reads no neighbour.
    """
    if ALIGN_CORNERS:
        steps = tl.maximum(out_size - 1, 1)
        scaled = position * (size - 1)
    else:
        steps = 2 * out_size
        scaled = tl.maximum((2 * position + 1) * size - out_size, 0)
    before = scaled // steps
    weight = (scaled - before * steps).to(tl.float32) / steps
    after = tl.where(size == out_size, before, tl.minimum(before + 1, size - 1))
    return before, after, weight


@triton.jit
def load_resized(
    image, n, y, x, c, inside, stride_n, stride_h, stride_w, stride_c, height, width, out_height,
    out_width, VECTOR: tl.constexpr, ALIGN_CORNERS: tl.constexpr = True,
):  # fmt: skip
    """Pixels (n, y, x) [M] of an image resized to out_height x out_width, channels `c` [C].

    Returns float32 [M, C]; `inside` is the mask [M, C].
    """
    top, bottom, weight_y = source_of(y, height, out_height, ALIGN_CORNERS)
    left, right, weight_x = source_of(x, width, out_width, ALIGN_CORNERS)
    above = (n * stride_n + top * stride_h) * VECTOR
    below = (n * stride_n + bottom * stride_h) * VECTOR
    at_left = (left * stride_w) * VECTOR
    at_right = (right * stride_w) * VECTOR
    at = image + (c * stride_c)[None, :]
    a = tl.load(at + (above + at_left)[:, None], mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + (above + at_right)[:, None], mask=inside, other=0.0).to(tl.float32)
    upper = a * (1 - weight_x)[:, None] + b * weight_x[:, None]
    a = tl.load(at + (below + at_left)[:, None], mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + (below + at_right)[:, None], mask=inside, other=0.0).to(tl.float32)
    lower = a * (1 - weight_x)[:, None] + b * weight_x[:, None]
    return upper * (1 - weight_y)[:, None] + lower * weight_y[:, None]
