"""A HarDBlock of the C++ backend so large that its layers are computed a few rows at a time."""

import pytest
import torch

from fassd.models.hardnet import harmonic_inputs
from fassd_kernels import ops

WIDTHS = (10, 18, 10, 28)


@pytest.mark.parametrize("batch, height", [(1, 136), (2, 130)])
def test_waves_change_no_number(batch, height):
    """Layer by layer, the same sums are added in the same order, on any number of threads."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 20, height, 112, generator=generator).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    layers, weights, biases = [x], [], []
    for number, width in enumerate(WIDTHS, 1):
        inputs = [layers[k] for k in harmonic_inputs(number)]
        channels = sum(layer.shape[1] for layer in inputs)
        weight = torch.randn(width, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
        weights.append(weight.bfloat16())
        biases.append(torch.randn(width, generator=generator).bfloat16())
        layers.append(ops.conv_act(inputs, weights[-1], biases[-1], activation="relu"))
    expected = torch.cat([layers[1], layers[3], layers[4]], 1)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 16):
            torch.set_num_threads(count)
            assert torch.equal(ops.hardblock(x, weights, biases), expected)
    finally:
        torch.set_num_threads(threads)
