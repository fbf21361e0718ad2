"""`pinstream serve` as a user runs it: a process of its own, its messages, its exit codes, what it leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from pinstream_cli.triton import Endpoints
from pinstream_cli.triton.server import METRICS_INTERVAL_MS
from pinstream_client import Detector
from tests import onnx_models
from tests.listening import addresses
from tests.server.conftest import ONE_LINE, add_model
from tests.server.serve_process import Serve, left_behind, ready
from tests.server.test_leftovers import tritonserver
from tests.yolox_exports import Export

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_says_what_is_ready_and_where_and_stops_clean(
    start: Callable[..., Serve], classifier: Path, stop: signal.Signals, tmp_path: Path
) -> None:
    if signal.getsignal(stop) == signal.SIG_IGN:
        pytest.skip(f"{stop.name} is ignored here, as under nohup, and stays so in what is started")
    serve = start("--model", classifier, env={"TMPDIR": str(tmp_path)})
    serve.wait_for("Stop with Ctrl-C")
    assert "classifier" in serve.text
    assert "READY" in serve.text
    assert f"127.0.0.1:{serve.endpoints.grpc}" in serve.text
    assert ready(serve.endpoints, "/v2/models/classifier/ready")
    assert left_behind(serve), "the regions in /dev/shm carry our mark, or nothing below shows anything"
    serve.process.send_signal(stop)
    assert serve.end() == 0
    assert not left_behind(serve)
    assert not list(tmp_path.glob("pinstream-*"))
    assert not ready(serve.endpoints)


def test_a_second_ctrl_c_ends_it_at_once_and_as_clean(start: Callable[..., Serve], tmp_path: Path) -> None:
    serve = start("--model", Export().save(tmp_path / "small.onnx"))
    serve.wait_for("Try:  pinstream detect")
    assert left_behind(serve)
    serve.process.send_signal(signal.SIGINT)
    threading.Event().wait(0.3)
    serve.process.send_signal(signal.SIGINT)
    assert serve.end() == 0
    assert not left_behind(serve)
    assert not ready(serve.endpoints)


def test_it_listens_on_loopback_only(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier)
    serve.wait_for("Stop with Ctrl-C")
    for port in (serve.endpoints.http, serve.endpoints.grpc, serve.endpoints.metrics):
        assert addresses(port) == {"127.0.0.1"}


def test_a_yolox_export_becomes_the_service_at_once(start: Callable[..., Serve], tmp_path: Path) -> None:
    serve = start("--model", Export().save(tmp_path / "small.onnx"))
    serve.wait_for("Stop with Ctrl-C")
    for model in ("yolox", "yolox_preprocess", "yolox_detector", "yolox_postprocess"):
        assert ready(serve.endpoints, f"/v2/models/{model}/ready"), model


def test_the_rest_of_the_command_line_goes_to_tritonserver(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier, "--model-control-mode=explicit", "--load-model=*")
    serve.wait_for("Stop with Ctrl-C")
    command = Path(f"/proc/{tritonserver(serve)}/cmdline").read_text().split("\0")
    # Ours, without which a stop takes a second more, comes before what was given.
    assert command.index(f"--metrics-interval-ms={METRICS_INTERVAL_MS}") < command.index("--load-model=*")
    request = urllib.request.Request(
        f"http://{serve.endpoints.http_url}/v2/repository/models/classifier/unload", method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def test_a_tritonserver_can_be_named(start: Callable[..., Serve], classifier: Path) -> None:
    from pinstream_cli.triton import find_triton

    serve = start("--model", classifier, "--tritonserver", find_triton().binary)
    serve.wait_for("Stop with Ctrl-C")


def test_the_source_tree_stays_clean(start: Callable[..., Serve], tmp_path: Path) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a git checkout")

    def files() -> set[Path]:
        watched = [ROOT / "model_repository", ROOT / "backend" / "pinstream"]
        return {p for top in watched for p in top.rglob("*") if p.is_file() and "__pycache__" not in p.parts}

    before = files()
    serve = start("--model", Export().save(tmp_path / "small.onnx"))
    serve.wait_for("Stop with Ctrl-C")
    assert files() == before
    assert not list((ROOT / "model_repository").rglob("*.onnx"))


def test_a_killed_supervisor_takes_the_server_with_it(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier)
    serve.wait_for("Stop with Ctrl-C")
    serve.process.kill()
    serve.process.wait(10)
    deadline = time.monotonic() + 30
    # Nobody is there to remove the mark that they are nobody's.
    while ready(serve.endpoints) or any(not path.name.endswith("_lock") for path in left_behind(serve)):
        assert time.monotonic() < deadline, "the server outlived its supervisor"
        threading.Event().wait(0.1)


def failing(start: Callable[..., Serve], *arguments: str | Path, endpoints: Endpoints | None = None) -> str:
    """The one error line of a serve that cannot start; its exit code is 2 and it leaves nothing behind."""
    serve = start(*arguments, endpoints=endpoints)
    assert serve.end() == 2
    assert not left_behind(serve)
    assert "Traceback" not in serve.text
    errors = [line for line in serve.lines if line.startswith("error: ")]
    assert len(errors) == 1, serve.text
    return errors[0]


def test_a_missing_model(start: Callable[..., Serve], tmp_path: Path) -> None:
    assert "does not exist" in failing(start, "--model", tmp_path / "none.onnx")


def test_an_empty_model(start: Callable[..., Serve], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    assert "empty" in failing(start, "--model", tmp_path / "model.onnx")


def test_a_file_that_is_no_model(start: Callable[..., Serve], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xd8\xff\xe0 a picture")
    assert "not an ONNX model" in failing(start, "--model", tmp_path / "model.onnx")


def test_a_directory_that_nothing_was_built_in(start: Callable[..., Serve], tmp_path: Path) -> None:
    assert "pinstream build" in failing(start, "--model", tmp_path)


def test_nothing_to_serve(start: Callable[..., Serve]) -> None:
    assert "--model" in failing(start)


def test_a_misspelt_option(start: Callable[..., Serve], classifier: Path) -> None:
    assert "--modle went to tritonserver; did you mean --model?" in failing(start, "--modle", classifier)


def test_a_model_without_its_option(start: Callable[..., Serve], classifier: Path) -> None:
    assert f"did you mean --model {classifier}?" in failing(start, classifier)


def test_a_picture_for_a_model(start: Callable[..., Serve], tmp_path: Path) -> None:
    (tmp_path / "dog.jpg").write_bytes(b"\xff\xd8\xff\xe0 a picture")
    assert "neither an .onnx nor a .plan file" in failing(start, "--model", tmp_path / "dog.jpg")


def test_an_option_that_tritonserver_does_not_know(start: Callable[..., Serve], classifier: Path) -> None:
    assert "unrecognized option '--nonsense=1'" in failing(start, "--model", classifier, "--nonsense=1")


def test_a_port_that_is_none(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier, endpoints=Endpoints("127.0.0.1", 70000, 1, 2))
    assert serve.end() == 2
    assert "70000 is not in the range" in serve.text


def test_a_port_in_use(start: Callable[..., Serve], classifier: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = Endpoints.free()
        endpoints = Endpoints("127.0.0.1", taken.getsockname()[1], free.grpc, free.metrics)
        line = failing(start, "--model", classifier, endpoints=endpoints)
    assert f"port {endpoints.http} for HTTP" in line
    assert "--http-port" in line


def test_a_tritonserver_that_is_none(start: Callable[..., Serve], classifier: Path, tmp_path: Path) -> None:
    assert "not an executable" in failing(start, "--model", classifier, "--tritonserver", tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ONE_LINE + 'parameters { key: "BUCKET" value { string_value: "1" } }', "did you mean BUCKETS"),
        (ONE_LINE + 'input { name: "pixels" data_type: TYPE_INT32 dims: [3, 8, 8] }', "the model has TYPE_FP32"),
        (
            ONE_LINE + 'output { name: "classes" data_type: TYPE_FP32 dims: [10] }',
            "outputs are probabilities",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_shows_both_sides(
    start: Callable[..., Serve], tmp_path: Path, config: str, message: str
) -> None:
    onnx_models.classifier(add_model(tmp_path, "classifier", config))
    line = failing(start, "--model-repository", tmp_path)
    assert "'classifier'" in line
    assert message in line


def test_a_configuration_that_cannot_be_read_is_told_with_its_place(
    start: Callable[..., Serve], tmp_path: Path
) -> None:
    onnx_models.classifier(add_model(tmp_path, "classifier", 'backend: "pinstream'))
    line = failing(start, "--model-repository", tmp_path)
    assert "1:20: Unexpected end of string" in line
    assert f"failed to read text proto from {tmp_path}/classifier/config.pbtxt" in line


def test_a_model_without_a_version(start: Callable[..., Serve], tmp_path: Path) -> None:
    add_model(tmp_path, "classifier").parent.rmdir()
    assert "'classifier': at least one version must be available" in failing(start, "--model-repository", tmp_path)


def test_a_model_file_missing_from_a_repository(start: Callable[..., Serve], tmp_path: Path) -> None:
    add_model(tmp_path, "classifier")
    line = failing(start, "--model-repository", tmp_path)
    assert "no model.plan or model.onnx" in line
    assert "\\n" not in line


def test_too_small_a_dev_shm_is_told_before_the_start(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, to mount a small /dev/shm of its own")
    export = Export(size=(640, 640)).save(tmp_path / "large.onnx")
    serve = f"{sys.executable} -m pinstream_cli serve --model {export}"
    script = f"mount -t tmpfs -o size=32m tmpfs /dev/shm && exec {serve}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    if "unshare" in done.stderr or "mount" in done.stderr.partition("error:")[0]:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 2
    assert "/dev/shm has 32 MiB free" in done.stderr
    assert "--shm-size" in done.stderr
    # 640 x 640 x 3 bytes are 1.2 MiB; the shape of `images` is known through the ensemble alone.
    assert "yolox_preprocess: 2 x (32 x (" in done.stderr
    assert "images 1.2 MiB" in done.stderr


def test_a_serving_graph_may_have_any_name(start: Callable[..., Serve], tmp_path: Path) -> None:
    from pinstream_cli.yolox_service import build_service

    build_service(Export().save(tmp_path / "small.onnx"), tmp_path / "built")
    (tmp_path / "built" / "model.onnx").rename(tmp_path / "built" / "renamed.onnx")
    serve = start("--model", tmp_path / "built" / "renamed.onnx")
    serve.wait_for("Stop with Ctrl-C")
    assert ready(serve.endpoints, "/v2/models/yolox/ready")


@pytest.mark.parametrize("name", ["a/b", "", ".hidden"])
def test_a_name_that_is_no_models_name(start: Callable[..., Serve], classifier: Path, name: str) -> None:
    assert "cannot be a model's name" in failing(start, "--model", classifier, f"--name={name}")


def test_a_model_that_fails_to_load_is_told_once(start: Callable[..., Serve], tmp_path: Path) -> None:
    add_model(tmp_path, "classifier")
    serve = start("--model-repository", tmp_path)
    assert serve.end() == 2
    assert serve.text.count("no model.plan or model.onnx") == 1


def test_an_empty_repository(start: Callable[..., Serve], tmp_path: Path) -> None:
    assert "holds no models" in failing(start, "--model-repository", tmp_path)


def test_a_model_where_its_repository_belongs(start: Callable[..., Serve], tmp_path: Path) -> None:
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "config.pbtxt").write_text('backend: "pinstream"')
    for option in ("--model-repository", "--model"):
        line = failing(start, option, tmp_path / "classifier")
        assert line.endswith(f"name its parent, --model-repository {tmp_path}\n")
        assert "is a model" in line


def test_a_repository_where_a_model_belongs(start: Callable[..., Serve], tmp_path: Path) -> None:
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "config.pbtxt").write_text('backend: "pinstream"')
    line = failing(start, "--model", tmp_path)
    assert line.endswith(f"is a model repository; name it with --model-repository {tmp_path}\n")


def test_a_repository_that_is_filled_later(start: Callable[..., Serve], tmp_path: Path) -> None:
    serve = start("--model-repository", tmp_path, "--model-control-mode=explicit")
    serve.wait_for("Stop with Ctrl-C")


@pytest.mark.parametrize("host", ["nosuch.host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_this_machine(start: Callable[..., Serve], classifier: Path, host: str) -> None:
    line = failing(start, "--model", classifier, "--host", host)
    assert f"--host {host}" in line
    assert "give one of its addresses" in line


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Export().save(tmp_path_factory.mktemp("export") / "small.onnx")


def test_an_export_has_the_names_that_it_is_served_with(
    start: Callable[..., Serve], export: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("pear\nquince\nplum\n")
    serve = start("--model", export, "--labels", tmp_path / "names.txt")
    serve.wait_for("Stop with Ctrl-C")
    assert "hint" not in serve.text
    with Detector(f"grpc://{serve.endpoints.grpc_url}") as detector:
        assert detector.class_names() == ("pear", "quince", "plum")


def test_an_export_whose_classes_nobody_named_says_how_to_name_them(start: Callable[..., Serve], export: Path) -> None:
    serve = start("--model", export)
    serve.wait_for("Stop with Ctrl-C")
    assert "hint: class names are class_0 to class_2; give the real ones with --labels FILE" in serve.text


def test_labels_that_are_too_few(start: Callable[..., Serve], export: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("pear\n")
    assert "1 labels, but the model has 3 classes" in failing(
        start, "--model", export, "--labels", tmp_path / "names.txt"
    )


def test_labels_for_what_is_no_export(start: Callable[..., Serve], classifier: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("pear\n")
    assert f"--model {classifier} is not;" in failing(start, "--model", classifier, "--labels", names)


@pytest.mark.parametrize("option", ["--name", "--labels"])
def test_what_belongs_to_a_model_without_one(start: Callable[..., Serve], tmp_path: Path, option: str) -> None:
    onnx_models.classifier(add_model(tmp_path, "classifier"))
    said = failing(start, "--model-repository", tmp_path, option, "pear")
    assert f"error: {option} " in said
    assert "pear belongs to --model" in said


def test_the_same_port_twice(start: Callable[..., Serve], classifier: Path) -> None:
    free = Endpoints.free()
    line = failing(start, "--model", classifier, endpoints=Endpoints("127.0.0.1", free.http, free.http, free.metrics))
    assert f"port {free.http} is given for HTTP and for gRPC; choose another with --grpc-port" in line


@pytest.mark.parametrize("arguments", [["stray"], ["--log-verbose=1", "stray"], ["--log-verbose", "1", "stray"]])
def test_an_argument_that_belongs_to_no_option(
    start: Callable[..., Serve], classifier: Path, arguments: list[str]
) -> None:
    assert "'stray' belongs to no option" in failing(start, "--model", classifier, *arguments)


def test_a_host_by_its_name(start: Callable[..., Serve], classifier: Path) -> None:
    serve = start("--model", classifier, "--host", "localhost")
    serve.wait_for("Stop with Ctrl-C")
    ports = serve.endpoints
    assert f"localhost:{ports.grpc}" in serve.text
    for url in (f"http://localhost:{ports.http}/v2/health/ready", f"http://localhost:{ports.metrics}/metrics"):
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.status == 200
    with grpc.InferenceServerClient(f"localhost:{ports.grpc}") as client:
        assert client.is_server_ready()


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6(start: Callable[..., Serve], classifier: Path, host: str) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    serve = start("--model", classifier, "--host", host)
    serve.wait_for("Stop with Ctrl-C")
    ports = serve.endpoints
    for line in (f"gRPC     [::1]:{ports.grpc}", f"http://[::1]:{ports.http}", f"http://[::1]:{ports.metrics}/metrics"):
        assert line in serve.text
    for url in (f"http://[::1]:{ports.http}/v2/health/ready", f"http://[::1]:{ports.metrics}/metrics"):
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.status == 200
    with grpc.InferenceServerClient(f"[::1]:{ports.grpc}") as client:
        assert client.is_server_ready()
