"""ONNX -> TensorRT plan: profiles, precision, sidecar, cache. Needs the `onnx` package; serving a plan does not."""

from pinstream.engines.build_spec import BuildSpec, parse_shape
from pinstream.plans.build import PlanBuild, build_plan
from pinstream.plans.builder import Progress
from pinstream.plans.cache import cached_plan

__all__ = ["BuildSpec", "PlanBuild", "Progress", "build_plan", "cached_plan", "parse_shape"]
