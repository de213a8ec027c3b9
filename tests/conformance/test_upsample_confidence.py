"""upsample_confidence against its definition."""

import math

import pytest
import torch
from conformance.cases import upsample_confidence
from conformance.definition import BATCHES, pairwise, sizes, standard_tests
from conformance.harness import LAYOUTS, Call
from conformance.test_upsample import FEW
from hypothesis import strategies as st

import fassd_kernels

pytestmark = pytest.mark.operators("upsample_confidence")

MEASURES = ("probability", "margin", "entropy")
test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    pairwise(
        channels=(1, 2, 7, 16, 19, 33, 256),
        low_size=((1, 1), (4, 1), (3, 5), (17, 25)),
        size=((1, 1), (1, 19), (5, 7), (17, 25), (33, 50)),
        batch=(1, 3),
        layout=tuple(LAYOUTS),
        align_corners=(True, False),
        measure=MEASURES,
        temperature=(1.0, 0.3, 2.5),
    ),
    tuple(dict(each, measure=measure) for each, measure in zip(FEW, MEASURES, strict=True)),
    batch=BATCHES,
    channels=st.integers(1, 40) | st.integers(1, 256),
    low_size=sizes(12, 20),
    size=sizes(),
    align_corners=st.booleans(),
    measure=st.sampled_from(MEASURES),
    temperature=st.floats(0.2, 5),
)


@pytest.mark.parametrize("measure, equal", [("probability", 127.5), ("margin", 0), ("entropy", 0)])
def test_certainty_by_hand(subject, dtype, measure, equal):
    """Two classes, equal ones, and such of probabilities 0.79 and 0.21."""
    logits = torch.zeros(1, 2, 1, 2, dtype=dtype, device=subject.device)
    logits[0, 1, 0, 1] = 2
    temperature = 2 / math.log(0.79 / 0.21)
    entropy = -(0.79 * math.log(0.79) + 0.21 * math.log(0.21)) / math.log(2)
    right = {"probability": 0.79, "margin": 0.58, "entropy": 1 - entropy}[measure]
    call = Call(
        "upsample_confidence",
        {"input": logits, "size": (1, 2), "measure": measure, "temperature": temperature},
    )
    labels, certainty = subject(call)[0, :, 0].tolist()
    assert labels == [0, 1]
    assert certainty == pytest.approx([equal, 255 * right], abs=1)


@pytest.mark.parametrize("measure", MEASURES)
def test_certainty_of_what_is_not_finite(subject, dtype, measure):
    """0 where the largest is no number or infinite; 255 where it is far above all others."""
    logits = torch.zeros(1, 9, 1, 5, dtype=dtype, device=subject.device)
    logits[0, 2] = 60
    logits[0, 4, 0, 0] = math.nan
    logits[0, 4, 0, 1] = math.inf
    logits[0, :, 0, 2] = -math.inf
    logits[0, 3:, 0, 3] = -1e4
    call = Call("upsample_confidence", {"input": logits, "size": (1, 5), "measure": measure})
    labels, certainty = subject(call)[0, :, 0].tolist()
    assert labels == [4, 4, 0, 2, 2]
    assert certainty == [0, 0, 0, 255, 255]


def test_labels_are_those_of_upsample_argmax(subject, dtype):
    call = upsample_confidence(2, 19, (9, 13), (65, 97)).to(dtype, subject.device)
    logits = call.arguments["input"]
    logits.copy_((2 * logits).round())  # with ties
    labels = fassd_kernels.ops.operator("upsample_argmax", subject.target.backend.name)
    assert torch.equal(subject(call)[:, 0], labels(logits, (65, 97)))
