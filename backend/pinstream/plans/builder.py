"""One plan out of one ONNX graph: TensorRT's parser, builder configuration and build. Runs without a GPU on RTX."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pinstream.engines.build_spec import BuildSpec
from pinstream.engines.flavour import Flavour, allow_tf32, made, register_plugins, why
from pinstream.engines.plan_info import describe_network
from pinstream.engines.profiles import PlanInfo
from pinstream.errors import ConfigError, ModelFileError
from pinstream.plans.jobs import PlanJob, Profile
from pinstream.plans.timing import TimingCache

# Called with the plan file's name and how much of the build is done, 0 to 1.
Progress = Callable[[str, float], None]

# What TensorRT says, by pattern, and what to do about it.
_ADVICE = (
    (r"NonMaxSuppression|type NMS|EfficientNMS|BatchedNMS", "leave NMS out of the graph and do it behind the model"),
    (r"K exceeds the maximum|TopK.*3840", "TensorRT selects at most 3840: lower K"),
    (r"(?i)transpose.*uint8|uint8.*transpose", "TensorRT transposes no UINT8: cast first, then transpose"),
    (r"(?i)string|convertDtype", "TensorRT has no strings and few types of numbers: keep others out of the graph"),
    (r"external|initializer", "are the files with the model's weights beside it?"),
    (r"(?i)op type|no importer|plugin", "replace the operator, or give the library of its plugin"),
    (r"(?i)out of memory|insufficient memory|outofmemory", "lower the batch size or the workspace"),
    # Found with 1.4: INT8 matrix products it has, INT8 convolutions it has not.
    (
        r"cudnn_impl.*dtype",
        "TensorRT-RTX has no convolutions in INT8: build it with the full TensorRT, in FP16, or serve it as ONNX",
    ),
    (
        r"cannot be quantized by",
        "TensorRT-RTX has no INT8 inputs and outputs: give it others and quantize inside, or take the full TensorRT",
    ),
    # TensorRT-RTX builds without a GPU, except for what it has to try out on one.
    (r"(?i)cuda|device", "build where there is a GPU with a new enough driver: quantized graphs, for one, need it"),
)


def build_engine(
    flavour: Flavour, graph: bytes, source: Path, job: PlanJob, spec: BuildSpec, progress: Progress, timing: TimingCache
) -> tuple[memoryview, PlanInfo]:
    """Build one plan.

    Args:
        flavour: The TensorRT to build with.
        graph: The serialized ONNX graph, its batch and precision as they shall be.
        source: The ONNX file, for messages and for weights in files beside it.
        job: The plan's name and profiles.
        spec: Everything else.
        progress: Called as the build goes on.
        timing: What TensorRT measured in earlier builds.

    Returns:
        The serialized engine, and what it holds.

    Raises:
        ModelFileError: TensorRT cannot take the graph; the text says which node and why.
        ConfigError: This TensorRT lacks what the specification asks for.
    """
    trt = flavour.module
    register_plugins(flavour)
    flavour.logger.take_errors()
    builder = made(flavour, trt.Builder, "build a plan", "take --flavour tensorrt_rtx, which builds without one")
    flags = trt.NetworkDefinitionCreationFlag
    # TensorRT 11 is always strongly typed and may do without the flag one day.
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0)
    parser = _parse(flavour, network, graph, source)
    config = _configure(flavour, builder, spec)
    for profile in job.profiles:
        _add_profile(flavour, builder, config, network, profile)
    info = describe_network(flavour, network, job.profiles, job.file)
    monitor = _make_monitor(trt, job.file, progress)
    if monitor is not None:
        config.progress_monitor = monitor
    allow_tf32(flavour, uses_tf32(flavour, spec))
    with timing.lent_to(config):
        serialized = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.interruption is not None:
        raise monitor.interruption
    if serialized is None:
        reason = _with_layer_type(why(flavour), network)
        raise ModelFileError(_with_advice(f"{source}: {flavour} cannot build {job.file}: {reason}"))
    del parser  # it owns the weights that the network refers to, until the engine has them
    return memoryview(serialized), info


def _parse(flavour: Flavour, network: Any, graph: bytes, source: Path) -> Any:
    parser = flavour.module.OnnxParser(network, flavour.logger)
    if not parser.parse(graph, str(source)):
        errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        reason = "; ".join(dict.fromkeys(errors)) or why(flavour)
        raise ModelFileError(_with_advice(f"{source}: {flavour} cannot read it: {reason}"))
    if not network.num_inputs or not network.num_outputs:
        raise ModelFileError(
            f"{source}: {flavour} finds {network.num_inputs} inputs and {network.num_outputs} outputs in it; "
            "a plan needs one of each; export the model again"
        )
    return parser


def _parser_error(error: Any) -> str:
    operator = error.node_operator()
    node = f"node {error.node()} '{error.node_name()}' ({operator}): " if operator else ""
    return f"{node}{error.desc().strip()} [{error.code().name}]"


def _with_layer_type(text: str, network: Any) -> str:
    """A complaint about a layer with the layer's type: names alone tell nothing where nodes had none."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    named = [layer for layer in layers if layer.name and layer.name in text]
    longest = max(named, key=lambda layer: len(layer.name), default=None)
    return f"{text} (a layer of type {longest.type.name})" if longest else text


def _with_advice(text: str) -> str:
    advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, text)), "")
    return f"{text}; {advice}" if advice else text


def uses_tf32(flavour: Flavour, spec: BuildSpec) -> bool:
    """Whether FP32 is multiplied in TF32 in plans of this specification."""
    return flavour.is_rtx if spec.tf32 is None else spec.tf32


def _configure(flavour: Flavour, builder: Any, spec: BuildSpec) -> Any:
    trt = flavour.module
    config = builder.create_builder_config()
    if not uses_tf32(flavour, spec):
        # On by TensorRT's default. Measured on an H200, YOLOX-nano in TF32 was further from ONNX Runtime than in FP16:
        # scores by 0.09, against 0.03, and 1e-5 in FP32 itself.
        config.clear_flag(trt.BuilderFlag.TF32)
    if spec.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_mb << 20)
    if flavour.is_rtx:
        if spec.version_compatible or spec.hardware_compatible:
            raise ConfigError(f"{flavour} builds no version or hardware compatible plans; name compute capabilities")
        # No REQUIRE_USER_ALLOCATION: contexts with memory of ours can be captured without it, and dynamic plans built
        # with it crashed in their first enqueue (1.4.0.76 on compute capability 9.0).
        _set_compute_capabilities(flavour, config, spec.compute_capabilities)
        return config
    if any(text != "current" for text in spec.compute_capabilities):
        raise ConfigError(
            f"{flavour} builds for the GPU at hand only; build there, or use tensorrt_rtx to name compute capabilities"
        )
    if spec.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if spec.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    return config


def _set_compute_capabilities(flavour: Flavour, config: Any, wanted: tuple[str, ...]) -> None:
    if not wanted:
        return
    known = {_capability(name): value for name, value in flavour.module.ComputeCapability.__members__.items()}
    known.pop("none", None)
    unknown = [text for text in wanted if text not in known]
    if unknown:
        raise ConfigError(f"{flavour} builds for {', '.join(known)} and not for {', '.join(unknown)}")
    config.num_compute_capabilities = len(wanted)
    for index, text in enumerate(wanted):
        if not config.set_compute_capability(known[text], index):
            raise ConfigError(f"{flavour} refuses compute capability {text}: {why(flavour)}")


def _capability(name: str) -> str:
    """SM89 -> 8.9, SM120 -> 12.0, CURRENT -> current."""
    return f"{name[2:-1]}.{name[-1]}" if name.startswith("SM") else name.lower()


def _add_profile(flavour: Flavour, builder: Any, config: Any, network: Any, profile: Profile) -> None:
    added = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name in profile:
            sizes = profile[tensor.name]
            put = added.set_shape_input if tensor.is_shape_tensor else added.set_shape
            try:
                put(tensor.name, sizes.min, sizes.opt, sizes.max)
            except (RuntimeError, ValueError) as error:
                raise _refused(flavour, profile) from error
    if config.add_optimization_profile(added) < 0:
        raise _refused(flavour, profile)


def _refused(flavour: Flavour, profile: Profile) -> ConfigError:
    return ConfigError(f"{flavour} refuses the optimisation profile {dict(profile)}: {why(flavour)}")


def _make_monitor(trt: Any, file: str, progress: Progress) -> Any:
    """A trt.IProgressMonitor that reports one rising fraction; None where TensorRT has none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is Any
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interruption: BaseException | None = None
            self._phases: dict[str, list[float]] = {}  # those going on, outermost first: steps done, steps in all
            self._reported = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._phases[name] = [0, max(steps, 1)]

        def step_complete(self, name: str, step: int) -> bool:
            self._phases.setdefault(name, [0, 1])[0] = step + 1
            return self._report()

        def phase_finish(self, name: str) -> None:
            self._phases.pop(name, None)
            if not self._phases:
                self._reported = 1.0
                self._report()

        def _report(self) -> bool:
            fraction, share = 0.0, 1.0
            for done, steps in self._phases.values():
                fraction += share * min(done / steps, 1)
                share /= steps
            self._reported = max(self._reported, min(fraction, 1.0))
            try:
                progress(file, self._reported)
            except BaseException as error:  # Ctrl-C arrives here; C++ would swallow it
                self.interruption = error
            return self.interruption is None

    return Monitor()
