import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.golden import image

from fassd.training.loss import (
    BootstrappedCrossEntropy,
    CrossEntropy,
    RegionLoss,
    hardest_mean,
    pixel_losses,
)
from fassd_kernels.ops import CPU_MISSING

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "training.json").read_text())


def golden_labels(shape, salt):
    rng = np.random.default_rng([11, salt])
    labels = rng.integers(0, 19, shape)
    labels[rng.random(shape) < 0.1] = 250
    return torch.from_numpy(labels)


@pytest.mark.parametrize("case", GOLDEN["bootstrapped_ce"], ids=lambda case: str(case["shape"]))
def test_equals_the_authors(case):
    n, _, h, w = case["shape"]
    logits = image(tuple(case["shape"]), case["salt"]) * case["scale"]
    loss = BootstrappedCrossEntropy(4096, 0.3, ignore_index=250)
    value = loss(logits, golden_labels((n, h, w), case["salt"]))
    assert value.item() == pytest.approx(case["value"], rel=2e-6)


@pytest.fixture(autouse=True, params=[torch.contiguous_format, torch.channels_last], ids=str)
def layout_of_cases(request, monkeypatch):
    """PyTorch computes the first, the C++ extension the second."""
    monkeypatch.setattr(sys.modules[__name__], "LAYOUT", request.param)
    return request.param


LAYOUT = torch.contiguous_format


def random_case(shape=(2, 5, 24, 32), seed=0, ignored=0.2):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator).contiguous(memory_format=LAYOUT)
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits, labels


@pytest.mark.parametrize("min_pixels", [1, 50, 300, 600])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 4.0, 100.0])
def test_is_the_mean_of_the_hardest_pixels_of_each_picture(min_pixels, threshold):
    logits, labels = random_case()
    expected = []
    for scores, truth in zip(logits.double(), labels, strict=True):
        losses = F.cross_entropy(scores[None], truth[None], ignore_index=255, reduction="none")
        hardest = np.sort(losses[0][truth != 255].numpy())[::-1]
        above = hardest[hardest > threshold]
        expected.append((above if len(above) > min_pixels else hardest[:min_pixels]).mean())
    value = BootstrappedCrossEntropy(min_pixels, threshold)(logits, labels)
    assert value.item() == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("loss", [BootstrappedCrossEntropy(), CrossEntropy()])
def test_all_labelled_pixels_of_small_pictures_count_and_a_mean_is_of_means(loss):
    logits, labels = random_case((2, 5, 8, 8))
    each = [
        F.cross_entropy(scores[None], truth[None], ignore_index=255)
        for scores, truth in zip(logits, labels, strict=True)
    ]
    assert loss(logits, labels).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-6)


@pytest.mark.parametrize("loss", [BootstrappedCrossEntropy(10), CrossEntropy()])
def test_a_picture_without_labels_does_not_count(loss):
    logits, labels = random_case()
    alone = loss(logits[:1], labels[:1])
    labels[1] = 255
    assert loss(logits, labels).item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("loss", [BootstrappedCrossEntropy(10), CrossEntropy()])
def test_nothing_labelled_gives_zero_and_zero_gradients(loss):
    logits, labels = random_case()
    logits.requires_grad_()
    value = loss(logits, torch.full_like(labels, 255))
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("loss", [BootstrappedCrossEntropy(40, 1.0), CrossEntropy()])
def test_gradients(loss):
    logits, labels = random_case((2, 3, 6, 5))
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits)


@pytest.mark.parametrize("classes", [3, 19])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("hard", [0.02, 0.4, 1.0])
def test_gradients_are_those_of_cross_entropy(classes, layout, hard):
    """Few pixels that count, or most; logits in either layout."""
    logits, labels = random_case((2, classes, 17, 23), ignored=0.1)
    logits = logits.to(memory_format=layout).requires_grad_()
    loss = BootstrappedCrossEntropy(max(1, int(hard * 350)), 1e9)
    (gradient,) = torch.autograd.grad(loss(logits, labels), logits)
    expected = []
    for scores, truth in zip(logits, labels, strict=True):
        losses = F.cross_entropy(scores[None], truth[None], ignore_index=255, reduction="none")
        counted = losses[0][truth != 255]
        expected.append(counted.topk(min(loss.min_pixels, len(counted))).values.mean())
    (right,) = torch.autograd.grad(torch.stack(expected).mean(), logits)
    torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-8)


def test_a_loss_of_nan_logits_is_nan():
    logits, labels = random_case()
    logits[0, :, 3, 3] = torch.nan
    labels[0, 3, 3] = 1
    assert CrossEntropy()(logits, labels).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, labels = random_case()
    logits = logits.to(dtype)
    loss = BootstrappedCrossEntropy(50)
    assert loss(logits, labels) == loss(logits.float(), labels)


def test_takes_uint8_labels():
    logits, labels = random_case()
    loss = BootstrappedCrossEntropy(50)
    assert loss(logits, labels.to(torch.uint8)) == loss(logits, labels)


def test_hardest_mean_of_nothing():
    assert hardest_mean(torch.zeros(0), 5, 0.3) == 0


def test_bad_settings_and_shapes_are_named():
    with pytest.raises(ValueError, match="min_pixels must be at least 1, got 0"):
        BootstrappedCrossEntropy(0)
    with pytest.raises(ValueError, match="threshold must be at least 0, got nan"):
        BootstrappedCrossEntropy(5, float("nan"))
    with pytest.raises(ValueError, match=r"got \(1, 3, 4, 4\) and \(1, 4, 5\)"):
        BootstrappedCrossEntropy()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 5))


GROUPS = [[0, 2], [1, 3, 4]]


def grouped_case():
    """Labels of 5 classes, of the two groups behind them, and ignored ones."""
    logits, labels = random_case()
    generator = torch.Generator().manual_seed(1)
    groups = torch.randint(5, 7, labels.shape, generator=generator)
    mixed = labels.where(torch.rand(labels.shape, generator=generator) < 0.5, groups)
    return logits, mixed.where(labels != 255, 255)


def by_hand(logits, labels):
    """-log of the summed probability of every pixel that counts, picture by picture."""
    pictures = []
    for probabilities, truth in zip(logits.double().softmax(1), labels, strict=True):
        members = [[0], [1], [2], [3], [4], *GROUPS]
        summed = torch.stack([probabilities[group].sum(0) for group in members])
        counted = truth != 255
        chosen = summed.movedim(0, -1)[counted].gather(1, truth[counted][:, None])
        pictures.append(-chosen[:, 0].log())
    return pictures


@pytest.mark.parametrize("min_pixels", [1, 50, 300, 10_000])
@pytest.mark.parametrize("threshold", [0.1, 1.0, 100.0])
def test_a_groups_loss_is_of_its_summed_probability(min_pixels, threshold):
    logits, labels = grouped_case()
    expected = []
    for losses in by_hand(logits, labels):
        hardest = losses.sort(descending=True).values
        above = hardest[hardest > threshold]
        expected.append((above if len(above) > min_pixels else hardest[:min_pixels]).mean())
    loss = BootstrappedCrossEntropy(min_pixels, threshold, groups=GROUPS)
    assert loss(logits, labels).item() == pytest.approx(np.mean(expected), rel=1e-5)
    mean = np.mean([losses.mean().item() for losses in by_hand(logits, labels)])
    assert CrossEntropy(groups=GROUPS)(logits, labels).item() == pytest.approx(mean, rel=1e-5)


def test_labels_without_groups_lose_the_same_where_there_are_groups():
    logits, labels = random_case()
    assert CrossEntropy(groups=GROUPS)(logits, labels) == CrossEntropy()(logits, labels)


def test_gradients_of_groups():
    logits, labels = grouped_case()
    logits = logits[:, :, :4, :4].double().contiguous(memory_format=LAYOUT).requires_grad_()
    labels = labels[:, :4, :4]
    for loss in (BootstrappedCrossEntropy(8, 1.0, groups=GROUPS), CrossEntropy(groups=GROUPS)):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, labels), logits)


def test_a_group_that_is_nearly_impossible_has_a_finite_loss():
    logits = torch.full((1, 5, 2, 2), -1e4).contiguous(memory_format=LAYOUT).requires_grad_()
    with torch.no_grad():
        logits[:, 1] = 1e4
    value = CrossEntropy(groups=GROUPS)(logits, torch.full((1, 2, 2), 5))
    value.backward()
    assert value.item() == pytest.approx(2e4, rel=1e-4) and logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_groups_in_half_precision_are_computed_in_float32(dtype):
    logits, labels = grouped_case()
    logits = logits.to(dtype)
    loss = BootstrappedCrossEntropy(50, groups=GROUPS)
    assert loss(logits, labels.to(torch.uint8)) == loss(logits.float(), labels)


@pytest.mark.skipif(CPU_MISSING is not None, reason=str(CPU_MISSING))
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.float16, 5e-4), (torch.bfloat16, 4e-3)],
)
@pytest.mark.parametrize("shape", [(2, 5, 1, 1), (1, 5, 7, 9), (2, 5, 41, 53)])
def test_compiled_losses_and_gradients_are_those_of_float64(shape, dtype, tolerance):
    """Odd numbers of pixels, gradients of all, some and none; logits of any size."""
    generator = torch.Generator().manual_seed(2)
    logits = 30 * torch.randn(shape, generator=generator)
    logits = logits.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    size = (shape[0], *shape[2:])
    labels = torch.randint(0, 8, size, generator=generator)
    labels[labels == 7] = 255
    weights = torch.randn(size, generator=generator).where(labels % 2 == 0, 0)
    weights[0, -1] = 0
    exact = logits.detach().double().contiguous().requires_grad_()
    results = []
    for given in (logits, exact):
        losses = pixel_losses(given, labels, 255, GROUPS)
        (gradient,) = torch.autograd.grad(losses, given, weights.to(losses.dtype))
        results.append((losses, gradient))
    for found, truth in zip(*results, strict=True):
        assert (found.double() - truth).norm() <= tolerance * truth.norm()
    assert results[0][0].dtype == torch.promote_types(dtype, torch.float32)
    assert results[0][1].dtype == dtype


@pytest.mark.skipif(CPU_MISSING is not None, reason=str(CPU_MISSING))
@pytest.mark.parametrize("label", [-1, 7, 254])
def test_a_label_that_nothing_stands_for_is_named(label):
    logits = torch.randn(1, 5, 2, 3).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=f"a label is {label}; expected less than 7"):
        pixel_losses(logits, torch.full((1, 2, 3), label), 255, GROUPS)


MEMBERS = [[0], [1], [2], [3], [4], *GROUPS]


def test_dice_is_the_mean_over_what_labels_a_picture():
    logits, labels = grouped_case()
    expected = []
    for probabilities, truth in zip(logits.double().softmax(1), labels, strict=True):
        rows, kinds = probabilities[:, truth != 255], truth[truth != 255]
        terms = []
        for kind in kinds.unique():
            found, right = rows[MEMBERS[kind]].sum(0), (kinds == kind).double()
            terms.append(1 - 2 * (found * right).sum() / (found.sum() + right.sum()))
        assert len(terms) == 7
        expected.append(sum(terms).item() / len(terms))
    base = CrossEntropy(groups=GROUPS)
    term = RegionLoss(base, dice=2.0)(logits, labels) - base(logits, labels)
    assert term.item() == pytest.approx(2 * np.mean(expected), rel=1e-4)


def test_lovasz_of_certain_predictions_is_one_minus_iou():
    """Which it extends to probabilities; 0 where all is right."""
    _, labels = grouped_case()
    torch.manual_seed(0)
    guess = torch.randint(0, 5, labels.shape)
    logits = 200 * F.one_hot(guess, 5).movedim(3, 1).double()
    expected = []
    for predicted, truth in zip(guess, labels, strict=True):
        predicted, truth = predicted[truth != 255], truth[truth != 255]
        ious = []
        for kind in truth.unique():
            found, right = torch.isin(predicted, torch.tensor(MEMBERS[kind])), truth == kind
            ious.append((found & right).sum() / (found | right).sum())
        expected.append(1 - sum(ious) / len(ious))
    base = CrossEntropy(groups=GROUPS)
    term = RegionLoss(base, lovasz=1.0)(logits, labels) - base(logits, labels)
    assert term.item() == pytest.approx(np.mean(expected), rel=1e-6)
    right = RegionLoss(base, lovasz=1.0, dice=1.0)(logits, guess)
    assert right.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("weights", [{"dice": 1.0}, {"lovasz": 1.0}])
def test_gradients_of_regions(weights):
    logits, labels = grouped_case()
    logits = logits[:, :, :4, :4].double().contiguous(memory_format=LAYOUT).requires_grad_()
    labels = labels[:, :4, :4]
    loss = RegionLoss(BootstrappedCrossEntropy(5, 1.0, groups=GROUPS), **weights)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits)


def test_regions_of_a_picture_without_labels_do_not_count():
    logits, labels = random_case()
    loss = RegionLoss(CrossEntropy(), dice=1.0, lovasz=1.0)
    alone = loss(logits[:1], labels[:1])
    labels[1] = 255
    logits.requires_grad_()
    both = loss(logits, labels)
    assert both.item() == pytest.approx(alone.item(), rel=1e-6)
    both.backward()
    assert logits.grad[1].abs().max() == 0
    with pytest.raises(ValueError, match="dice must be at least 0, got -1"):
        RegionLoss(CrossEntropy(), dice=-1)
