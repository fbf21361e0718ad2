"""VERIFY=true: what was built is loaded, and nothing else."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from pinstream import sidecar as sidecars
from pinstream.engines import open_engine
from pinstream.errors import ConfigError, ModelFileError
from pinstream.options import Options
from pinstream.plans.graph import external_files
from pinstream.verify import listed_files, others_can_write
from tests import onnx_models

ROOT = Path(__file__).resolve().parents[3]
VERIFY = Options(verify=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with its sidecar, as `pinstream build` leaves them."""
    tmp_path.chmod(0o755)
    file = onnx_models.classifier(tmp_path / "model.onnx")
    file.chmod(0o644)
    sidecars.write(tmp_path / "model.json", sidecars.Sidecar("onnx", file.name, sidecars.file_sha256(file), (), ()))
    (tmp_path / "model.json").chmod(0o644)
    return file


def refusal(model: Path) -> str:
    with pytest.raises(ModelFileError, match=r"^VERIFY is set") as caught:
        open_engine(model, VERIFY)
    return str(caught.value)


def test_what_was_built_is_loaded(model: Path) -> None:
    open_engine(model, VERIFY).close()


def test_a_file_that_was_swapped_is_loaded_only_without_verify(model: Path) -> None:
    onnx_models.classifier(model, seed=1)
    assert "SHA-256 differs" in refusal(model)
    open_engine(model, Options()).close()


def test_without_a_sidecar_nothing_vouches_for_the_file(model: Path) -> None:
    (model.parent / "model.json").unlink()
    assert "model.json" in refusal(model)


def test_a_file_that_the_sidecar_does_not_list(model: Path) -> None:
    other = model.rename(model.with_name("other.onnx"))
    assert "does not list other.onnx" in refusal(other)


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "."])
def test_what_others_can_write_is_refused(model: Path, name: str) -> None:
    place = model.parent / name
    place.chmod(place.stat().st_mode | 0o022)
    assert "others can write" in refusal(model)


def test_what_belongs_to_another_user_is_refused(model: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    os.chown(model, 12345, -1)
    assert "belongs to user 12345" in refusal(model)


@pytest.fixture
def served(model: Path) -> Path:
    """The same model as version 1 in a repository of a directory `site`."""
    version = model.parent / "site" / "repository" / "classifier" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text('backend: "pinstream"\n')
    for file in (model, model.with_name("model.json")):
        file.rename(version / file.name)
    close(model.parent)
    return version / model.name


def close(top: Path) -> None:
    """Take from the group and from others what their umask may have given them."""
    for path in top.rglob("*"):
        path.chmod(path.stat().st_mode & ~0o022)


@pytest.mark.parametrize("up", ["classifier/config.pbtxt", "classifier", ".", ".."])
def test_what_decides_what_is_loaded_must_be_nobody_elses_as_well(served: Path, up: str) -> None:
    open_engine(served, VERIFY).close()
    place = (served.parents[2] / up).resolve()
    mode = place.stat().st_mode
    for others in (0o020, 0o002):
        place.chmod(mode | others)
        assert f"others can write {place}" in refusal(served)
    place.chmod(mode)
    if os.geteuid() == 0:
        os.chown(place, 12345, -1)
        assert f"{place}" in refusal(served)
        assert "belongs to user 12345" in refusal(served)


def test_a_configuration_of_another_name_counts_as_well(served: Path) -> None:
    configs = served.parents[1] / "configs"
    configs.mkdir(mode=0o755)
    (configs / "fast.pbtxt").write_text('backend: "pinstream"\n')
    (configs / "fast.pbtxt").chmod(0o666)
    assert "others can write" in refusal(served)


def test_what_a_link_leads_to_and_where_it_lies_counts(served: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(served.parents[2], elsewhere)
    served.parents[2].symlink_to(elsewhere)
    open_engine(served, VERIFY).close()
    elsewhere.chmod(0o777)
    assert f"others can write {elsewhere}, " in refusal(served) or f"others can write {elsewhere} " in refusal(served)
    elsewhere.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(served.parents[2], 12345, -1, follow_symlinks=False)
        assert "chown -h it" in refusal(served)


def test_a_file_behind_a_link_may_lie_where_only_its_owner_can_rename_it(served: Path) -> None:
    shared = served.parents[2] / "shared"
    shared.mkdir()
    served.rename(shared / "kept.onnx")
    served.symlink_to(shared / "kept.onnx")
    shared.chmod(0o1777)
    open_engine(served, VERIFY).close()
    shared.chmod(0o777)
    assert f"others can write {shared}, which leads to {served}" in refusal(served)


@pytest.mark.parametrize("name", ["model.onnx", "model.json"])
def test_no_link_leads_out_of_the_repository(served: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    file = served.with_name(name)
    file.rename(elsewhere / name)
    file.symlink_to(elsewhere / name)
    assert f"{file} leads to {elsewhere / name}, outside of the model repository {served.parents[2]}" in refusal(served)
    open_engine(served, Options()).close()


def test_links_within_a_repository_and_of_its_directories_are_followed(served: Path, tmp_path: Path) -> None:
    """As Kubernetes mounts files (..data), and as model stores keep versions."""
    data = served.with_name("..data")
    hidden = served.with_name("..2026_01_01")
    hidden.mkdir(mode=0o755)
    data.symlink_to(hidden.name)
    for name in (served.name, "model.json"):
        served.with_name(name).rename(hidden / name)
        served.with_name(name).symlink_to(f"..data/{name}")
    open_engine(served, VERIFY).close()
    store = tmp_path / "store"
    served.parent.rename(store)
    served.parent.symlink_to(store)
    open_engine(served, VERIFY).close()


def test_what_is_made_for_many_is_not_to_be_closed(tmp_path: Path) -> None:
    for mode, remedy in ((0o1777, "; move what is served to a directory"), (0o777, f"; chmod go-w {tmp_path}")):
        tmp_path.chmod(mode)
        assert remedy in others_can_write(tmp_path)
    tmp_path.chmod(0o755)
    assert not others_can_write(tmp_path)


def test_links_in_a_circle_are_no_model(served: Path) -> None:
    served.unlink()
    served.symlink_to(served.name)
    assert "cannot be looked at" in refusal(served)


def test_plugins_are_code_as_well(served: Path) -> None:
    plugin = served.with_name("plugin.so")
    plugin.touch(mode=0o644)
    options = Options(verify=True, plugins=(plugin.name,))
    open_engine(served, options).close()
    plugin.chmod(0o666)
    with pytest.raises(ModelFileError, match=f"others can write {plugin}"):
        open_engine(served, options)


@pytest.mark.parametrize(
    "name",
    [
        "1/libtriton_pinstream.so",
        "libtriton_pinstream.so",
        "1/libtriton_other.so",
        "1/batchstrategy.so",
        "batchstrategy.so",
        "triton_python_backend_stub",
    ],
)
def test_what_triton_runs_before_anything_is_verified_is_refused(served: Path, name: str) -> None:
    code = served.parents[1] / name
    code.symlink_to("nowhere")
    assert refusal(served) == (
        f"VERIFY is set, and {code} is code that Triton runs before this backend can verify it; remove it"
    )
    open_engine(served, Options()).close()


def test_what_triton_does_not_look_for_may_lie_there(served: Path) -> None:
    for name in ("1/triton_python_backend_stub", "1/libplugin.so", "configs/libtriton_pinstream.so"):
        (served.parents[1] / name).parent.mkdir(exist_ok=True)
        (served.parents[1] / name).touch()
    open_engine(served, VERIFY).close()


def test_files_that_a_sidecar_lists_are_found_in_all_of_its_sections() -> None:
    sections = {
        "onnx": {"file": "source.onnx", "sha256": "0"},
        "plans": [{"file": "b1.plan"}, {"file": "../b2.plan"}, {"size": 1}, "b3.plan"],
        "external_data": [{"file": "w.data"}],
        "built_with": {"file": "other"},
    }
    assert listed_files(sidecars.Sidecar("plan", "b1.plan", "0", (), (), sections=sections)) == {
        "b1.plan",
        "source.onnx",
        "w.data",
    }
    assert listed_files(sidecars.Sidecar("onnx", "model.onnx", "0", (), (), sections={"onnx": 1})) == {"model.onnx"}


def test_the_server_can_ask_for_it_whatever_a_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"parameters": {"VERIFY": {"string_value": "false"}}}
    assert not Options.from_model_config(config).verify
    monkeypatch.setenv("PINSTREAM_VERIFY", "true")
    assert Options.from_model_config(config).verify
    monkeypatch.setenv("PINSTREAM_VERIFY", "maybe")
    with pytest.raises(ConfigError, match='PINSTREAM_VERIFY is "maybe" in the environment'):
        Options.from_model_config(config)


@pytest.fixture
def weights(model: Path) -> Path:
    """The weights of the model, in a file of their own that the sidecar lists."""
    file = model.with_name("w.data")
    onnx.save(onnx.load(model), model, save_as_external_data=True, location=file.name, size_threshold=0)
    listed = {"external_data": [{"file": file.name, "sha256": sidecars.file_sha256(file)}]}
    vouch(model, listed)
    file.chmod(0o644)
    return file


def vouch(model: Path, sections: dict[str, Any]) -> None:
    """Write a sidecar for the file as it is."""
    sidecar = sidecars.Sidecar("onnx", model.name, sidecars.file_sha256(model), (), (), sections=sections)
    sidecars.write(model.with_name("model.json"), sidecar)
    model.with_name("model.json").chmod(0o644)


def test_weights_in_a_file_of_their_own_are_loaded_where_they_are_listed(model: Path, weights: Path) -> None:
    open_engine(model, VERIFY).close()


def test_weights_that_were_swapped_are_refused(model: Path, weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[::-1])
    open_engine(model, Options()).close()
    assert "w.data is not the file that model.json lists: its SHA-256 differs" in refusal(model)


def test_weights_that_the_sidecar_does_not_list_are_refused(model: Path, weights: Path) -> None:
    vouch(model, {})
    assert "keeps weights in w.data, which model.json does not list" in refusal(model)


def test_weights_that_others_can_write_or_own_are_refused(model: Path, weights: Path) -> None:
    weights.chmod(0o666)
    assert f"others can write {weights}" in refusal(model)
    weights.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(weights, 12345, -1)
        assert "belongs to user 12345" in refusal(model)


def test_weights_that_are_missing_are_named(model: Path, weights: Path) -> None:
    weights.unlink()
    assert "w.data cannot be looked at" in refusal(model)
    weights.mkdir(mode=0o755)
    assert "w.data cannot be read" in refusal(model)


@pytest.mark.parametrize("location", ["../w.data", "sub/w.data", "/etc/passwd"])
def test_weights_elsewhere_are_refused(model: Path, weights: Path, location: str) -> None:
    graph = onnx.load(model, load_external_data=False)
    for entry in graph.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    model.write_bytes(graph.SerializeToString())
    vouch(model, {"external_data": [{"file": location, "sha256": "0" * 64}]})
    assert f"keeps weights in {location!r}" in refusal(model)


def test_weights_are_found_wherever_a_graph_has_tensors() -> None:
    """In constants, in branches, in sparse initializers and in functions, not among the initializers alone."""

    def tensor(location: str) -> TensorProto:
        made = TensorProto(name=location, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        made.external_data.add(key="location", value=location)
        return made

    constant = helper.make_node("Constant", [], ["c"], value=tensor("constant"))
    branch = helper.make_graph([constant], "then", [], [], [tensor("branch")])
    graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=branch)], "g", [], [], [tensor("top")])
    graph.sparse_initializer.add().values.CopyFrom(tensor("sparse"))
    whole = helper.make_model(graph)
    inner = helper.make_node("Constant", [], ["f"], value=tensor("function"))
    whole.functions.append(helper.make_function("own", "F", [], ["f"], [inner], whole.opset_import))
    assert external_files(whole) == ["branch", "constant", "function", "sparse", "top"]


def test_nothing_here_evaluates_or_unpickles_what_it_reads() -> None:
    """`eval`, `exec`, pickle and what is built on it run code out of data."""
    names = {"eval", "exec", "compile"}
    # Looks for what would keep a model.py from being imported; that nothing of it runs is tested with doctor.
    looks = {(ROOT / "cli" / "pinstream_cli" / "doctor" / "steps.py", "compile")}
    # What multiprocessing's pipes bring is unpickled; here they go between processes of the same benchmark alone.
    pipes = {ROOT / "cli" / "pinstream_cli" / "benchmark" / "steps.py"}
    modules = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle", "multiprocessing"}
    for top in ("backend", "client", "cli", "model_repository"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in names or (path, node.func.id) in looks, f"{path}:{node.lineno}"
                if isinstance(node, ast.Import) and path not in pipes:
                    assert not {alias.name.partition(".")[0] for alias in node.names} & modules, f"{path}:{node.lineno}"
                if isinstance(node, ast.ImportFrom):
                    assert (node.module or "").partition(".")[0] not in modules, f"{path}:{node.lineno}"
                if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
                    assert not getattr(node.value, "value", True), f"{path}:{node.value.lineno}"
