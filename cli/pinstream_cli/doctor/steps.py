"""Models in Python, which Triton's Python backend runs: their code, and what the steps of the YOLOX service need."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.model_files import permissions, readable
from pinstream_cli.triton.assemble import import_steps, service_repository
from pinstream_cli.triton.repository import CONFIG, ENVIRONMENT, Model, RepositoryError, read_model

# The name that the Python backend itself falls back to.
PYTHON_FILE = "model.py"
# What it looks for in there.
CLASS = "TritonPythonModel"
# What the stub itself brings along.
STUB_MODULES = ("triton_python_backend_utils", "c_python_backend_utils", "__main__")
# What tells a step of the YOLOX service: the package that these share.
_STEPS = "yolox_steps"


def check_python(area: str, model: Model, version: Path) -> Iterator[Check]:
    """A version of a model in Python. Its code is read, and not run.

    Args:
        area: What the checks belong to.
        model: The model.
        version: The version directory.
    """
    file = python_file(model, version)
    found = readable(area, file)
    yield found
    if found.status != "OK":
        return
    source = file.read_bytes()
    yield _code(area, file, defines="" if b"import *" in source else CLASS)
    if b"sys.path" not in source and ENVIRONMENT not in model.config.parameters:
        yield from _imports(area, file)
    yield permissions(area, version, [file])
    if _STEPS.encode() in source:
        yield _shared(area, version)
        yield _step(area, model, version)


def python_file(model: Model, version: Path) -> Path:
    """The file that Triton's Python backend runs for a version of a model."""
    return version / (model.config.default_model_filename or PYTHON_FILE)


def _code(area: str, file: Path, *, defines: str = "") -> Check:
    name = f"{file.parent.name}/{file.name} code"
    try:
        # Compiled as an import does it; none of it runs.
        code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except SyntaxError as error:
        return Check(area, name, "FIX", f"line {error.lineno}: {error.msg}", f"correct {file}")
    except ValueError as error:
        return Check(area, name, "FIX", f"is no Python: {error}", f"copy it there again: {file}")
    if defines and defines not in code.co_names:
        return Check(area, name, "FIX", f"has no class {defines}", f"correct {file}")
    return Check(area, name, "OK", "Python compiles it")


def _imports(area: str, file: Path) -> Iterator[Check]:
    """Whether there is what it imports in any case; not what is imported in functions, or may be missing."""
    try:
        statements = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError):
        # Told where it is compiled.
        return
    modules = [alias.name for node in statements if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in statements if isinstance(node, ast.ImportFrom) and not node.level]
    for name in dict.fromkeys(module.partition(".")[0] for module in modules):
        beside = {place.stem for place in file.parent.iterdir()}
        # Where the stub of this Python looks too; nothing is imported by that.
        if name not in beside and name not in STUB_MODULES and importlib.util.find_spec(name) is None:
            remedy = f"pip install it here, or name an environment that has it with {ENVIRONMENT}"
            yield Check(area, f"{file.parent.name}/{file.name} imports", "FIX", f"there is no module {name}", remedy)


def _shared(area: str, version: Path) -> Check:
    """The modules that the steps import from where the ensemble lies, held against the list of our own."""
    place = Path("yolox", "1", _STEPS)
    package = version.parents[1] / place
    for ours in sorted((service_repository() / place).glob("*.py")):
        file = package / ours.name
        check = readable(area, file)
        if check.status == "OK":
            check = _code(area, file)
        if check.status != "OK":
            return check
    return permissions(area, package, sorted(package.glob("*.py")))


def _step(area: str, model: Model, version: Path) -> Check:
    """A step reads the detector's sidecar and its own parameters when it loads."""
    import_steps()
    try:
        from yolox_steps.decode import DEFAULT_MAX_PIXELS
        from yolox_steps.detector import DEFAULT_NAME, SIDECAR, DetectorError, read_detector, read_sidecar
        from yolox_steps.parameters import Parameters, Preprocessing
    except ImportError as error:
        return Check(area, "packages", "FIX", str(error), 'pip install "pinstream[server]"')

    config = {name: entry.string_value for name, entry in model.config.parameters.items()}
    detector = config.get("DETECTOR", DEFAULT_NAME)
    try:
        found = read_detector(version, detector)
        served = read_model(version.parents[1] / detector).versions
        others = {place: read_sidecar(place / SIDECAR) for place in served if (place / SIDECAR).is_file()}
    except RepositoryError:
        # Told where the detector itself is looked at.
        others = {}
    except DetectorError as error:
        text, _, remedy = str(error).partition(". ")
        return Check(area, "detector", "FIX", text, remedy)
    try:
        Parameters(config, found.candidates)
        Preprocessing.of_config(config, DEFAULT_MAX_PIXELS)
    except ValueError as error:
        return Check(area, "parameters", "FIX", str(error), f"correct {model.path / CONFIG}")
    if unlike := [place for place, other in others.items() if other != found]:
        text = f"{unlike[0]} has another size, other candidates or other labels than the version that the steps fit"
        remedy = "serve one of them, as by version_policy { specific { versions: [ N ] } } in its " + CONFIG
        return Check(area, "detector", "FIX", text, remedy)
    return Check(area, "detector", "OK", f"{detector}, {found.width} x {found.height}, its parameters are right")
