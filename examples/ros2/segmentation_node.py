"""A ROS 2 node that labels a camera's pictures. Untried on ROS 2: tests run it on stand-ins.

    ros2 run ... or: python3 segmentation_node.py --ros-args -r image:=/camera/image_raw \
        -p weights:=/models/best.safetensors

| topic | message type | |
|---|---|---|
| image, subscribed | sensor_msgs/msg/Image | rgb8, bgr8 or mono8; of several the newest |
| labels | sensor_msgs/msg/Image | mono8, class indices; header as of the picture |
| overlay | sensor_msgs/msg/Image | rgb8, drawn only for subscribers |
| label_info | vision_msgs/msg/LabelInfo | names of the classes, once, latched |

Parameters: model ("fassd_net_l2"), weights (a name, or a file of `fassd train`, which tells its
network), backend ("auto").
"""

from __future__ import annotations

import os

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image
from vision_msgs.msg import LabelInfo, VisionClass

import fassd
from fassd.io.palette import overlay

CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1}


def to_picture(message: Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a message, whose rows may be followed by padding.

    Raises:
        ValueError: another encoding, or fewer bytes than the message says.
    """
    if message.encoding not in CHANNELS:
        raise ValueError(f"encoding must be {', '.join(CHANNELS)}, got {message.encoding!r}")
    channels = CHANNELS[message.encoding]
    values = np.frombuffer(message.data, np.uint8)
    if message.step < message.width * channels or len(values) < message.height * message.step:
        raise ValueError(
            f"{message.height}x{message.width} {message.encoding} at {message.step} bytes a row "
            f"does not fit into {len(values)} bytes"
        )
    rows = values[: message.height * message.step].reshape(message.height, message.step)
    picture = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
    if message.encoding == "mono8":
        return np.repeat(picture, 3, axis=2)
    return np.ascontiguousarray(picture[..., ::-1] if message.encoding == "bgr8" else picture)


def to_message(picture: np.ndarray, encoding: str, like: Image) -> Image:
    """A message of a picture, with the header of another."""
    message = Image()
    message.header = like.header
    message.height, message.width = picture.shape[:2]
    message.encoding = encoding
    message.is_bigendian = 0
    message.step = message.width * CHANNELS[encoding]
    message.data = np.ascontiguousarray(picture).tobytes()
    return message


class SegmentationNode(Node):
    def __init__(self) -> None:
        super().__init__("fassd")
        model = self.declare_parameter("model", "fassd_net_l2").value
        weights = self.declare_parameter("weights", "streets").value
        backend = self.declare_parameter("backend", "auto").value
        self.segmenter = (
            fassd.Segmenter(weights, backend=backend)
            if os.path.exists(weights)
            else fassd.Segmenter(model, weights=weights, backend=backend)
        )
        if len(self.segmenter.classes) > 256:
            raise ValueError(f"mono8 holds 256 classes, not {len(self.segmenter.classes)}")
        self.labels = self.create_publisher(Image, "labels", qos_profile_sensor_data)
        self.overlay = self.create_publisher(Image, "overlay", qos_profile_sensor_data)
        latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        self.info = self.create_publisher(LabelInfo, "label_info", latched)
        self.info.publish(self.label_info())
        newest = QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability)
        self.create_subscription(Image, "image", self.label, newest)

    def label_info(self) -> LabelInfo:
        message = LabelInfo()
        message.header.stamp = self.get_clock().now().to_msg()
        for number, each in enumerate(self.segmenter.classes):
            entry = VisionClass()
            entry.class_id, entry.class_name = number, each.name
            message.class_map.append(entry)
        return message

    def label(self, message: Image) -> None:
        try:
            picture = to_picture(message)
            labels = self.segmenter.predict(picture)
        except ValueError as error:  # one bad picture does not end the node
            self.get_logger().warning(str(error))
            return
        self.labels.publish(to_message(labels, "mono8", message))
        if self.overlay.get_subscription_count():
            drawn = overlay(picture, labels, colors=self.segmenter.palette)
            self.overlay.publish(to_message(drawn, "rgb8", message))


def main() -> None:
    rclpy.init()
    try:
        rclpy.spin(SegmentationNode())
    except KeyboardInterrupt:
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
