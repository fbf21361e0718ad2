"""What Triton's log says of versions, in its own words."""

from __future__ import annotations

import pytest

from pinstream_cli.triton.loads import LoadFailed, Loads, Version

ONE, TWO = Version("classifier", 1), Version("classifier", 2)
BROKEN = "Internal: ModelFileError: model.onnx (6 bytes) is not an ONNX model"


def said(text: str, file: str = "model_lifecycle.cc:472", level: str = "I") -> str:
    """A line of the log as Triton 2.51 writes it."""
    return f'{level}1126 07:44:20.055438 16289 {file}] "{text}"'


def loading(version: Version) -> str:
    return said(f"loading: {version.model}:{version.number}")


def failed(version: Version) -> list[str]:
    at = "model_lifecycle.cc:642"
    return [
        said(
            f"failed to load '{version.model}' version {version.number}: {BROKEN}\\n\\nAt:\\n  /a.py(1): f\\n", at, "E"
        ),
        said(f"failed to load '{version.model}'", "model_lifecycle.cc:777"),
    ]


def unloaded(version: Version) -> str:
    return said(f"successfully unloaded '{version.model}' version {version.number}")


LOADED = said("successfully loaded 'classifier'")
STOPPING = said("Waiting for in-flight requests to complete.", "server.cc:305")


def after(*lines: str) -> Loads:
    loads = Loads()
    for line in lines:
        loads.read(line)
    return loads


@pytest.mark.parametrize(
    ("lines", "versions", "still_loading"),
    [
        ([loading(ONE)], set(), {ONE}),
        ([loading(ONE), LOADED], {ONE}, set()),
        ([loading(ONE), LOADED, loading(TWO)], {ONE}, {TWO}),
        ([loading(ONE), LOADED, loading(TWO), *failed(TWO)], {ONE}, set()),
        ([loading(ONE), LOADED, loading(TWO), LOADED, unloaded(ONE)], {TWO}, set()),
        # Anew, as where its files have changed: the new one is there before the old one goes.
        ([loading(ONE), LOADED, loading(ONE), LOADED, unloaded(ONE)], {ONE}, set()),
        ([loading(ONE), LOADED, loading(ONE), *failed(ONE)], {ONE}, set()),
        # Of two at once one would not load: the other is unloaded again.
        ([loading(ONE), loading(TWO), *failed(TWO), unloaded(ONE)], set(), set()),
        ([loading(ONE), loading(TWO), *failed(ONE)], set(), set()),
        # Or stays as it was, where its files have not changed.
        ([loading(ONE), loading(TWO), LOADED, loading(ONE), loading(TWO), *failed(ONE)], {ONE, TWO}, set()),
        ([loading(ONE), LOADED, unloaded(ONE)], set(), set()),
        ([loading(ONE), LOADED, STOPPING, unloaded(ONE)], {ONE}, set()),
        ([loading(ONE), LOADED, loading(TWO), STOPPING, LOADED, unloaded(ONE)], {ONE, TWO}, set()),
        ([loading(ONE), LOADED, loading(TWO), STOPPING, *failed(TWO), unloaded(ONE)], {ONE}, set()),
        # What a model logs for a client, on a line of its own or not.
        ([said("loading: classifier:1", "model.py:9"), said(f"] {loading(ONE)}", "model.py:9")], set(), set()),
    ],
)
def test_what_is_loaded(lines: list[str], versions: set[Version], still_loading: set[Version]) -> None:
    loads = after(*lines)
    assert (loads.versions, loads.loading) == (versions, still_loading)


def test_what_would_not_load_is_told_without_the_traceback_until_it_does() -> None:
    loads = after(loading(TWO), *failed(TWO))
    assert loads.failed == {TWO: BROKEN}
    assert str(LoadFailed(loads.failed)) == f"Triton could not load 'classifier': {BROKEN}"
    assert loads.read(loading(TWO)) is None
    assert loads.read(LOADED) == "classifier"
    assert not loads.failed
