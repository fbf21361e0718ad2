"""The loop that everybody copies: pagelocked buffers, one stream, H2D, execute, D2H, synchronize; one by one."""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils
from cuda.bindings import runtime as cudart

try:
    import tensorrt as trt
except ImportError:
    try:
        import tensorrt_rtx as trt
    except ImportError:
        import tensorrt_rtx_bindings as trt

TRT_LOGGER = trt.Logger(trt.Logger.WARNING)


def cuda_call(call):
    """Unpacks what cuda-python returns and raises its error."""
    err, *res = call
    if err != cudart.cudaError_t.cudaSuccess:
        raise RuntimeError(f"Cuda Runtime Error: {err}")
    return res[0] if len(res) == 1 else res


class HostDeviceMem:
    """A pagelocked host buffer and its device buffer."""

    def __init__(self, shape, dtype):
        self.nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        host_ptr = cuda_call(cudart.cudaMallocHost(self.nbytes))
        import ctypes

        raw = np.ctypeslib.as_array(ctypes.cast(host_ptr, ctypes.POINTER(ctypes.c_uint8)), (self.nbytes,))
        self.host = raw.view(dtype)
        self.device = cuda_call(cudart.cudaMalloc(self.nbytes))


def do_inference(context, inp, out, in_bytes, out_bytes, stream):
    """Copies in, executes, copies out, synchronizes."""
    kind = cudart.cudaMemcpyKind
    cuda_call(cudart.cudaMemcpyAsync(inp.device, inp.host.ctypes.data, in_bytes, kind.cudaMemcpyHostToDevice, stream))
    context.execute_async_v3(stream_handle=stream)
    cuda_call(cudart.cudaMemcpyAsync(out.host.ctypes.data, out.device, out_bytes, kind.cudaMemcpyDeviceToHost, stream))
    cuda_call(cudart.cudaStreamSynchronize(stream))


class TritonPythonModel:
    """Triton's Python model."""

    def initialize(self, args):
        """Deserializes the engine and allocates buffers."""
        config = json.loads(args["model_config"])
        self.max_batch = config["max_batch_size"]
        self.in_dims = config["input"][0]["dims"]
        self.out_dims = config["output"][0]["dims"]
        cuda_call(cudart.cudaSetDevice(int(args["model_instance_device_id"])))
        plan = os.path.join(args["model_repository"], args["model_version"], "model.plan")
        self.runtime = trt.Runtime(TRT_LOGGER)
        with open(plan, "rb") as f:
            self.engine = self.runtime.deserialize_cuda_engine(f.read())
        self.context = self.engine.create_execution_context()
        self.stream = cuda_call(cudart.cudaStreamCreate())
        self.inp = HostDeviceMem([self.max_batch, *self.in_dims], np.float16)
        self.out = HostDeviceMem([self.max_batch, *self.out_dims], np.float16)
        self.context.set_tensor_address("images", self.inp.device)
        self.context.set_tensor_address("output", self.out.device)

    def execute(self, requests):
        """Runs one request after the other."""
        responses = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
            batch = images.shape[0]
            self.context.set_input_shape("images", images.shape)
            np.copyto(self.inp.host[: images.size], images.ravel())
            size = batch * int(np.prod(self.out_dims))
            do_inference(self.context, self.inp, self.out, images.nbytes, size * 2, self.stream)
            output = self.out.host[:size].reshape(batch, *self.out_dims).copy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("output", output)]))
        return responses
