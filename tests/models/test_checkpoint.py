"""Reading checkpoints of every accepted kind, and refusing the others without a trace."""

import argparse
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from models.conftest import network, refused
from safetensors.torch import save_file

from fassd.models import CheckpointError, create_model, load_checkpoint
from fassd.models.checkpoint import classes_in


@pytest.fixture(scope="module")
def trained(golden):
    """A network whose weights differ from every freshly initialised one."""
    return golden.fill(create_model("fassd_net_l2"), salt=3)


@pytest.fixture
def model():
    return create_model("fassd_net_l2")


def old_spelling(key):
    key = re.sub(r"^DAPF\.", "aspp.", key).replace("pyBranch", "aspp")
    return re.sub(r"^mda\.", "Dab_leo.", key).replace("parallel_ddconv", "ddconv")


def same(model, other):
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def authors_dict(state):
    return {
        "epoch": 86000,
        "model_state": {"module." + key: value for key, value in state.items()},
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.02, "params": [0, 1]}]},
        "best_iou": np.float64(0.78),
        "counts": [np.int64(3), np.float32(0.5), np.bool_(True)],
    }


@pytest.mark.parametrize("spelling", [str, old_spelling], ids=["new", "old"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_authors_files(trained, model, tmp_path, spelling, zipped):
    state = {spelling(key): value for key, value in trained.state_dict().items()}
    path = tmp_path / "authors.pkl"
    torch.save(authors_dict(state), path, _use_new_zipfile_serialization=zipped)
    report = load_checkpoint(model, path)
    assert same(model, trained)
    assert set(report.loaded) == set(model.state_dict())
    assert (report.missing, report.ignored, report.misshapen) == ((), (), ())
    assert str(report) == "authors.pkl: 401 tensors loaded"


def test_scalars_of_numpy_1(trained, model, tmp_path):
    """NumPy 1 names the reconstructor numpy.core.multiarray.scalar, in a file of either age."""
    path = tmp_path / "numpy1.pkl"
    torch.save(authors_dict(trained.state_dict()), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    assert new in content or old in content
    path.write_bytes(content.replace(new, old))
    load_checkpoint(model, path)
    assert same(model, trained)


def test_plain_state_dict_and_safetensors(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "plain.pth")
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    for name in ("plain.pth", "weights.safetensors"):
        model = create_model("fassd_net_l2")
        load_checkpoint(model, tmp_path / name)
        assert same(model, trained)


def averaged(net):
    return torch.optim.swa_utils.AveragedModel(net).state_dict()


def with_prefix(prefix, net):
    return {prefix + key: value for key, value in net.state_dict().items()}


OTHERS = {
    "model_state": lambda net: {"model_state": net.state_dict()},
    "state_dict": lambda net: {"state_dict": net.state_dict()},
    "model": lambda net: {"model": net.state_dict()},
    "model_state_dict": lambda net: {"model_state_dict": net.state_dict()},
    "net": lambda net: {"net": net.state_dict()},
    "network": lambda net: {"network": with_prefix("module.", net)},
    "ema": lambda net: {"ema": net.state_dict()},
    "ema_model_state_dict": lambda net: {"ema_model_state_dict": net.state_dict()},
    "ema.module": lambda net: {"ema": {"module": net.state_dict(), "updates": 7}},
    "averaged": averaged,
    "averaged below": lambda net: {"ema": averaged(net), "model": {"epoch": 3}},
    "three levels": lambda net: {"state": 3, "model": {"net": {"state_dict": net.state_dict()}}},
    "beside a tensor": lambda net: {"epoch": torch.tensor(3), "params": net.state_dict()},
    "model.": lambda net: with_prefix("model.", net),
    "net.": lambda net: with_prefix("net.", net),
    "module.model.": lambda net: with_prefix("module.model.", net),
    "model.module.": lambda net: with_prefix("model.module.", net),
    "network._orig_mod.": lambda net: with_prefix("network._orig_mod.", net),
    "_orig_mod. inside": lambda net: {
        key.replace("0.", "0._orig_mod."): value for key, value in net.state_dict().items()
    },
    "Lightning": lambda net: {
        "state_dict": {**with_prefix("model.", net), "loss.weight": torch.ones(19)},
        "pytorch-lightning_version": "2.5",
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
    },
    "arguments": lambda net: {
        "model": net.state_dict(),
        "args": argparse.Namespace(lr=0.1, output=Path("runs")),
    },
}


@pytest.mark.parametrize("write", OTHERS.values(), ids=OTHERS)
def test_other_peoples_checkpoints(tmp_path, write):
    source, model = network(seed=1), network()
    torch.save({"epoch": 3, **write(source)}, tmp_path / "run.pth")
    report = load_checkpoint(model, tmp_path / "run.pth")
    assert same(model, source)
    assert set(report.loaded) == set(model.state_dict())
    assert str(report) == "run.pth: 7 tensors loaded"


def test_an_average_as_the_model(tmp_path):
    source, model = (torch.optim.swa_utils.AveragedModel(network(seed)) for seed in (1, 0))
    source.n_averaged.fill_(3)
    torch.save({"ema": source.state_dict()}, tmp_path / "run.pth")
    load_checkpoint(model, tmp_path / "run.pth")
    assert same(model, source)


def test_old_spelling_behind_a_prefix(trained, model, tmp_path):
    state = {f"model.{old_spelling(key)}": value for key, value in trained.state_dict().items()}
    torch.save({"net": state}, tmp_path / "run.pth")
    load_checkpoint(model, tmp_path / "run.pth")
    assert same(model, trained)


@pytest.mark.parametrize(
    ("write", "places"),
    [
        (lambda raw, net: {"model": raw.state_dict(), "ema": net.state_dict()}, "ema model"),
        (lambda raw, net: {"model_ema": net.state_dict(), "model": raw.state_dict()}, ""),
        (lambda raw, net: {"ema": {"module": net.state_dict()}, "net": raw.state_dict()}, ""),
        (
            lambda raw, net: {"state_dict": with_prefix("model.", raw) | with_prefix("ema.", net)},
            "",
        ),
        (lambda raw, net: with_prefix("model.", raw) | with_prefix("average.module.", net), ""),
        (lambda raw, net: {**raw.state_dict(), "ema": net.state_dict()}, "ema the top level"),
        # An average of the parameters alone lacks the statistics of batch norm.
        (lambda raw, net: {"ema": dict(raw.named_parameters()), "model": net.state_dict()}, ""),
    ],
)
def test_an_average_is_taken_before_what_it_is_of(tmp_path, write, places):
    source, model = network(seed=1), network()
    torch.save(write(network(seed=2), source), tmp_path / "run.pth")
    with pytest.warns(UserWarning, match="of several sets of weights, .* was taken") as caught:
        report = load_checkpoint(model, tmp_path / "run.pth")
    assert same(model, source) and len(report.places) == 2
    for message in (str(report), str(caught[0].message)):
        if places:
            taken, other = places.split(" ", 1)
            assert f"{taken} was taken, not {other}" in message


def test_a_module_whose_own_names_are_of_wrappers(tmp_path):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(2, 3)
            self.model = torch.nn.Linear(2, 3)

    source, target = Wrapped(), Wrapped()
    for write in (lambda s: s, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}):
        torch.save(write(source.state_dict()), tmp_path / "own.pth")
        target.__init__()
        load_checkpoint(target, tmp_path / "own.pth")
        assert same(target, source)
    torch.save({**source.state_dict(), "net.more": torch.zeros(1)}, tmp_path / "more.pth")
    assert "unexpected (1): net.more" in refused(target, tmp_path / "more.pth")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_whole_module_is_refused_with_the_remedy(model, trained, tmp_path):
    torch.save(trained, tmp_path / "module.pth")
    assert "torch.save(model.state_dict(), ...)" in refused(model, tmp_path / "module.pth")
    torch.save({"ema": trained, "model": trained.state_dict()}, tmp_path / "inside.pth")
    assert "torch.save(model.state_dict(), ...)" in refused(model, tmp_path / "inside.pth")
    torch.jit.script(torch.nn.Linear(2, 3)).save(tmp_path / "script.pt")
    assert "is a TorchScript program" in refused(model, tmp_path / "script.pt")


def test_half_precision_file_is_converted(trained, model, tmp_path):
    state = {key: value.half() for key, value in trained.state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    load_checkpoint(model, tmp_path / "half.pth")
    assert model.finalConv.weight.dtype == torch.float32
    torch.testing.assert_close(model.finalConv.weight, trained.finalConv.weight, rtol=1e-3, atol=0)


def test_data_parallel_model(trained, model, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "plain.pth")
    load_checkpoint(torch.nn.DataParallel(model), tmp_path / "plain.pth")
    assert same(model, trained)


@pytest.mark.parametrize(
    "write",
    [
        lambda net: net.state_dict(),
        lambda net: {f"module.base.{key}": value for key, value in net.base.state_dict().items()},
        lambda net: net.base.state_dict(),
    ],
    ids=["classifier", "module.base", "bare"],
)
def test_encoder_alone(trained, model, tmp_path, write):
    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base = trained.base
            self.head = torch.nn.Linear(224, 10)

    torch.save({"state_dict": write(Classifier())}, tmp_path / "imagenet.pth")
    before = create_model("fassd_net_l2")
    before.load_state_dict(model.state_dict())
    report = load_checkpoint(model, tmp_path / "imagenet.pth")
    assert same(model.base, trained.base)
    assert same(model.DAPF, before.DAPF)
    assert same(model.finalConv, before.finalConv)
    assert report.encoder_only
    assert set(report.ignored) <= {"head.weight", "head.bias"}
    assert set(report.loaded) == {key for key in model.state_dict() if key.startswith("base.")}
    assert "encoder only" in str(report)


def test_encoder_of_more_stages_fills_the_shorter_one(golden, model, tmp_path):
    longer = golden.fill(create_model("fc_hardnet_70"), salt=1)
    torch.save(longer.base.state_dict(), tmp_path / "encoder.pth")
    report = load_checkpoint(model, tmp_path / "encoder.pth")
    assert torch.equal(model.base[14].conv.weight, longer.base[14].conv.weight)
    assert {key.split(".")[1] for key in report.ignored} == {"16", "17"}


def test_half_an_encoder_is_refused(trained, model, tmp_path):
    state = {k: v for k, v in trained.state_dict().items() if k.startswith(("base.0", "base.1."))}
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match=r"missing \(\d+\): base\.2\.conv\.weight"):
        load_checkpoint(model, tmp_path / "half.pth")


def test_another_variants_file(model, tmp_path):
    torch.save(create_model("baseline", num_classes=11).state_dict(), tmp_path / "other.pth")
    message = refused(model, tmp_path / "other.pth")
    assert re.search(r"missing \(\d+\): DAPF\.conv1x1\.weight, .* and \d+ more", message)
    assert re.search(r"unexpected \(96\): denseBlocksUp\.0\.layers\.0\.conv\.weight", message)
    assert "finalConv.bias" in message or "and " in message
    assert 'the file fits create_model("baseline", num_classes=11)' in message


def test_another_class_count_and_alpha(tmp_path):
    torch.save(create_model("fassd_net", 11, alpha=6).state_dict(), tmp_path / "other.pth")
    message = refused(create_model("fassd_net", alpha=6), tmp_path / "other.pth")
    assert (
        "misshapen (2): finalConv.weight [11, 48, 1, 1] where the model has [19, 48, 1, 1], "
        in (message)
    )
    assert "finalConv.bias [11] where the model has [19]" in message
    assert 'create_model("fassd_net", num_classes=11, alpha=6) or ' in message
    assert "on the command line: --model fassd_net --classes 11 --alpha 6 or " in message


def test_not_strict_loads_what_fits(tmp_path):
    other = create_model("fassd_net", 11)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    model = create_model("fassd_net", 19)
    head = model.finalConv.weight.clone()
    report = load_checkpoint(model, tmp_path / "other.pth", strict=False)
    assert same(model.mda, other.mda)
    assert torch.equal(model.finalConv.weight, head)
    assert report.misshapen == ("finalConv.weight", "finalConv.bias")


def test_two_spellings_of_one_key(model, trained, tmp_path):
    state = trained.state_dict()
    state["aspp.conv1.weight"] = state["DAPF.conv1.weight"]
    torch.save(state, tmp_path / "twice.pth")
    assert "holds DAPF.conv1.weight twice" in refused(model, tmp_path / "twice.pth")


class Malicious:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_and_not_run(model, trained, tmp_path, zipped):
    witness = tmp_path / "executed"
    content = {"model_state": trained.state_dict(), "epoch": Malicious(witness)}
    path = tmp_path / "evil.pkl"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = refused(model, path)
    assert "was refused, and nothing in it executed: it names posix.mkdir" in message
    assert "weights_only" not in message
    assert not witness.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_malicious_bare_pickle(model, tmp_path):
    witness = tmp_path / "executed"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Malicious(witness)))
    refused(model, tmp_path / "evil.pkl")
    assert not witness.exists()


def test_numpy_objects_are_refused(model, tmp_path):
    torch.save({"best_iou": np.array([{"a": 1}], dtype=object)}, tmp_path / "objects.pkl")
    assert "it names numpy" in refused(model, tmp_path / "objects.pkl")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_files(model, trained, tmp_path, zipped, share):
    path = tmp_path / "short.pkl"
    torch.save(authors_dict(trained.state_dict()), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "damaged or not a checkpoint" in refused(model, path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("page.pkl", b"<html>404</html>"), ("text.pth", b"hello world"), ("x.safetensors", b"junk")],
)
def test_files_of_another_kind(model, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert "damaged or not a checkpoint" in refused(model, tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({}, "holds an empty state dict"),
        ({"some.weight": torch.zeros(2)}, r"unexpected (1): some.weight"),
    ],
)
def test_files_without_weights(model, tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    assert message in refused(model, tmp_path / "other.pth")


def test_absent_file(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(model, tmp_path / "nowhere.pth")


@pytest.mark.parametrize("weights", ["cityscape", ""])
def test_absent_file_tells_the_published_names(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    message = (
        f"no weights file '{weights}'; published names are streets, synthetic, cityscapes, imagenet"
    )
    with pytest.raises(FileNotFoundError, match=message):
        create_model("fassd_net_l2", weights=weights)


@pytest.mark.parametrize("wrap", [dict, lambda state: {"net": state}])
def test_the_head_in_a_file_tells_the_number_of_classes(tmp_path, wrap):
    state = {f"module.{k}": v for k, v in create_model("fassd_net_l2", 7).state_dict().items()}
    torch.save(wrap(state), tmp_path / "net.pth")
    assert classes_in(tmp_path / "net.pth") == 7


@pytest.mark.parametrize(
    "content", [[1, 2], {"x": torch.zeros(3)}, {"finalConv.weight": torch.ones(())}]
)
def test_a_file_without_a_head_tells_no_number(tmp_path, content):
    torch.save(content, tmp_path / "net.pth")
    assert classes_in(tmp_path / "net.pth") is None
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    assert classes_in(tmp_path / "broken.pth") is None
    assert classes_in(tmp_path / "missing.pth") is None
