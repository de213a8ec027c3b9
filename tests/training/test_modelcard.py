"""Model cards of runs, and `fassd publish`, which writes them."""

import csv
import json
import shutil

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.hub_mixin import HfApi
from training.streets import small_recipe, write_cityscapes
from typer.testing import CliRunner

import fassd
from fassd.cli import app
from fassd.models import CheckpointError, FASSDNet, info_of
from fassd.models.device import torch_threads
from fassd.training import Trainer, model_card


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of the shortest run that is validated."""
    folder = tmp_path_factory.mktemp("card")
    card = write_cityscapes(folder / "cityscapes", train=2, val=1)
    with torch_threads(1):
        Trainer(small_recipe(steps=2, val_every=2), card, folder / "run").run()
    return folder / "run/best.safetensors"


def publish(*arguments):
    return CliRunner().invoke(app, ["publish", *map(str, arguments)])


def test_the_card_has_the_runs_data_recipe_and_scores(weights):
    card = ModelCard(model_card(weights, "owner/name", "cc-by-4.0"))
    facts = json.loads(_metadata(weights))
    with (weights.parent / "val.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["step"] == str(facts["step"]))
    values = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert values == {name: float(row[name]) for name in ("miou", "pixel_accuracy")}
    assert card.data.license == "cc-by-4.0"
    assert "# FASSD-Net-L2 on cityscapes" in card.text
    assert "2 pictures for training" in card.text
    assert f"the weights after step {facts['step']} of 2" in card.text
    assert f"| road | {100 * float(row['iou/road']):.1f} |" in card.text
    assert f"| **mean** | **{100 * float(row['miou']):.1f}** |" in card.text
    assert "model: fassd_net_l2\n" in card.text
    assert str(weights.parents[1]) not in card.text  # nor other paths of the machine


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return file.metadata()["fassd"]


def test_weights_without_their_folder_have_a_card_without_scores(weights, tmp_path):
    alone = shutil.copy(weights, tmp_path)
    card = ModelCard(model_card(alone))
    assert card.data.eval_results is None and "## Scores" not in card.text
    assert "data set 1: 2 pictures" in card.text


def test_several_validations_each_have_their_table(weights, tmp_path):
    shutil.copytree(weights.parent, tmp_path / "run")
    log = (tmp_path / "run/val.csv").read_text()
    (tmp_path / "run/val.2.csv").write_text(log.replace("iou/road", "iou/flat | ground"))
    text = model_card(tmp_path / "run/best.safetensors")
    assert text.index("## Scores on validation data 1") < text.index(
        "| road | ", text.index("## Scores")
    )
    assert text.index("## Scores on validation data 2") < text.index("| flat \\| ground |")


def test_files_that_no_run_wrote_are_refused(tmp_path):
    fassd.create_model("fassd_net_l2", weights="streets").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"not written by fassd train.* data, recipe, step"):
        model_card(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        model_card(tmp_path / "none.safetensors")


def test_publish_writes_a_folder(weights, tmp_path):
    result = publish(weights, "owner/name", "-o", tmp_path / "out", "--license", "mit")
    assert result.exit_code == 0, result.output
    assert info_of(FASSDNet.from_pretrained(tmp_path / "out")) == info_of(fassd.load(weights))
    assert (tmp_path / "out/README.md").read_text() == model_card(weights, "owner/name", "mit")


def test_publish_sends_it(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **_: type("Made", (), {"repo_id": repo_id})
    )
    sent = {}

    def upload_folder(self, **options):
        sent.update(options, card=(options["folder_path"] / "README.md").read_text())
        return "https://huggingface.co/owner/name/commit/1"

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    result = publish(weights, "owner/name")
    assert result.exit_code == 0 and "owner/name/commit/1" in result.output
    assert sent["card"] == model_card(weights, "owner/name")


def test_publish_refuses_what_is_no_run(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no")
    result = publish(tmp_path / "a.safetensors", "owner/name")
    assert result.exit_code == 2 and "does not say which network" in result.stderr
