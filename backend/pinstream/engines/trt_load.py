"""From plan file to engine, and the cache of kernels that TensorRT-RTX compiles when an engine first runs."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import time
from pathlib import Path
from typing import Any

from pinstream import cuda
from pinstream.engines.flavour import Flavour, made, why
from pinstream.engines.plan_info import describe_engine
from pinstream.engines.plan_source import built_plans, read_sidecar
from pinstream.engines.profiles import PlanInfo
from pinstream.errors import EngineError, ModelFileError
from pinstream.options import Options
from pinstream.preflight import Gpu, rebuild_command

LOGGER = logging.getLogger("pinstream.tensorrt")


def load_plans(
    files: list[Path], model_file: Path, options: Options, flavour: Flavour, gpu: Gpu | None
) -> tuple[list[Path], list[tuple[Any, PlanInfo]]]:
    """Deserialize the plans of a model.

    Args:
        files: Those that preflight has found.
        model_file: The first of the model's own.
        options: AUTO_BUILD, and what building needs.
        flavour: TensorRT.
        gpu: The GPU that will run them.

    Returns:
        The files, and of each the ICudaEngine and what it holds; with AUTO_BUILD files built here, where TensorRT
        refuses one that looked right.

    Raises:
        ModelFileError: TensorRT refuses a file; the text has TensorRT's own reason.
        EngineError: There is too little memory.
    """
    try:
        return files, [_load_plan(flavour, path, options, gpu) for path in files]
    except ModelFileError as error:
        if not options.auto_build:
            raise
        files = built_plans(model_file.parent, options, flavour, gpu, error)
        return files, [_load_plan(flavour, path, options, gpu) for path in files]


def _load_plan(flavour: Flavour, path: Path, options: Options, gpu: Gpu | None) -> tuple[Any, PlanInfo]:
    runtime = made(flavour, flavour.module.Runtime, "load a plan", "serve the .onnx file")
    if options.version_compatible:
        runtime.engine_host_code_allowed = True
    engine = _deserialize(flavour, runtime, path)
    if engine is None:
        reason = why(flavour)
        refused = f"{path} ({path.stat().st_size:,} bytes) cannot be loaded by {flavour}: {reason}"
        if advice := cuda.memory_advice_for(reason):
            raise EngineError(refused + advice)
        raise ModelFileError(
            f"{refused}; build it on this machine: {rebuild_command(path, flavour, gpu, read_sidecar(path.parent))}"
        )
    return engine, describe_engine(flavour, engine, path.name)


def _deserialize(flavour: Flavour, runtime: Any, path: Path) -> Any:
    """Read the plan as TensorRT asks for it, never whole: by a stream reader, or as a mapping of the file.

    `tensorrt` is given a stream reader of the second kind, which came with 10.7; before, with the first kind only, it
    is given the mapping. So is TensorRT-RTX, although 1.4 takes the same stream reader: that copies what it reads once
    more, into Python's bytes and out of them, where a mapping is the system's own cache of the file; and of one in
    Python the documentation of 1.4 says itself that no gain over a buffer is to be expected.
    """
    if hasattr(flavour.module, "IStreamReaderV2") and not flavour.is_rtx:
        return by_stream_reader(flavour, runtime, path)
    return by_mapping(runtime, path)


def by_stream_reader(flavour: Flavour, runtime: Any, path: Path) -> Any:
    """The ICudaEngine of a plan, or None; for a TensorRT that has IStreamReaderV2."""
    with path.open("rb") as file:
        return runtime.deserialize_cuda_engine(_make_stream_reader(flavour, file))


def by_mapping(runtime: Any, path: Path) -> Any:
    """The ICudaEngine of a plan, or None."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        return runtime.deserialize_cuda_engine(plan)


def _make_stream_reader(flavour: Flavour, file: Any) -> Any:
    """A trt.IStreamReaderV2 over an open file; its base class exists only once TensorRT is imported."""
    trt = flavour.module
    whence = {trt.SeekPosition.SET: os.SEEK_SET, trt.SeekPosition.CUR: os.SEEK_CUR, trt.SeekPosition.END: os.SEEK_END}

    class StreamReader(trt.IStreamReaderV2):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IStreamReaderV2.__init__(self)

        def read(self, num_bytes: int, stream: int) -> bytes:
            return bytes(file.read(num_bytes))

        def seek(self, offset: int, where: Any) -> bool:
            file.seek(offset, whence[where])
            return True

    return StreamReader()


class LoadSteps:
    """Milliseconds of each step of a load, for the log."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._steps: list[tuple[str, float]] = []

    def done(self, name: str) -> None:
        """The step that began with the last one's end is done."""
        now = time.perf_counter()
        self._steps.append((name, (now - self._began) * 1000))
        self._began = now

    def __str__(self) -> str:
        return ", ".join(f"{name} {ms:.0f} ms" for name, ms in self._steps)


class JitCache:
    """The runtime cache of one plan, kept on disk; does nothing where TensorRT has none.

    TensorRT-RTX compiles kernels for the GPU when an engine first runs, which takes seconds; the cache saves them.

    Args:
        flavour: TensorRT.
        plan: The plan file the cache belongs to.
        options: Has the cache directory.
    """

    def __init__(self, flavour: Flavour, plan: Path, options: Options) -> None:
        self._flavour = flavour
        # TensorRT-RTX passes over a cache of another driver without a word, and compiles everything again.
        gpu = f"{cuda.compute_capability(options.device)}-{cuda.driver_version()}"
        made_for = f"{flavour.name}-{flavour.version}-{gpu}"
        self._path = cache_directory(options) / "jit" / f"{_identity(plan)}-{made_for}.cache"
        self._cache: Any = None
        self._saved_bytes = 0

    def runtime_config(self, engine: Any, eager: bool) -> Any:
        """A fresh IRuntimeConfig with the cache in it, or None where this TensorRT has no such thing.

        Args:
            engine: The ICudaEngine.
            eager: Compile the kernels of a dynamic plan's shape when it first comes, and not while others of no shape
                run: a graph captured meanwhile would keep these. Where any shape may come, its first request would wait
                for that, so it is not TensorRT-RTX's default.
        """
        if not hasattr(engine, "create_runtime_config"):
            return None
        config = engine.create_runtime_config()
        strategies = getattr(self._flavour.module, "DynamicShapesKernelSpecializationStrategy", None)
        if eager and strategies is not None:
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if hasattr(config, "create_runtime_cache"):
            if self._cache is None:
                self._cache = self._open(config)
            config.set_runtime_cache(self._cache)
        return config

    def _open(self, config: Any) -> Any:
        cache = config.create_runtime_cache()
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return cache
        except OSError as error:
            LOGGER.warning("the JIT cache %s cannot be read: %s; everything is compiled again", self._path, error)
            return cache
        if cache.deserialize(content):
            self._saved_bytes = len(content)
        else:
            LOGGER.warning("the JIT cache %s is of no use and is made again: %s", self._path, why(self._flavour))
        return cache

    def save(self) -> None:
        """Write what was compiled, for the next start; a cache that cannot be written costs only time."""
        if self._cache is None:
            return
        serialized = self._cache.serialize()
        if serialized is None:
            LOGGER.warning("the JIT cache cannot be saved: %s; the next start compiles again", why(self._flavour))
            return
        content = bytes(serialized)
        # No two serializations of the same kernels have the same bytes; with another kernel they have another length.
        if len(content) == self._saved_bytes:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, self._path)
            self._saved_bytes = len(content)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            LOGGER.warning("the JIT cache %s cannot be written: %s; the next start compiles again", self._path, error)


def cache_directory(options: Options) -> Path:
    """Where built plans and JIT caches are kept."""
    if options.cache_dir:
        return Path(options.cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pinstream"


def _identity(plan: Path) -> str:
    """What tells plans apart without reading 100 MB: the size and the first and last megabyte."""
    size = plan.stat().st_size
    with plan.open("rb") as file:
        head = file.read(1 << 20)
        file.seek(max(0, size - (1 << 20)))
        return hashlib.sha256(head + file.read() + str(size).encode()).hexdigest()[:32]
