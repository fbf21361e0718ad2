"""TensorRT, whichever is installed: `tensorrt`, or TensorRT for RTX, which has the same API under another name.

Everything else of pinstream reaches TensorRT through a Flavour, so that this is the one file that imports it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinstream.errors import EngineError, ModelFileError, first_line

# The modules of each flavour, in the order of preference. The wheel with the bindings of TensorRT-RTX works by itself;
# `tensorrt_rtx` is a package around it that need not be there.
MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
# What users have to install where there is none.
PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings"}
# The first versions with all that is called here: get_device_memory_size_for_profile_v2 came with TensorRT 10.1.
OLDEST = {"tensorrt": (10, 1), "tensorrt_rtx": (1, 0)}
# TensorRT's data types by name, and Triton's. FP8, INT4 and FP4 exist inside engines only: Triton cannot carry them.
TRITON_DTYPES = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "BF16": "BF16",
    "INT8": "INT8",
    "UINT8": "UINT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
}

# TensorRT-RTX passes over the builder's flag TF32. It heeds this variable, which says the same for all of NVIDIA's
# libraries, both when a plan is built and when it is loaded and compiled; where the two differ it refuses the plan.
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
_TF32_COMPLAINT = re.compile(rf"Inconsistent setting of {TF32_VARIABLE} env var at build (-?\d)")
# What version 1.4 says on compute capability 9.0 where it has no kernel of a matrix product without TF32, or of a
# convolution of a dynamic batch.
_NO_KERNEL = re.compile(r"cudnn_graph")

Sink = Callable[[int, str], None]

_log = logging.getLogger("pinstream.tensorrt")
_log.addHandler(logging.NullHandler())
# Follows every real error and says nothing about it.
_NOISE = "checkMacros.cpp::catchCudaError"
_KEPT_ERRORS = 20
# The place in TensorRT's own source, which tells users nothing.
_WHERE = re.compile(r"\.?( In \w+ at \S+?:\d+)+(?=\)|$)| ?\(In \w+ at \S+?:\d+\)")
# TensorRT objects refer to their logger until the process ends, and so must we.
_loggers: dict[str, Any] = {}


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT.

    Attributes:
        name: `tensorrt` or `tensorrt_rtx`; the plans of one are foreign to the other.
        module: The module, `trt` in TensorRT's own documentation.
        version: Its version, as in "10.16.1.11".
    """

    name: str
    module: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT for RTX."""
        return self.name == "tensorrt_rtx"

    @property
    def logger(self) -> Any:
        """The one logger of this flavour, a trt.ILogger for Builder, OnnxParser and Runtime.

        Its `sink` is called with a level of Python's logging and a text: the logger "pinstream.tensorrt" by default.
        Its `take_errors()` gives the latest error texts, oldest first, and forgets them.
        """
        if self.name not in _loggers:
            _loggers[self.name] = _make_logger(self.module)
        return _loggers[self.name]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def load_flavour(name: str = "auto") -> Flavour:
    """Import TensorRT.

    Args:
        name: "tensorrt" or "tensorrt_rtx" for that one; "auto" for the first that is installed, in this order.

    Raises:
        ModelFileError: None is installed, or an installed one does not load; the text says what was tried.
    """
    if name != "auto" and name not in MODULES:
        raise ModelFileError(f"there is no TensorRT called {name}; choose auto, {' or '.join(MODULES)}")
    tried = []
    for candidate in MODULES if name == "auto" else (name,):
        for module_name in MODULES[candidate]:
            try:
                module = importlib.import_module(module_name)
                flavour = Flavour(candidate, module, str(module.__version__))
                if leading_numbers(flavour.version) >= OLDEST[candidate]:
                    return flavour
                tried.append(f"{flavour} is too old, {'.'.join(map(str, OLDEST[candidate]))} is needed")
            except (ImportError, OSError, AttributeError) as error:
                tried.append(f"{module_name}: {_reason(error, module_name)}")
    packages = [PACKAGES[name]] if name != "auto" else PACKAGES.values()
    install = " or ".join(f"`pip install {package}`" for package in packages)
    raise ModelFileError(f"no TensorRT here ({'; '.join(tried)}); {install}, or serve the .onnx file")


def leading_numbers(version: str) -> tuple[int, ...]:
    """A version's numbers without what follows them, as wheels have it: (10, 13, 3, 9) of "10.13.3.9.post1"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def is_installed(name: str) -> bool:
    """Whether a module of that flavour is there to be imported; nothing is."""
    return any(importlib.util.find_spec(module) is not None for module in MODULES.get(name, ()))


def _reason(error: Exception, module_name: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == module_name:
        return "not installed"
    if isinstance(error, AttributeError):  # a directory of that name is an empty package to Python
        return "something else of that name is in the way"
    return first_line(error)


def _make_logger(trt: Any) -> Any:
    """An instance of a subclass of trt.ILogger, which exists only once TensorRT is imported."""
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is Any
        def __init__(self, sink: Sink) -> None:
            # Not super(): the bindings ask for the C++ half to be made by name, and crash without it.
            trt.ILogger.__init__(self)
            self.sink = sink
            self._errors: deque[str] = deque(maxlen=_KEPT_ERRORS)

        def log(self, severity: Any, text: str) -> None:
            level = levels[severity]
            if level == logging.ERROR and _NOISE not in text:
                self._errors.append(text)
            self.sink(level, text)

        def take_errors(self) -> list[str]:
            errors = list(self._errors)
            self._errors.clear()
            return errors

    return Logger(_log.log)


# The handles of the plugin libraries that this process has registered, and with which flavour.
_plugin_libraries: set[tuple[str, int]] = set()


def register_plugins(flavour: Flavour, paths: Iterable[Path] = ()) -> None:
    """Make plugins known: those that come with TensorRT, then those of shared libraries.

    Args:
        flavour: The TensorRT.
        paths: Shared libraries, which register their plugins when loaded or offer them to the registry.

    Raises:
        ModelFileError: A library cannot be loaded; the text names it.
    """
    trt, logger = flavour.module, flavour.logger
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(logger, "")
    registry = trt.get_plugin_registry()
    for path in paths:
        if not path.is_file():
            raise ModelFileError(f"plugin library {path}: no such file; correct PLUGINS (or --plugin)")
        before = len(registry.all_creators)
        absolute = str(path.absolute())  # neither dlopen nor TensorRT looks for "plugin.so" in the current directory
        try:
            # Global, so that a library may use another's symbols. Never unloaded: engines call into it.
            library = ctypes.CDLL(absolute, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ModelFileError(f"plugin library {path} cannot be loaded: {error}") from error
        # One and the same for a file, by whatever name it is loaded: TensorRT refuses a library that it has already.
        loaded = flavour.name, library._handle
        if loaded in _plugin_libraries:
            continue
        offers = hasattr(library, "getCreators") or hasattr(library, "getPluginCreators")
        # Most libraries register themselves as they are loaded; others wait to be asked.
        if offers and len(registry.all_creators) == before:
            logger.take_errors()
            if registry.load_library(absolute) is None:
                raise ModelFileError(
                    f"plugin library {path} is refused by {flavour}: {why(flavour)}; it offers no plugins, or one that "
                    "another library has brought already"
                )
        _plugin_libraries.add(loaded)


def allow_tf32(flavour: Flavour, allowed: bool) -> None:
    """Say whether FP32 may be multiplied in TF32, in what TensorRT-RTX builds and loads in this process from now on."""
    if not flavour.is_rtx:
        return
    if allowed:
        os.environ.pop(TF32_VARIABLE, None)
    else:
        os.environ[TF32_VARIABLE] = "0"


def allow_tf32_as_built(flavour: Flavour, complaint: str) -> bool:
    """Follow the plan where TensorRT-RTX complains that it was built with another setting.

    Returns:
        Whether it was that, so that loading the plan is worth another try.
    """
    found = _TF32_COMPLAINT.search(complaint)
    if found:
        allow_tf32(flavour, found[1] != "0")
    return bool(found)


def hold_to_tf32(flavour: Flavour) -> None:
    """Note how the plan just loaded multiplies FP32, which is how every later one of this process does.

    Seen with 1.4: the setting is read once; a plan built without TF32 that is loaded after one with it ran in TF32.

    Raises:
        EngineError: The plan is one to be exact, and would not be.
    """
    if not flavour.is_rtx:
        return
    if os.environ.get(TF32_VARIABLE) != "0":
        _with_tf32.add(flavour.name)
        if flavour.name in _exact:
            _log.warning(
                "FP32 is not multiplied in TF32, since this process has loaded a plan built with --no-tf32 before"
            )
        return
    _exact.add(flavour.name)
    if flavour.name in _with_tf32:
        raise EngineError(
            "the plan was built with --no-tf32, and this process has loaded one with TF32 before; TensorRT for RTX "
            "reads that setting once a process and would multiply in TF32 now: load the plan in a process of its own"
        )


# Flavours of which this process has loaded plans that multiply FP32 in TF32, and exactly.
_with_tf32: set[str] = set()
_exact: set[str] = set()


def why(flavour: Flavour) -> str:
    """What TensorRT last complained about, for the message about a call that returned nothing."""
    errors = flavour.logger.take_errors()
    # One line, whatever TensorRT breaks lines for.
    reasons = list(dict.fromkeys(" ".join(_WHERE.sub("", text).split()) for text in errors))
    if flavour.is_rtx and os.environ.get(TF32_VARIABLE) == "0" and any(map(_NO_KERNEL.search, reasons)):
        reasons.append("it has no kernels without TF32 for this network: build it without --no-tf32")
    return "; ".join(reasons) or "it gave no reason"


def made(flavour: Flavour, factory: Callable[[Any], Any], purpose: str, otherwise: str) -> Any:
    """A trt.Builder or trt.Runtime.

    Args:
        flavour: The TensorRT.
        factory: The class.
        purpose: For the message: "build a plan".
        otherwise: What to do where there is no GPU: "serve the .onnx file".

    Raises:
        ModelFileError: It cannot be made: the bindings of `tensorrt` say TypeError where there is no GPU to be used.
    """
    try:
        return factory(flavour.logger)
    except (TypeError, RuntimeError) as error:
        raise ModelFileError(
            f"{flavour} cannot {purpose} here ({error}): {why(flavour)}; it needs a GPU and its driver (a container, "
            f"--gpus all), or {otherwise}"
        ) from error


def triton_dtype(dtype: Any, tensor: str) -> str:
    """Triton's name of a trt.DataType.

    Args:
        dtype: The trt.DataType.
        tensor: The I/O tensor that has it, for the message.

    Raises:
        ModelFileError: Triton has no such data type.
    """
    try:
        return TRITON_DTYPES[dtype.name]
    except KeyError:
        raise ModelFileError(
            f"tensor {tensor} has TensorRT's data type {dtype.name}, which Triton cannot carry; "
            f"convert it in the network to one of {', '.join(TRITON_DTYPES.values())}"
        ) from None
