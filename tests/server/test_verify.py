"""`pinstream serve --verify`: what nobody vouches for, or others can write, is not served."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from pinstream import sidecar as sidecars
from pinstream_cli.triton import find_triton
from tests import onnx_models
from tests.server.conftest import add_model
from tests.server.serve_process import Serve


def vouch(model: Path) -> None:
    """Write the sidecar that `pinstream build` would."""
    sidecar = sidecars.Sidecar("onnx", model.name, sidecars.file_sha256(model), (), ())
    sidecars.write(model.with_name(sidecars.FILE_NAME), sidecar)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model that a sidecar vouches for; its configuration says nothing of VERIFY."""
    vouch(onnx_models.classifier(add_model(tmp_path / "repository", "classifier")))
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o022)
    return tmp_path / "repository"


def swap(repository: Path) -> None:
    onnx_models.classifier(repository / "classifier" / "1" / "model.onnx", seed=1)


def add_python(repository: Path) -> None:
    code = repository / "code" / "1" / "model.py"
    code.parent.mkdir(parents=True)
    (repository / "code" / "config.pbtxt").write_text('backend: "python"\n')
    code.touch(mode=0o644)
    code.chmod(0o666)


def open_parent(repository: Path) -> None:
    repository.parent.chmod(0o777)


def lead_nowhere(repository: Path) -> None:
    (repository / "classifier" / "2").symlink_to("nowhere")


def name_elsewhere(repository: Path) -> None:
    """With all that vouches for it."""
    version, elsewhere = repository / "classifier" / "1", repository.parent / "elsewhere"
    shutil.move(version, elsewhere)
    version.mkdir(mode=0o755)
    with (version.parent / "config.pbtxt").open("a") as config:
        config.write(f'default_model_filename: "{elsewhere / "model.onnx"}"\n')


def link_elsewhere(repository: Path) -> None:
    file, elsewhere = repository / "classifier" / "1" / "model.onnx", repository.parent / "model.onnx"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def put(name: str) -> Callable[[Path], None]:
    """A file in the model's directory that Triton would run; what is in it could not be."""

    def harm(repository: Path) -> None:
        (repository / "classifier" / name).touch(mode=0o644)

    return harm


def name_runtime(repository: Path) -> None:
    with (repository / "classifier" / "config.pbtxt").open("a") as config:
        config.write('runtime: "libother.so"\n')


def name_agent(repository: Path) -> None:
    with (repository / "classifier" / "config.pbtxt").open("a") as config:
        config.write('model_repository_agents { agents { name: "../repository/classifier/1" } }\n')


def name_backend(repository: Path) -> None:
    (repository / "classifier" / "config.pbtxt").write_text('backend: "./pinstream"\n')


def bring_environment(repository: Path) -> None:
    activate = repository / "classifier" / "environment" / "bin" / "activate"
    activate.parent.mkdir(parents=True, mode=0o755)
    activate.write_text(f"touch {repository.parent / 'ran'}\n")
    for path in (activate, *activate.parents[:2]):
        path.chmod(path.stat().st_mode & ~0o022)
    parameter = 'key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/environment" }'
    with (repository / "classifier" / "config.pbtxt").open("a") as config:
        config.write(f"parameters {{ {parameter} }}\n")


def hide_backend(repository: Path) -> None:
    put("1/libtriton_pinstream.so")(repository)
    (repository / "classifier" / "config.pbtxt").write_bytes(b'backend: "pinstream"\n# \rbackend: "python"\n')


def write_no_utf8(repository: Path) -> None:
    put("1/libtriton_pinstream.so")(repository)
    with (repository / "classifier" / "config.pbtxt").open("a") as config:
        config.write('metric_tags { key: "a" value: "\\377" }\n')


def name_deeper(repository: Path) -> None:
    """Triton hands over the directory of the file that it is told of."""
    version = repository / "classifier" / "1"
    deeper = version / "sub" / "sub"
    deeper.mkdir(parents=True)
    for path in (version / "sub", deeper):
        path.chmod(0o755)
    for name in ("model.onnx", sidecars.FILE_NAME):
        (version / name).rename(deeper / name)
    with (repository / "classifier" / "config.pbtxt").open("a") as config:
        config.write('default_model_filename: "sub/model.onnx"\n')


FIRST = "is code that Triton runs before this backend can verify it"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (name_elsewhere, "which leads out of the version's directory; put the file into it"),
        (link_elsewhere, "leads to {dir}/model.onnx, outside of the model repository {dir}/repository"),
        (swap, "VERIFY is set, and {dir}/repository/classifier/1/model.onnx is not the file that model.json lists"),
        (add_python, "--verify is given, and others can write {dir}/repository/code/1/model.py"),
        (open_parent, "--verify is given, and others can write {dir}, which leads to {dir}/repository"),
        (lead_nowhere, "--verify is given, and {dir}/repository/classifier/2 cannot be looked at"),
        (
            put("1/libtriton_pinstream.so"),
            f"--verify is given, and {{dir}}/repository/classifier/1/libtriton_pinstream.so {FIRST}",
        ),
        (
            put("libtriton_python.so"),
            f"--verify is given, and {{dir}}/repository/classifier/libtriton_python.so {FIRST}",
        ),
        (
            put("triton_python_backend_stub"),
            f"--verify is given, and {{dir}}/repository/classifier/triton_python_backend_stub {FIRST}",
        ),
        (put("1/batchstrategy.so"), f"--verify is given, and {{dir}}/repository/classifier/1/batchstrategy.so {FIRST}"),
        (name_agent, 'has the repository agent "../repository/classifier/1", which leads out of Triton'),
        (name_backend, 'has backend: "./pinstream", which leads out of Triton'),
        (bring_environment, '{dir}/repository/classifier/environment", in the repository, which Triton runs first'),
        (hide_backend, f"--verify is given, and {{dir}}/repository/classifier/1/libtriton_pinstream.so {FIRST}"),
        (write_no_utf8, "--verify is given, and of {dir}/repository/classifier config.pbtxt cannot be parsed"),
        (name_deeper, "deeper than the version's directory; put the file into it"),
        (name_runtime, '--verify is given, and {dir}/repository/classifier/config.pbtxt has runtime: "libother.so"'),
    ],
)
def test_what_was_changed_or_could_be_is_not_served(
    start: Callable[..., Serve], repository: Path, tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    harm(repository)
    serve = start("--model-repository", repository, "--verify")
    assert serve.end() == 2
    assert words.format(dir=tmp_path) in serve.text
    assert "Traceback" not in serve.text
    assert not (tmp_path / "ran").exists()


def test_a_model_that_asks_for_it_itself_has_no_code_that_runs_before(
    start: Callable[..., Serve], repository: Path
) -> None:
    code = repository / "classifier" / "1" / "libtriton_pinstream.so"
    code.touch()
    with (repository / "classifier" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "VERIFY" value { string_value: "true" } }\n')
    serve = start("--model-repository", repository)
    assert serve.end() == 2
    assert f"VERIFY is set, and {code} {FIRST}" in serve.text


def test_of_what_was_built_nothing_is_taken_that_the_sidecar_does_not_list(
    start: Callable[..., Serve], tmp_path: Path
) -> None:
    built = tmp_path / "built"
    built.mkdir(mode=0o755)
    vouch(onnx_models.classifier(built / "model.onnx"))
    # Triton would try to load it, and not serve the model.
    (built / "libtriton_pinstream.so").touch(mode=0o644)
    for path in built.iterdir():
        path.chmod(0o644)
    start("--model", built, "--verify").wait_for("Stop with Ctrl-C")


def test_what_a_later_version_brings_along_is_told_when_it_has_run(
    start: Callable[..., Serve], repository: Path, tmp_path: Path
) -> None:
    """Nobody is asked before: Triton looks at the model's directory when it loads the version."""
    serve = start("--model-repository", repository, "--verify", "--model-control-mode=poll", "--repository-poll-secs=1")
    serve.wait_for("Stop with Ctrl-C")
    model, ran = repository / "classifier", tmp_path / "ran"
    stub = model / "triton_python_backend_stub"
    stub.write_text(f'#!/bin/sh\ntouch {ran}\nexec {find_triton().stub} "$@"\n')
    stub.chmod(0o755)
    shutil.copytree(model / "1", model / ".2")
    (model / ".2").rename(model / "2")
    serve.wait_for(f"VERIFY is set, and {stub} {FIRST}")
    assert ran.exists()


def test_a_batching_strategy_that_a_later_version_brings_along_is_not_run(
    start: Callable[..., Serve], repository: Path
) -> None:
    """Triton asks the backend to complete the configuration before it opens the library, which is none here."""
    serve = start("--model-repository", repository, "--verify", "--model-control-mode=poll", "--repository-poll-secs=1")
    serve.wait_for("Stop with Ctrl-C")
    model = repository / "classifier"
    shutil.copytree(model / "1", model / ".2")
    (model / ".2" / "batchstrategy.so").touch(mode=0o644)
    (model / ".2").rename(model / "2")
    serve.wait_for(f"VERIFY is set, and {model / '2' / 'batchstrategy.so'} {FIRST}")
    assert "file too short" not in serve.text


def test_a_version_that_comes_later_is_verified_as_well(start: Callable[..., Serve], repository: Path) -> None:
    polled = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    serve = start("--model-repository", repository, "--verify", *polled)
    serve.wait_for("Stop with Ctrl-C")
    later = repository / "classifier" / "2"
    shutil.copytree(repository / "classifier" / "1", later.with_name(".2"))
    later.with_name(".2").chmod(0o777)
    later.with_name(".2").rename(later)
    serve.wait_for(f"VERIFY is set, and others can write {later}")


def test_what_is_sent_with_a_load_takes_nothing_from_the_option(
    start: Callable[..., Serve], repository: Path, tmp_path: Path
) -> None:
    """What config.pbtxt says, VERIFY in it, is not read then; docs/security.md says so."""
    options = ("--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=5")
    serve = start("--model-repository", repository, "--verify", *options)
    serve.wait_for("Stop with Ctrl-C")
    other = onnx_models.classifier(tmp_path / "other" / "model.onnx", seed=1)
    vouch(other)
    sent = {f"file:1/{name}": other.with_name(name).read_bytes() for name in ("model.onnx", sidecars.FILE_NAME)}
    config = {"backend": "pinstream", "parameters": {"VERIFY": {"string_value": "false"}}}
    with grpc.InferenceServerClient(serve.grpc_url) as control:
        with pytest.raises(InferenceServerException, match="lies in no model repository of this server"):
            control.load_model("classifier", config=json.dumps(config), files=sent)
        swap(repository)
        with pytest.raises(InferenceServerException, match="is not the file that"):
            control.load_model("classifier", config=json.dumps(config))
        assert control.is_model_ready("classifier")


def test_files_that_are_sent_with_a_load_are_no_model_of_this_backend_without_the_option_either(
    start: Callable[..., Serve], repository: Path
) -> None:
    serve = start("--model-repository", repository, "--model-control-mode=explicit", "--load-model=*")
    serve.wait_for("Stop with Ctrl-C")
    sent = {"file:1/model.onnx": (repository / "classifier" / "1" / "model.onnx").read_bytes()}
    with grpc.InferenceServerClient(serve.grpc_url) as control:
        with pytest.raises(InferenceServerException, match="lies in no model repository of this server") as caught:
            control.load_model("sent", config=json.dumps({"backend": "pinstream"}), files=sent)
        assert f"expected it in {repository}: put them into a model repository" in caught.value.message()
        # A configuration alone takes the files that are there.
        control.load_model("classifier", config=json.dumps({"backend": "pinstream", "max_batch_size": 2}))
        assert control.get_model_config("classifier").config.max_batch_size == 2


def test_who_may_load_models_runs_code_whatever_the_option_says(
    start: Callable[..., Serve], repository: Path, tmp_path: Path
) -> None:
    """Triton asks this backend of its own models only, and late; docs/security.md says so."""
    options = ("--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=5")
    serve = start("--model-repository", repository, "--verify", *options)
    serve.wait_for("Stop with Ctrl-C")
    by_name, by_file = tmp_path / "by_name", tmp_path / "by_file"
    python, ours = json.dumps({"backend": "python"}), json.dumps({"backend": "pinstream"})
    code = f"open({str(by_file)!r}, 'w')\n".encode()
    with grpc.InferenceServerClient(serve.grpc_url) as control:
        with pytest.raises(InferenceServerException):
            control.load_model("code", config=python, files={"file:1/model.py": code})
        with pytest.raises(InferenceServerException):
            control.load_model(f"a$(touch {by_name})", config=ours, files={"file:1/model.onnx": b"none"})
    assert by_file.exists()
    assert by_name.exists()
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    assert "### The admin key runs code" in page


def test_an_older_version_that_is_vouched_for_is_served_instead(start: Callable[..., Serve], repository: Path) -> None:
    shutil.copytree(repository / "classifier" / "1", repository / "classifier" / "2")
    onnx_models.classifier(repository / "classifier" / "2" / "model.onnx", seed=1)
    # What serve puts together to leave the newer one out is nobody else's, whatever the umask.
    old = os.umask(0)
    try:
        serve = start("--model-repository", repository, "--verify", "--restart")
    finally:
        os.umask(old)
    serve.wait_for("Stop with Ctrl-C")
    assert "NOT SERVED version 2 of model 'classifier', of which another one is served" in serve.text
    assert "VERIFY is set" in serve.text


def test_a_file_by_itself_has_nobody_to_vouch_for_it(start: Callable[..., Serve], tmp_path: Path) -> None:
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    model.chmod(0o644)
    serve = start("--model", model, "--verify")
    assert serve.end() == 2
    assert f"{model} is a file by itself" in serve.text
