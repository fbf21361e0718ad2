"""Model repositories of plans."""

from __future__ import annotations

from pathlib import Path

from tests.server.conftest import ONE_LINE


def parameters(**values: str) -> str:
    """Parameters as config.pbtxt has them."""
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in values.items()
    )


# Without it Triton copies inputs on the GPU to the host before a model sees them.
INPUTS_ON_THE_GPU = parameters(FORCE_CPU_ONLY_INPUT_TENSORS="no")


def place(plan: Path, repository: Path, name: str, config: str = ONE_LINE) -> None:
    """Make a plan directory a model of a repository."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    for file in plan.iterdir():
        if file.is_file():
            (version / file.name).write_bytes(file.read_bytes())
