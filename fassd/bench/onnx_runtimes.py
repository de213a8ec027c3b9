"""Runtimes of other projects, each started on a network's ONNX file, in its fastest form.

Every runtime takes the file's bytes, a device, and a dtype to compute in, and returns a call: (N,
3, H, W) float32 on the device, contiguous, to the network's output or outputs, which the next call
may overwrite. All use as many threads as PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

Call = Callable[[Tensor], Tensor | list[Tensor]]


def exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """The ONNX file of a network at its inputs' shape.

    torch.export's graph rather than TorchScript's, which is deprecated and which OpenVINO runs 1.4
    times slower (FASSD-Net at 256x512 on two cores of a Zen 5: 29 ms, not 21).
    """
    from fassd.export.onnx_file import quiet_exporter

    with quiet_exporter():
        program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def alone(results: list[Tensor]) -> Tensor | list[Tensor]:
    """Outputs of a network: the tensor itself if there is only one."""
    return results[0] if len(results) == 1 else results


def onnx_runtime(onnx: bytes, device: torch.device, dtype: torch.dtype) -> Call:
    """ONNX Runtime in float32, on PyTorch's memory."""
    import onnxruntime

    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this ONNX Runtime has no {provider} (pip install onnxruntime-gpu)")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(onnx, options, providers=[provider])
    (source,), targets = session.get_inputs(), session.get_outputs()
    results = [torch.empty(target.shape, device=device) for target in targets]
    binding = session.io_binding()
    kind = (device.type, device.index or 0, np.float32)
    for target, result in zip(targets, results, strict=True):
        binding.bind_output(target.name, *kind, tuple(result.shape), result.data_ptr())

    def call(picture: Tensor) -> Tensor | list[Tensor]:
        binding.bind_input(source.name, *kind, tuple(picture.shape), picture.data_ptr())
        session.run_with_iobinding(binding)
        return alone(results)

    return call


def openvino(
    onnx: bytes, device: torch.device, dtype: torch.dtype, calibration: Sequence[Tensor] = ()
) -> Call:
    """OpenVINO in float32, bfloat16, or int8 by NNCF, calibrated on inputs of the network.

    By default it would use bfloat16 if the CPU supports it. In int8 it may for what is not bytes.
    """
    from fassd.export.openvino_file import openvino_core, quantized

    core = openvino_core()
    model = core.read_model(onnx)
    if dtype == torch.int8:
        model = quantized(model, [batch.numpy() for batch in calibration])
    settings = {
        "INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "bf16",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def call(picture: Tensor) -> Tensor | list[Tensor]:
        found = request.infer([picture.numpy()], share_inputs=True, share_outputs=True)
        return alone([torch.from_numpy(found[index]) for index in range(len(found))])

    return call


def tensorrt(onnx: bytes, device: torch.device, dtype: torch.dtype) -> Call:
    """TensorRT 10, with one output; in float32 without TF32. It has not been run on a GPU yet."""
    import tensorrt as trt

    from fassd.export.tensorrt_file import build_engine

    plan = build_engine(onnx, str(dtype).removeprefix("torch."))
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
    execution = engine.create_execution_context()
    source, target = engine.get_tensor_name(0), engine.get_tensor_name(1)
    result = torch.empty(tuple(engine.get_tensor_shape(target)), device=device)
    execution.set_tensor_address(target, result.data_ptr())

    def call(picture: Tensor) -> Tensor:
        execution.set_tensor_address(source, picture.data_ptr())
        execution.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        return result

    return call
