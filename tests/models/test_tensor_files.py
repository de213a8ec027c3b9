"""Files that are damaged, or made to do harm: each gets an error that tells what is wrong."""

import json
import os
import random
import socket
import struct
import warnings
import zipfile

import pytest
import torch
from models.conftest import network, refused
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from fassd.models import CheckpointError, load_checkpoint
from fassd.models.tensor_files import CHECKSUMS, with_checksums


@pytest.fixture
def state():
    return {key: value.clone() for key, value in network().state_dict().items()}


def write(path, state):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


def loaded(path, state):
    model = network()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(7)
    load_checkpoint(model, path)
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def with_value(key, value):
    def change(state):
        state[key].view(-1)[-1] = value
        return state

    return change


def with_dtype(key, dtype):
    return lambda state: {**state, key: state[key].to(dtype)}


BAD_VALUES = {
    "nan": (with_value("0.weight", float("nan")), "holds nan in 0.weight (1 of 108 values)"),
    "infinity": (with_value("1.bias", float("inf")), "holds inf in 1.bias (1 of 4 values)"),
    "-infinity": (with_value("1.running_mean", -float("inf")), "holds -inf in 1.running_mean"),
    "variance": (
        with_value("1.running_var", -0.5),
        "holds -0.5 in 1.running_var (1 of 4 values); variances are not negative",
    ),
    "int64": (with_dtype("0.weight", torch.int64), "holds 0.weight in int64; weights come in"),
    "uint8": (with_dtype("0.bias", torch.uint8), "holds 0.bias in uint8"),
    "bool": (with_dtype("1.running_var", torch.bool), "holds 1.running_var in bool"),
    "complex": (with_dtype("1.weight", torch.complex64), "holds 1.weight in complex64"),
    "float8": (with_dtype("0.weight", torch.float8_e4m3fn), "holds 0.weight in float8_e4m3fn"),
    "too large": (
        lambda state: {**state, "0.bias": torch.full((4,), 1e300, dtype=torch.float64)},
        "holds 1e+300 in 0.bias (4 of 4 values); weights are finite in float32",
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("change", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_weights_are_finite_real_numbers(tmp_path, state, change, message, suffix):
    write(tmp_path / f"bad{suffix}", change(state))
    assert message in refused(network(), tmp_path / f"bad{suffix}")


def test_what_a_half_precision_network_cannot_hold(tmp_path, state):
    state["0.weight"].fill_(7e4)
    write(tmp_path / "large.pth", state)
    message = refused(network().half(), tmp_path / "large.pth")
    assert "holds 70000.0 in 0.weight (108 of 108 values); weights are finite in float16" in message
    assert loaded(tmp_path / "large.pth", state)


def test_counters_are_integers_and_may_be_anything(tmp_path, state):
    state["1.num_batches_tracked"] = torch.tensor(86000)
    write(tmp_path / "counted.pth", state)
    assert loaded(tmp_path / "counted.pth", state)
    state["1.num_batches_tracked"] = torch.tensor(86000).half()  # infinity
    write(tmp_path / "half.pth", state)
    load_checkpoint(network(), tmp_path / "half.pth")


def test_tensors_that_are_not_loaded_may_hold_anything(tmp_path, state):
    state["2.weight"] = torch.tensor([float("nan")])
    write(tmp_path / "more.pth", state)
    load_checkpoint(network(), tmp_path / "more.pth", strict=False)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "holes", "zeros"])
def test_what_is_no_file_of_a_checkpoints_size(tmp_path, monkeypatch, kind, suffix):
    path = tmp_path / f"it{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
        with pytest.raises(IsADirectoryError, match="is a folder, not a file of weights"):
            load_checkpoint(network(), path)
        return
    else:
        path.touch()
        os.truncate(path, 1 << (40 if kind == "holes" else 24))
    message = refused(network(), path)
    if kind == "holes":
        assert "has 1,099,512 MB and the model's weights 0 MB: not a checkpoint of it" in message
    elif kind == "zeros":
        assert "is damaged or not a checkpoint" in message
    else:
        assert "is a pipe, device or socket, not a file of weights" in message


# --- Kinds of tensors --------------------------------------------------------------------------


def quantised(value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


KINDS = {
    "sparse": (lambda v: v.to_sparse(), "holds a torch.sparse_coo as 0.weight; weights are dense"),
    "sparse rows": (lambda v: v.view(4, 27).to_sparse_csr(), "holds a torch.sparse_csr as"),
    "huge sparse": (
        lambda v: torch.sparse_coo_tensor(size=(1 << 20, 1 << 20)),
        "holds a torch.sparse_coo as",
    ),
    "meta": (
        lambda v: v.to("meta"),
        "holds a tensor of the meta device, without values, as 0.weight",
    ),
    "nested": (lambda v: torch.nested.nested_tensor([v[0], v[1]]), "0.weight is a nested tensor"),
    "quantised": (quantised, "0.weight is a quantised tensor"),
    "huge strides": (
        lambda v: torch.zeros(1).expand(1 << 20, 1 << 20),
        "0.weight [1048576, 1048576] where the model has [4, 3, 3, 3]",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(("change", "message"), KINDS.values(), ids=KINDS)
def test_only_plain_tensors_are_weights(tmp_path, state, change, message, zipped):
    state["0.weight"] = change(state["0.weight"])
    torch.save({"model": state}, tmp_path / "odd.pth", _use_new_zipfile_serialization=zipped)
    found = refused(network(), tmp_path / "odd.pth")
    assert message in found and "0.weight" in found


def test_values_that_are_shared_may_be_loaded(tmp_path, state):
    state["1.weight"] = torch.full((1,), 3.0).expand(4)
    write(tmp_path / "expanded.pth", state)
    assert loaded(tmp_path / "expanded.pth", state)


# --- Archives ----------------------------------------------------------------------------------


def rewritten(path, change=lambda name, content: content, compression=zipfile.ZIP_STORED):
    """Write an archive anew, with other records."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))


def pickled(path, content):
    """A file of torch.save whose pickle is `content`."""
    torch.save({}, path)
    rewritten(path, lambda name, old: content if name.endswith("data.pkl") else old)
    return path


def test_an_archive_that_unpacks_to_much_more(tmp_path, state):
    path = tmp_path / "bomb.pth"
    torch.save({**state, "more": torch.zeros(1 << 20)}, path)
    rewritten(path, compression=zipfile.ZIP_DEFLATED)
    assert f"was refused: its {path.stat().st_size} bytes unpack to" in refused(network(), path)


def test_an_archive_whose_records_share_their_bytes(tmp_path, state):
    path = tmp_path / "overlap.pth"
    torch.save({**state, "more": torch.rand(1 << 16)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        record = max(archive.infolist(), key=lambda record: record.file_size)
        archive.filelist += [record] * 99
        archive._didModify = True
    assert "bytes unpack to" in refused(network(), path)


def test_records_in_several_spellings(tmp_path):
    first, second = ({"w": torch.rand(2)} for _ in range(2))
    path = tmp_path / "spelled.pth"
    torch.save({"a": first, "b": second}, path)

    def change(name, content):
        return content.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x00a").replace(
            b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x00A"
        )

    rewritten(path, change)
    assert "names the same values in several ways" in refused(network(), path)


def test_an_archive_that_somebody_compressed(tmp_path, state):
    torch.save(state, tmp_path / "packed.pth")
    rewritten(tmp_path / "packed.pth", compression=zipfile.ZIP_DEFLATED)
    assert loaded(tmp_path / "packed.pth", state)


def test_an_archive_without_checksums(tmp_path, state):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "unsigned.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert loaded(tmp_path / "unsigned.pth", state)


def test_a_flipped_bit_in_an_archive_names_the_tensor(tmp_path, state):
    path = tmp_path / "flipped.pth"
    torch.save({"state_dict": state, "epoch": 3}, path)
    content = bytearray(path.read_bytes())
    content[content.index(state["1.bias"].add(1).numpy().tobytes()) + 2] ^= 1  # 1.weight: ones
    path.write_bytes(content)
    assert "is damaged: 1.weight does not match its checksum" in refused(network(), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_no_flipped_bit_changes_weights(tmp_path, state, suffix):
    path = tmp_path / f"flipped{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        metadata = with_checksums(state, {"fassd": json.dumps({"step": 3})})
        path.write_bytes(save(state, metadata))
    content = path.read_bytes()
    generator = random.Random(0)
    noticed = 0
    for position in generator.sample(range(len(content)), 150):
        flipped = bytearray(content)
        flipped[position] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            assert loaded(path, state)  # what does not matter: alignment, the archive's own name
        except CheckpointError:
            noticed += 1
    assert noticed > (145 if suffix == ".safetensors" else 50)


# --- Pickles -----------------------------------------------------------------------------------


def test_a_pickle_that_would_fill_the_memory(tmp_path):
    content = (
        b"\x80\x02}X\x04\x00\x00\x00junkcbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85Rs."
    )
    message = refused(network(), pickled(tmp_path / "fill.pth", content))
    assert "was refused: junk is a bytearray" in message


def test_a_tensor_of_another_device_is_not_copied(tmp_path, state):
    class Foreign:
        def __reduce__(self):
            rebuild = torch._utils._rebuild_device_tensor_from_cpu_tensor
            return rebuild, (torch.zeros(1).expand(1 << 40), torch.float64, "cpu", False)

    torch.save({**state, "0.weight": Foreign()}, tmp_path / "foreign.pth")
    assert "0.weight is a tensor of another kind of device" in refused(
        network(), tmp_path / "foreign.pth"
    )


DEEP = 20_000
NESTED = {
    "tuples": (b"}" + b")" + b"\x85" * 1_000_000 + b"K\x01s.", "a tuple of more than 10000 items"),
    # Of 60 levels, each twice the one below: hashing it would not end.
    "doubled tuples": (
        b"})" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)) + b"K\x01s.",
        "a tuple of more than 10000 items",
    ),
    "lists": (b"]" * DEEP + b"a" * (DEEP - 1) + b".", "holds a list, not a state dict"),
    "dicts": (
        (b"}" + b"X\x05\x00\x00\x00model") * DEEP + b"N" + b"s" * DEEP + b".",
        "holds no state dict: 'model' is a dict",
    ),
    "itself": (
        b"}q\x00X\x05\x00\x00\x00modelh\x00s.",
        "holds no state dict: 'model' is a dict",
    ),
    "a key of tuples": (
        b"}" + b")" + b"\x85" * 9000 + b"K\x01s.",
        "holds no state dict: a tuple is a int",
    ),
}


@pytest.mark.parametrize(("content", "message"), NESTED.values(), ids=NESTED)
def test_deep_nesting(tmp_path, content, message):
    assert message in refused(network(), pickled(tmp_path / "deep.pth", b"\x80\x02" + content))


def test_names_do_not_reach_the_terminal_raw(tmp_path, state):
    torch.save({**state, "\x1b[2J" + "x" * 10_000: torch.zeros(1)}, tmp_path / "names.pth")
    message = refused(network(), tmp_path / "names.pth")
    assert "\\x1b[2J" in message and "\x1b" not in message and len(message) < 1000


# --- .safetensors ------------------------------------------------------------------------------


def safetensors(header, values=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def entry(start, end, shape=(2,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


HEADERS = {
    "overlap": safetensors({"0.weight": entry(0, 8), "0.bias": entry(4, 12)}, bytes(12)),
    "beyond the end": safetensors({"0.weight": entry(0, 1 << 40, (1 << 38,))}, bytes(8)),
    "hole": safetensors({"0.weight": entry(8, 16)}, bytes(16)),
    "other size": safetensors({"0.weight": entry(0, 8, (1 << 40,))}, bytes(8)),
    "product that wraps": safetensors({"0.weight": entry(0, 8, (1 << 62, 4, 2))}, bytes(8)),
    "no dtype": safetensors({"0.weight": {**entry(0, 8), "dtype": "F33"}}, bytes(8)),
    "long header": struct.pack("<Q", 1 << 60) + b"{}",
    "header beyond the end": struct.pack("<Q", 90_000_000) + b"{}",
    "deep header": safetensors(b"[" * 100_000),
    "deep checksums": safetensors({"__metadata__": {CHECKSUMS: "[" * 100_000}}),
    "checksums of another kind": safetensors({"__metadata__": {CHECKSUMS: "3"}}),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_headers_that_lie(tmp_path, content):
    (tmp_path / "lie.safetensors").write_bytes(content)
    assert "is damaged or not a checkpoint" in refused(network(), tmp_path / "lie.safetensors")


def test_a_damaged_tensor_is_named(tmp_path, state):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(save(state, with_checksums(state, {"fassd": "{}"})))
    assert loaded(path, state)
    content = path.read_bytes()
    place = content.rindex(state["0.weight"].numpy().tobytes())
    path.write_bytes(content[:place] + b"\1" + content[place + 1 :])
    assert "is damaged: 0.weight does not match the checksum" in refused(network(), path)
    path.write_bytes(content.replace(b'"fassd":"{}"', b'"fassd":"[]"'))
    assert "is damaged: its metadata does not match the checksum" in refused(network(), path)


def test_checksums_are_of_every_dtype_and_shape(tmp_path):
    dtypes = (torch.bool, torch.int16, torch.bfloat16, torch.float8_e5m2, torch.complex64)
    tensors = {str(dtype): torch.ones(3, 2).to(dtype) for dtype in dtypes}
    tensors |= {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3)}
    path = tmp_path / "all.safetensors"
    save_file(tensors, path, with_checksums(tensors, {}))
    read = load_file(path)
    with safe_open(path, "pt") as file:
        written = json.loads(file.metadata()[CHECKSUMS])
    assert json.loads(with_checksums(read, {})[CHECKSUMS]) == written
    assert len(set(written.values())) == len(tensors) + 1
