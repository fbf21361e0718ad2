"""docs/configuration.md has every parameter of the service's config.pbtxt files, with its default."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

ROOT = Path(__file__).parents[3]


def test_every_parameter_of_the_service_is_documented() -> None:
    assert _documented() == _configured()


def _configured() -> dict[tuple[str, str], str]:
    """(step, parameter) -> default."""
    defaults = {}
    for file in (ROOT / "model_repository").glob("*/config.pbtxt"):
        config = text_format.Parse(file.read_text(), ModelConfig())
        step = file.parent.name.removeprefix("yolox_")
        defaults.update({(step, name): value.string_value for name, value in config.parameters.items()})
    return defaults


def _documented() -> dict[tuple[str, str], str]:
    page = (ROOT / "docs" / "configuration.md").read_text()
    _, _, table = page.partition("| parameter | step |")
    defaults = {}
    for row in table.split("\n\n")[0].splitlines()[2:]:
        name, steps, _values, default = (cell.strip() for cell in row.split("|")[1:5])
        defaults.update({(step, name): "" if default == "none" else default for step in steps.split(", ")})
    return defaults
