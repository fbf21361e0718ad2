"""What a plan holds, told by an engine, or by its network: reading an engine needs a GPU, building one does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pinstream.engines.flavour import Flavour, triton_dtype
from pinstream.engines.profiles import PlanInfo, PlanTensor, Range
from pinstream.errors import ModelFileError

# How the names of trt.TensorFormat begin that are not LINEAR: channels in vectors, or last.
VECTORISED = ("CHW", "HWC", "CDHW", "DHWC", "DLA")


def describe_engine(flavour: Flavour, engine: Any, file: str) -> PlanInfo:
    """Read an engine's I/O tensors and optimisation profiles.

    Args:
        flavour: The TensorRT that loaded it.
        engine: The trt.ICudaEngine.
        file: Its file's name.

    Raises:
        ModelFileError: A tensor has a data type that Triton cannot carry, or is not linear.
    """
    trt = flavour.module
    tensors: dict[Any, list[PlanTensor]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        mode = engine.get_tensor_mode(name)
        host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
        ranges = _engine_ranges(engine, name, host) if mode == trt.TensorIOMode.INPUT else ()
        dtype = triton_dtype(engine.get_tensor_dtype(name), name)
        _check_format(engine, name)
        tensors[mode].append(PlanTensor(name, dtype, tuple(engine.get_tensor_shape(name)), ranges, host))
    return PlanInfo(file, tuple(tensors[trt.TensorIOMode.INPUT]), tuple(tensors[trt.TensorIOMode.OUTPUT]))


def _check_format(engine: Any, name: str) -> None:
    """Refuse a plan whose tensors lie otherwise in memory than Triton's do: CHW32, HWC8 and the like."""
    laid_out = str(getattr(engine.get_tensor_format(name), "name", ""))
    if laid_out.startswith(VECTORISED):
        raise ModelFileError(
            f"tensor {name} has TensorRT's format {laid_out}, and Triton's tensors are linear; build the plan with "
            "linear inputs and outputs (trtexec: without --inputIOFormats and --outputIOFormats)"
        )


def _engine_ranges(engine: Any, name: str, host: bool) -> tuple[Range, ...]:
    """One Range a profile: of the shape or, for a shape tensor, of its values."""
    ranges = []
    for profile in range(engine.num_optimization_profiles):
        if host:
            # By position: the bindings name the two arguments the wrong way round.
            bounds = engine.get_tensor_profile_values(profile, name)
        else:
            bounds = engine.get_tensor_profile_shape(name, profile)
        # No bounds where a tensor is fixed and so in no profile. Of a shape tensor's values nothing is known then.
        if not bounds and host:
            raise ModelFileError(
                f"shape tensor {name} has no values in profile {profile}, so that no buffer can be large enough; build "
                "the plan with --shape for it"
            )
        bounds = bounds or [engine.get_tensor_shape(name)] * 3
        ranges.append(Range(*(tuple(map(int, bound)) for bound in bounds)))
    return tuple(ranges)


def describe_network(flavour: Flavour, network: Any, profiles: Sequence[Mapping[str, Range]], file: str) -> PlanInfo:
    """What the engine built from a network will say of itself; of output shapes the engine may know more.

    Args:
        flavour: The TensorRT that parsed it.
        network: The trt.INetworkDefinition.
        profiles: The optimisation profiles it is built with, by input; none for a static network.
        file: The plan file's name.

    Raises:
        ModelFileError: A tensor has a data type that Triton cannot carry.
    """
    inputs = []
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        fixed = Range(*[tuple(tensor.shape)] * 3)
        ranges = tuple(profile.get(tensor.name, fixed) for profile in profiles or ({},))
        inputs.append(_network_tensor(tensor, ranges))
    outputs = (network.get_output(index) for index in range(network.num_outputs))
    return PlanInfo(file, tuple(inputs), tuple(_network_tensor(tensor, ()) for tensor in outputs))


def _network_tensor(tensor: Any, ranges: tuple[Range, ...]) -> PlanTensor:
    dtype = triton_dtype(tensor.dtype, tensor.name)
    return PlanTensor(tensor.name, dtype, tuple(tensor.shape), ranges, bool(tensor.is_shape_tensor))
