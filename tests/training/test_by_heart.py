"""The slow set (``make slow``): that training learns, from nothing to the last pixel."""

import time

import pytest
from training.streets import Recorder, write_cityscapes

from fassd.data import SegmentationDataset
from fassd.models import create_model, load_checkpoint
from fassd.training import Trainer, evaluate, load_recipe


@pytest.mark.slow
def test_eight_scenes_are_learnt_by_heart(tmp_path):
    """FASSD-Net from random weights, five minutes on two cores.

    The scenes are 64x128 and shown four times enlarged, so that the network's finest map has one
    cell for each of their pixels.
    """
    card = write_cityscapes(tmp_path / "data", train=8, val=1)
    recipe = load_recipe("demo").replace(
        crop=[256, 512],
        scale=[4.0, 4.0],
        flip=0.0,
        jitter=0.0,
        steps=300,
        batch=4,
        ema=0.95,
        val_every=0,
        save_every=300,
        workers=0,
    )
    started = time.monotonic()
    Trainer(recipe, card, tmp_path / "run", reporter=Recorder()).run()
    model = create_model("fassd_net")
    load_checkpoint(model, tmp_path / "run" / "last.safetensors")
    evaluation = evaluate(model, SegmentationDataset(card, "train"), scales=(4.0,))
    print(f"mIoU {evaluation.scores.miou:.4f} in {time.monotonic() - started:.0f} s")
    assert evaluation.count == 8
    assert evaluation.scores.miou > 0.95
