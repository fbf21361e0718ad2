"""Parameters are read, bounded, and unknown ones refused with a suggestion."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pinstream import options
from pinstream.errors import ConfigError
from pinstream.options import PARAMETERS, Options


def config(**parameters: str) -> dict[str, object]:
    return {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}


def test_every_parameter_is_documented_in_the_table() -> None:
    documented = {line.split("|")[1].strip() for line in (options.__doc__ or "").splitlines() if line.startswith("| ")}
    assert documented - {"parameter"} == PARAMETERS


def test_parameters_are_read() -> None:
    read = Options.from_model_config(config(ENGINE="onnxruntime", BUCKETS="8, 1,4", SLOTS="5", LANES="2", THREADS="3"))
    assert (read.engine, read.buckets, read.slots, read.lanes, read.threads) == ("onnxruntime", (1, 4, 8), 5, 2, 3)


@pytest.mark.parametrize(
    ("given", "read"), [("x", ("x",)), ("x;y", ("x", "y")), (" x ; y ;", ("x", "y")), ("", ()), (None, ())]
)
def test_inputs_by_reference_are_read(given: str | None, read: tuple[str, ...]) -> None:
    parameters = {} if given is None else {"BY_REFERENCE": given}
    assert Options.from_model_config(config(**parameters)).by_reference == read


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"BUCKETS": "1,x"}, 'BUCKETS is "1,x".*batch sizes separated by commas'),
        ({"BUCKETS": "0"}, "BUCKETS"),
        ({"SLOTS": "0"}, "whole number from 1 to 64"),
        ({"ENGINE": "torch"}, "one of auto, onnxruntime"),
        ({"LANE": "1"}, "unknown parameter LANE.*did you mean LANES"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_it_may_be(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options.from_model_config(config(**parameters))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optimization": {"priority": "PRIORITY_MAX"}}, {"priority": "high"}),
        ({"optimization": {"priority": "PRIORITY_MIN"}}, {"priority": "low"}),
        ({"optimization": {"priority": "PRIORITY_DEFAULT"}}, {"priority": "normal"}),
        ({"optimization": {"cuda": {"busy_wait_events": True}}}, {"busy_wait": True}),
        ({"optimization": {"cuda": {"graphs": True}}}, {"cuda_graphs": "on"}),
        ({"optimization": {"cuda": {"graphs": True}}, **config(CUDA_GRAPHS="off")}, {"cuda_graphs": "off"}),
        ({"optimization": {"cuda": {"graphs": False}}}, {"cuda_graphs": "auto"}),
        (
            {"optimization": {"cuda": {"graph_spec": [{"batch_size": 8}, {"batch_size": 2}, {"batch_size": 0}]}}},
            {"graph_batch_sizes": (1, 2, 8)},
        ),
        ({"max_batch_size": 16}, {"max_batch_size": 16}),
        (
            {"cc_model_filenames": {"9.0": "b.plan", "8.9": "a.plan"}},
            {"cc_model_filenames": (("8.9", "a.plan"), ("9.0", "b.plan"))},
        ),
        (config(PLUGINS="a,1.so; b.so;"), {"plugins": ("a,1.so", "b.so")}),
        (config(OUTPUT_MEMORY="gpu"), {"output_memory": "gpu"}),
        (config(FORCE_CPU_ONLY_INPUT_TENSORS="no"), {"gpu_inputs": True}),
        (config(VERSION_COMPATIBLE="true"), {"version_compatible": True}),
        (config(AUTO_BUILD="True", CACHE_DIR="/cache"), {"auto_build": True, "cache_dir": "/cache"}),
        (
            config(VERIFY="true", EXECUTIONS="4", SHARE_ENGINE="on"),
            {"verify": True, "executions": 4, "share_engine": "on"},
        ),
    ],
)
def test_every_setting_arrives_and_changes_nothing_else(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    assert Options.from_model_config(settings) == replace(Options.from_model_config({}), **expected)


def test_names_that_are_not_ours_pass() -> None:
    Options.from_model_config(config(FORCE_CPU_ONLY_INPUT_TENSORS="no", execution_context_allocation_strategy="STATIC"))


def test_the_documentation_has_the_same_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    rows = [line for line in (options.__doc__ or "").splitlines() if line.startswith("|")]
    assert "\n\n" + "\n".join(rows) + "\n\n" in page


def test_instances_share_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    for count in (1, 2, 64):
        read = Options.from_model_config({"instance_group": [{"count": count}]})
        assert read.lanes * read.threads * count <= max(cores, count)


def test_instances_and_profiles_are_those_of_the_instance_s_own_gpu() -> None:
    groups = [{"count": 2, "gpus": [0], "profile": ["0"]}, {"count": 1, "gpus": [1], "profile": ["1"]}]
    on_both = {"count": 1, "profile": ["2"]}
    first, second = (Options.from_model_config({"instance_group": [*groups, on_both]}, device=i) for i in (0, 1))
    assert (first.instances, first.profiles) == (3, (0, 2))
    assert (second.instances, second.profiles) == (2, (1, 2))


def test_before_there_is_an_instance_the_gpu_is_the_first_that_is_named() -> None:
    groups = [{"count": 1}, {"count": 2, "gpus": [3, 2]}]
    assert Options.from_model_config({"instance_group": groups}).device == 3
    assert Options.from_model_config({"instance_group": groups}, device=1).device == 1
    assert Options.from_model_config({}).device == 0


@pytest.mark.parametrize("name", ["/models/x.onnx", "../x.onnx", "a/../../x.onnx"])
def test_no_name_leads_out_of_the_version(name: str) -> None:
    for names in ({"default_model_filename": name}, {"cc_model_filenames": {"9.0": name}}):
        with pytest.raises(ConfigError, match="leads out of the version's directory; put the file into it"):
            Options.from_model_config(names)
    assert Options.from_model_config({"default_model_filename": "a..b.onnx"}).model_filename == "a..b.onnx"


def test_with_verify_a_file_lies_in_the_versions_directory_itself() -> None:
    """The directories above it are what is looked at."""
    for names in ({"default_model_filename": "sub/x.onnx"}, {"cc_model_filenames": {"9.0": "sub/x.onnx"}}):
        Options.from_model_config(names)
        with pytest.raises(
            ConfigError, match=r'VERIFY is set, and config\.pbtxt names the file "sub/x\.onnx", deeper than'
        ):
            Options.from_model_config(names | {"parameters": {"VERIFY": {"string_value": "true"}}})
