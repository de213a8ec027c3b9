"""HarDBlocks of the C++ backend that are not computed layer by layer: so large that their rows go
in waves, or of an input that is transformed once for all layers that read it.
"""

import pytest
import torch

from fassd.models.hardnet import harmonic_inputs
from fassd_kernels import ops

WIDTHS = (10, 18, 10, 28)


@pytest.mark.parametrize("batch, height", [(1, 136), (2, 130)])
def test_waves_change_no_number(batch, height):
    """Layer by layer, the same sums are added in the same order, on any number of threads."""
    x = images(batch, height, 112).bfloat16()
    weights, biases = parameters(torch.bfloat16)
    expected = layer_by_layer(x, weights, biases)
    for result in results_of_threads(x, weights, biases):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("large", [1, 1e35])
def test_shared_input(large):
    """Winograd's method, or where a value is too large for it a sum over taps, of each layer's
    share of the input: near the sums in float64, and the same on any number of threads.
    """
    x = images(2, 37, 150)
    x[1, 3, 20, 70] = large
    weights, biases = parameters(torch.float32)
    doubled = [[tensor.double() for tensor in tensors] for tensors in (weights, biases)]
    expected = layer_by_layer(x.double(), *doubled)
    first, *others = results_of_threads(x, weights, biases)
    assert all(torch.equal(result, first) for result in others)
    apart = (first - expected).abs() / expected.abs().clamp(min=1)
    assert apart.median() < 1e-6 and apart[..., :60].max() < 1e-5 and first.isfinite().all()


def images(batch, height, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 20, height, width, generator=generator)
    return x.contiguous(memory_format=torch.channels_last)


def parameters(dtype):
    generator = torch.Generator().manual_seed(1)
    widths, weights, biases = [20, *WIDTHS], [], []
    for number, width in enumerate(WIDTHS, 1):
        channels = sum(widths[k] for k in harmonic_inputs(number))
        weight = torch.randn(width, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
        weights.append(weight.to(dtype))
        biases.append(torch.randn(width, generator=generator).to(dtype))
    return weights, biases


def layer_by_layer(x, weights, biases):
    layers = [x]
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), 1):
        inputs = [layers[k] for k in harmonic_inputs(number)]
        layers.append(ops.conv_act(inputs, weight, bias, activation="relu"))
    return torch.cat([layers[1], layers[3], layers[4]], 1)


def results_of_threads(x, weights, biases):
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            yield ops.hardblock(x, weights, biases)
    finally:
        torch.set_num_threads(threads)
