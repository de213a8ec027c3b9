"""The examples of other people's pipelines: Triton Inference Server, OpenCV, a folder, ROS 2."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import onnxruntime
import pytest
from export.conftest import LABELS, SIZE
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import fassd
from fassd.export import ExportedNetwork, ExportError
from fassd.io.images import read_image, write_image

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    """The module of an example."""
    path = EXAMPLES / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(name, *arguments):
    """What an example says where it ends with an error, in one line."""
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def plain():
    """The network of the exported files in plain PyTorch."""
    return fassd.Segmenter("fassd_net_l2", weights="streets", backend="reference")


# --- Triton Inference Server -------------------------------------------------------------------

TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}


@pytest.mark.parametrize(
    "settings",
    [LABELS, {}, {**LABELS, "size": None}],
    ids=["labels", "logits", "labels, any size"],
)
def test_a_configuration_of_triton_is_what_the_file_takes_and_gives(settings, export, tmp_path):
    """Its own schema reads it: a field that it does not know, or a type, would be refused."""
    path, _ = export("onnx", **settings)
    folder = example("triton_server/make_repository.py").make(path, tmp_path / "models", "streets")
    config = text_format.Parse(
        (folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
    )
    assert (config.name, config.backend, config.max_batch_size) == ("streets", "onnxruntime", 0)
    session = onnxruntime.InferenceSession(folder / "1/model.onnx")
    for declared, real in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert [
            (each.name, model_config_pb2.DataType.Name(each.data_type), list(each.dims))
            for each in declared
        ] == [
            (each.name, TYPES[each.type], [d if isinstance(d, int) else -1 for d in each.shape])
            for each in real
        ]
    told = json.loads(config.parameters["fassd"].string_value)
    assert told["classes"][0] == {"name": "road", "color": [128, 64, 128]}
    assert told == json.loads(ExportedNetwork(path).metadata.to_json())


def test_two_outputs_are_both_declared(tmp_path, export):
    program = example("triton_server/make_repository.py")
    data = ExportedNetwork(export("onnx", **LABELS)[0]).metadata
    fields = {**vars(data), "output": "labels+confidence", "measure": "margin"}
    text = program.config("a", type(data)(**fields))
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert [each.name for each in config.output] == ["labels", "confidence"]


def test_what_triton_would_not_take_is_refused(export, tmp_path):
    program = example("triton_server/make_repository.py")
    path, _ = export("onnx", **LABELS)
    program.make(path, tmp_path, "net")
    with pytest.raises(FileExistsError, match="net is there"):
        program.make(path, tmp_path, "net")
    with pytest.raises(ValueError, match=r"got '\.\./net'"):
        program.make(path, tmp_path, "../net")
    (tmp_path / "no.onnx").write_bytes(b"no")
    with pytest.raises(ExportError, match=r"no\.onnx: ONNX Runtime cannot read it"):
        program.make(tmp_path / "no.onnx", tmp_path, "other")
    with pytest.raises(ExportError, match=r"must be an \.onnx file"):
        program.make(tmp_path / "no.pt2", tmp_path, "other")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["net", "no.onnx"]


# --- OpenCV ------------------------------------------------------------------------------------


def test_opencv_gives_the_labels_of_pytorch(export, pictures, plain):
    path, _ = export("onnx", **LABELS)
    network = cv2.dnn.readNetFromONNX(str(path))
    for picture in pictures:
        found = example("opencv_dnn.py").label(network, picture[..., ::-1], SIZE)
        assert found.shape == SIZE and found.dtype == np.uint8
        assert (found == plain.predict(picture)).mean() > 0.999


def test_opencv_gives_the_logits_of_pytorch(export, pictures, plain):
    path, _ = export("onnx")
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(fassd.models.normalize(pictures[0])[None])
    wanted = plain.logits(pictures[0]).numpy()
    found = network.forward()[0]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_example_of_opencv_runs_by_itself(export, pictures, tmp_path):
    """On a picture of another size; neither PyTorch nor this project is imported."""
    path, _ = export("onnx", **LABELS)
    write_image(tmp_path / "street.png", np.kron(pictures[0], np.ones((2, 2, 1), np.uint8)))
    size = "x".join(map(str, SIZE))
    program = (
        "import sys; sys.modules.update(torch=None, fassd=None); sys.argv = sys.argv[1:]; "
        "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    files = [path, tmp_path / "street.png", tmp_path / "labels.png"]
    command = [sys.executable, "-c", program, EXAMPLES / "opencv_dnn.py", *files, "--size", size]
    subprocess.run(command, check=True)
    labels = cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (2 * SIZE[0], 2 * SIZE[1]) and len(np.unique(labels)) > 3
    said = refused("opencv_dnn.py", path, tmp_path / "none.png", tmp_path / "labels.png")
    assert "none.png: cannot be read" in said


# --- a folder ----------------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path):
    """``worker(...)`` starts the example on the folder "inbox" and waits until it looks."""
    (tmp_path / "inbox").mkdir()
    started = []

    def start():
        command = [sys.executable, EXAMPLES / "folder_worker.py", tmp_path / "inbox"]
        command += ["-o", tmp_path / "labels", "--every", "0.2"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert "waiting for pictures" in process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(condition, seconds=120):
    for _ in range(10 * seconds):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def test_a_worker_labels_what_comes_into_a_folder(worker, pictures, plain, tmp_path):
    inbox = tmp_path / "inbox"
    write_image(inbox / "early.png", pictures[0])
    process = worker()
    (inbox / "broken.jpg").write_bytes(b"no picture")
    (inbox / "notes.txt").write_text("left alone")
    write_image(inbox / "late.png", pictures[1])
    until(lambda: (inbox / "failed/broken.jpg.txt").exists() and (inbox / "done/late.png").exists())
    until(lambda: (inbox / "done/early.png").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    for name, picture in (("early", pictures[0]), ("late", pictures[1])):
        labels = read_image(tmp_path / f"labels/{name}.png.png")[..., 0]
        assert (labels == plain.predict(picture)).mean() > 0.999
    assert "broken.jpg" in (inbox / "failed/broken.jpg.txt").read_text()
    left = sorted(each.name for each in inbox.iterdir())
    assert left == ["done", "failed", "notes.txt"]
    assert len(list((tmp_path / "labels").iterdir())) == 2


def test_a_picture_that_grows_is_left_alone(tmp_path):
    program = example("folder_worker.py")
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    before = program.waiting(tmp_path)
    path.write_bytes(b"12")
    assert program.waiting(tmp_path)[path] != before[path]
    (tmp_path / ".b.png").write_bytes(b"")
    assert list(program.waiting(tmp_path)) == [path]


def test_a_worker_says_what_it_cannot_use(tmp_path):
    assert "none: no such folder" in refused("folder_worker.py", tmp_path / "none", "-o", tmp_path)


# --- ROS 2 -------------------------------------------------------------------------------------


def message(**fields):
    """A message type with default fields, as rosidl makes them."""

    def create():
        header = SimpleNamespace(stamp=None, frame_id="")
        return SimpleNamespace(
            header=header,
            **{name: value() if callable(value) else value for name, value in fields.items()},
        )

    return create


class Topic:
    def __init__(self, type_, name, qos):
        self.name, self.sent = name, []

    def publish(self, sent):
        self.sent.append(sent)

    def get_subscription_count(self):
        return 1


class FakeNode:
    """What a node calls of rclpy.node.Node."""

    def __init__(self, name):
        self.topics, self.subscribed, self.warnings = {}, {}, []

    def declare_parameter(self, name, default):
        return SimpleNamespace(value=default)

    def create_publisher(self, type_, name, qos):
        self.topics[name] = Topic(type_, name, qos)
        return self.topics[name]

    def create_subscription(self, type_, name, call, qos):
        self.subscribed[name] = call

    def get_clock(self):
        return SimpleNamespace(now=lambda: SimpleNamespace(to_msg=lambda: "now"))

    def get_logger(self):
        return SimpleNamespace(warning=self.warnings.append)


@pytest.fixture
def ros(monkeypatch):
    """The node's file on stand-ins of ROS 2, with the fields of its messages."""
    image = message(height=0, width=0, encoding="", is_bigendian=0, step=0, data=b"")
    quality = SimpleNamespace(reliability="best effort")
    modules = {
        "rclpy": {},
        "rclpy.node": {"Node": FakeNode},
        "rclpy.qos": {
            "QoSDurabilityPolicy": SimpleNamespace(TRANSIENT_LOCAL="latched"),
            "QoSProfile": lambda **settings: SimpleNamespace(**settings),
            "qos_profile_sensor_data": quality,
        },
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": image},
        "vision_msgs": {},
        "vision_msgs.msg": {
            "LabelInfo": message(class_map=list, threshold=0.0),
            "VisionClass": message(class_id=0, class_name=""),
        },
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return example("ros2/segmentation_node.py")


def camera(ros, picture, encoding="bgr8", padding=5):
    """A camera's message, with bytes behind each row."""
    rows = np.zeros((picture.shape[0], picture.shape[1] * 3 + padding), np.uint8)
    channels = picture[..., ::-1] if encoding == "bgr8" else picture
    rows[:, : picture.shape[1] * 3] = channels.reshape(picture.shape[0], -1)
    found = ros.Image()
    found.height, found.width = picture.shape[:2]
    found.encoding, found.step, found.data = encoding, rows.shape[1], rows.tobytes()
    found.header.frame_id = "camera"
    return found


def test_a_ros_node_labels_a_cameras_pictures(ros, pictures, plain):
    node = ros.SegmentationNode()
    assert [each.class_name for each in node.topics["label_info"].sent[0].class_map][:2] == [
        "road",
        "sidewalk",
    ]
    for encoding in ("bgr8", "rgb8"):
        node.subscribed["image"](camera(ros, pictures[0], encoding))
    wanted = plain.predict(pictures[0])
    for sent in node.topics["labels"].sent:
        assert (sent.encoding, sent.height, sent.width, sent.step) == ("mono8", *SIZE, SIZE[1])
        assert sent.header.frame_id == "camera"
        found = np.frombuffer(sent.data, np.uint8).reshape(SIZE)
        assert (found == wanted).mean() > 0.999
    assert len(node.topics["labels"].sent) == len(node.topics["overlay"].sent) == 2
    drawn = node.topics["overlay"].sent[0]
    assert drawn.encoding == "rgb8" and len(drawn.data) == 3 * SIZE[0] * SIZE[1]
    node.subscribed["image"](camera(ros, pictures[0], "yuv422"))
    short = camera(ros, pictures[0])
    short.data = short.data[:-1]
    node.subscribed["image"](short)
    assert "got 'yuv422'" in node.warnings[0] and "does not fit into" in node.warnings[1]
    assert len(node.topics["labels"].sent) == 2
