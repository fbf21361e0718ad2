"""Tuning: what is tried, and the configuration that it becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from pinstream.options import Options
from pinstream.tensors import BatchSizes, ModelSpec, TensorSpec
from pinstream_cli.errors import CommandError
from pinstream_cli.triton import sizing
from pinstream_cli.tuning.model import find, write
from pinstream_cli.tuning.settings import Settings, delay_to_start_from, steps

PLAN = ModelSpec(
    (TensorSpec("images", "UINT8", (64, 64, 3)),), (TensorSpec("out", "FP32", (6,)),), BatchSizes((1, 4, 8, 16))
)


def test_what_is_tried_on_a_gpu() -> None:
    tried = [change for step in steps(PLAN, Options(), on_gpu=True, cores=4) for change in step]
    assert {"instances": 4, "executions": 8} in tried
    assert not any(change.get("instances", 0) > 4 for change in tried)  # more than cores
    most = [change for step in steps(PLAN, Options(), on_gpu=True, cores=24) for change in step]
    assert most[0] == {"instances": 8, "executions": 4}, "what was fastest by itself, before all else"
    assert {"instances": 16, "executions": 1} in most
    assert {"buckets": (1, 8, 16)} in tried
    assert not any("lanes" in change for change in tried)


def test_what_is_configured_is_not_tried_again() -> None:
    configured = Options(instances=8, executions=4)
    shares, slots, delays, _ = steps(PLAN, configured, on_gpu=True, cores=16)
    assert {"instances": 8, "executions": 4} not in shares
    assert {"instances": 4, "executions": 8} in shares
    assert {"slots": 3} not in slots, "which is what it has without SLOTS"
    assert {"slots": 3} in steps(PLAN, Options(slots=4), on_gpu=True, cores=16)[1]
    assert delays == [{"delay_us": 500}, {"delay_us": 2000}]
    assert {"delay_us": 500} not in steps(PLAN, configured, on_gpu=True, cores=16, delay_us=500)[2]


def test_what_serve_makes_of_a_model_on_a_cpu_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    config = text_format.Parse(sizing.plain_config(), model_config_pb2.ModelConfig())
    options = Options.from_model_config(json_format.MessageToDict(config, preserving_proto_field_name=True))
    assert steps(PLAN, options, on_gpu=False)[0] == [
        {"instances": 1, "lanes": 1, "threads": 2},
        {"instances": 1, "lanes": 2, "threads": 1},
    ]


@pytest.mark.parametrize("alone", [Options(share_engine="off"), Options(output_memory="gpu"), Options(gpu_inputs=True)])
def test_executions_are_tried_only_where_an_engine_may_be_shared(alone: Options) -> None:
    tried = [change for step in steps(PLAN, alone, on_gpu=True, cores=4) for change in step]
    assert {"instances": 4} in tried
    assert not any("executions" in change for change in tried)


def test_what_is_tried_on_a_cpu_shares_all_cores() -> None:
    shares, delays = steps(PLAN, Options(), on_gpu=False, cores=4)
    assert {"instances": 2, "lanes": 2, "threads": 1} in shares
    assert all(share["instances"] * share["lanes"] * share["threads"] == 4 for share in shares)
    assert {"delay_us": 500} in delays


def test_requests_that_may_wait_only_so_long_are_not_delayed() -> None:
    limited = "dynamic_batching { default_queue_policy { default_timeout_microseconds: 1000000 } }"
    delayed = "dynamic_batching { max_queue_delay_microseconds: 500 }"
    assert delay_to_start_from(model_config_pb2.ModelConfig()) == 0
    assert delay_to_start_from(text_format.Parse(delayed, model_config_pb2.ModelConfig())) == 500
    assert delay_to_start_from(text_format.Parse(limited, model_config_pb2.ModelConfig())) is None
    for on_gpu in (False, True):
        tried = [change for step in steps(PLAN, Options(), on_gpu, cores=4, delay_us=None) for change in step]
        assert tried
        assert not any("delay_us" in change for change in tried)


def test_buckets_that_were_chosen_stay() -> None:
    tried = [change for step in steps(PLAN, Options(buckets=(1, 4)), on_gpu=True, cores=4) for change in step]
    assert not any("buckets" in change for change in tried)


def test_a_configuration_keeps_what_is_not_tuned() -> None:
    text = 'backend: "pinstream" max_batch_size: 8 parameters { key: "PLUGINS" value { string_value: "a.so" } }'
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    changed = Settings(instances=3, delay_us=500, buckets=(1, 8), executions=4, slots=4).apply(config)
    assert changed.instance_group[0].count == 3
    assert changed.dynamic_batching.max_queue_delay_microseconds == 500
    parameters = {key: value.string_value for key, value in changed.parameters.items()}
    assert parameters == {"PLUGINS": "a.so", "BUCKETS": "1,8", "EXECUTIONS": "4", "SLOTS": "4"}
    assert not config.instance_group
    assert Settings().apply(config) == config


def test_only_models_of_ours_are_tuned(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text('backend: "python"')
    with pytest.raises(CommandError, match="has backend python"):
        find(tmp_path / "m", None, tmp_path)
    (tmp_path / "m" / "config.pbtxt").write_text(f"input {{ data_type: {2**63} }}")
    with pytest.raises(CommandError, match="is no model configuration"):
        find(tmp_path / "m", None, tmp_path)


def test_every_group_of_instances_is_tuned() -> None:
    text = "instance_group [ { kind: KIND_GPU gpus: [0] count: 1 }, { kind: KIND_GPU gpus: [1] count: 2 } ]"
    changed = Settings(instances=4).apply(text_format.Parse(text, model_config_pb2.ModelConfig()))
    assert [(list(group.gpus), group.count) for group in changed.instance_group] == [([0], 4), ([1], 4)]


def test_what_was_there_is_kept_beside_what_is_written(tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt"
    file.write_text('# Ask Kim.\nbackend: "pinstream"\n')
    file.chmod(0o640)
    config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())

    assert write(config, "Tuned.", file) == tmp_path / "config.pbtxt.before"
    assert (tmp_path / "config.pbtxt.before").read_text() == '# Ask Kim.\nbackend: "pinstream"\n'
    assert file.read_text() == '# Tuned.\nbackend: "pinstream"\n'
    assert file.stat().st_mode & 0o777 == 0o640

    assert write(config, "Tuned again.", file) == tmp_path / "config.pbtxt.before-2"
    assert (tmp_path / "config.pbtxt.before").read_text().startswith("# Ask Kim.")
    assert write(config, "New.", tmp_path / "new" / "config.pbtxt") is None


def test_what_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").mkdir()
    with pytest.raises(CommandError, match="cannot be written"):
        write(model_config_pb2.ModelConfig(), "Tuned.", tmp_path / "config.pbtxt")
    assert [path.name for path in tmp_path.iterdir()] == ["config.pbtxt"]
