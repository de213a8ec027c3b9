import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fassd.training.optim import (
    cosine_learning_rate,
    flatten_optimizer,
    poly_learning_rate,
    restore_optimizer,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "training.json").read_text())


@pytest.mark.parametrize(("step", "rate"), GOLDEN["poly_lr"].items())
def test_equals_the_authors(step, rate):
    assert poly_learning_rate(int(step), 0.02, 90_000) == pytest.approx(rate, rel=1e-12)


def test_falls_to_zero_at_the_last_step():
    rates = [poly_learning_rate(step, 1.0, 10, 1.0) for step in range(10)]
    assert rates == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])


def test_warmup_scales_the_first_steps():
    plain = [poly_learning_rate(step, 1.0, 100) for step in range(6)]
    warm = [poly_learning_rate(step, 1.0, 100, warmup_steps=3) for step in range(6)]
    factors = [w / p for w, p in zip(warm, plain, strict=True)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_half_a_wave():
    rates = [cosine_learning_rate(step, 2.0, 6) for step in range(6)]
    root = 3**0.5 / 2
    assert rates == pytest.approx([1 + root, 1.5, 1, 0.5, 1 - root, 0])
    warm = [cosine_learning_rate(step, 2.0, 6, warmup_steps=2) for step in range(3)]
    assert warm == pytest.approx([rates[0] / 3, rates[1] * 2 / 3, rates[2]])
    with pytest.raises(ValueError, match="from 0 to 5, got 6"):
        cosine_learning_rate(6, 2.0, 6)


@pytest.mark.parametrize("step", [-1, 10])
def test_outside_the_run(step):
    with pytest.raises(ValueError, match=f"from 0 to 9, got {step}"):
        poly_learning_rate(step, 0.1, 10)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_goes_on_where_it_was(kind):
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}

    def steps(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.01, **settings)
    steps(model, optimizer, 2)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    resumed = kind(twin.parameters(), lr=0.01, **settings)
    tensors = {key: value.clone() for key, value in flatten_optimizer(optimizer).items()}
    restore_optimizer(resumed, tensors)
    steps(model, optimizer, 2)
    steps(twin, resumed, 2)
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)
