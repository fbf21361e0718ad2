"""docker-compose.yml gives the container what the service in it needs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from pinstream_cli.serve import serve
from pinstream_cli.triton.install import MALLOC, TritonInstall
from pinstream_cli.triton.server import LONGEST_STOP_S
from pinstream_cli.triton.shared_memory import needs
from tests import onnx_models

ROOT = Path(__file__).parents[2]
GPUS = 1  # GPU_COUNT's default
MIB = 1 << 20


def detector(path: Path) -> Path:
    """What a serving graph takes and gives: `images` UINT8 [b,640,640,3] -> `candidates` FP32 [b,300,6]."""
    slices = {"first": np.array([0]), "end": np.array([300]), "axis": np.array([1])}
    return onnx_models.save(
        path,
        [
            helper.make_node("Slice", ["images", *slices], ["rows"]),
            helper.make_node("Cast", ["rows"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["floats"], ["colours"], axes=[2], keepdims=0),
            helper.make_node("Concat", ["colours", "colours"], ["candidates"], axis=2),
        ],
        [("images", TensorProto.UINT8, ["b", 640, 640, 3])],
        [("candidates", TensorProto.FLOAT, ["b", 300, 6])],
        slices,
    )


def test_shared_memory_is_at_least_what_the_doctor_reckons(tmp_path: Path) -> None:
    # As it is mounted: the repository as it stands, and the built files as the detector's version 1.
    repository = shutil.copytree(ROOT / "model_repository", tmp_path / "models")
    detector(repository / "yolox_detector" / "1" / "model.onnx")
    models = needs([repository], GPUS)
    assert {model.name: model.batch for model in models} == dict.fromkeys(
        ("yolox_detector", "yolox_postprocess", "yolox_preprocess"), 32
    )
    assert not any(model.unknown for model in models if model.name != "yolox_postprocess")
    given = re.search(r"^    shm_size: (\d+)mb$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert given is not None
    needed = sum(model.needed for model in models)
    assert int(given[1]) * MIB >= needed, "\n".join(map(str, models))


def service(name: str) -> str:
    """A service's lines in docker-compose.yml."""
    found = re.search(rf"^  {name}:\n((?:    .*\n|\n)+)", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def items(name: str, key: str) -> list[str]:
    """The list that a service has under a key."""
    found = re.search(rf"^    {key}:\n((?:      .*\n)+)", service(name), re.MULTILINE)
    assert found is not None
    return re.findall(r'^      - "?(.+?)"?$', found[1], re.MULTILINE)


@pytest.mark.parametrize("name", ["triton", "proxy"])
def test_a_container_that_is_reached_may_do_no_more_than_it_has_to(name: str) -> None:
    lines = service(name)
    assert "    read_only: true\n" in lines
    assert "    security_opt:\n      - no-new-privileges:true\n" in lines
    assert "    cap_drop:\n      - ALL\n" in lines
    assert not re.search("privileged: true|cap_add|pid: host|network_mode: host|docker.sock", lines)


@pytest.mark.parametrize("name", ["triton", "proxy"])
def test_what_a_container_says_that_is_reached_has_a_limit(name: str) -> None:
    logging = re.search(
        r'^    logging:\n      driver: json-file\n      options:\n        max-size: (\d+)m\n        max-file: "(\d)"$',
        service(name),
        re.MULTILINE,
    )
    assert logging is not None
    assert int(logging[1]) * int(logging[2]) <= 100


def test_nobody_in_a_container_is_root() -> None:
    assert '    user: "1000:1000"\n' in service("proxy")
    assert "user:" not in service("triton"), "what the image says"
    users = re.findall(r"^USER (\S+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert users[-1:] == ["1000"]


def test_memory_and_processes_have_limits_that_the_environment_may_change() -> None:
    limits = dict(re.findall(r"^    (mem_limit|pids_limit|shm_size): (\S+)$", service("triton"), re.MULTILINE))
    memory = re.fullmatch(r"\$\{MEMORY_LIMIT:-(\d+)gb\}", limits["mem_limit"])
    assert memory is not None
    # /dev/shm counts, and a process of a model and its engine take a GiB or two.
    assert int(memory[1]) * 1024 >= int(limits["shm_size"].removesuffix("mb")) + 8 * 1024
    assert re.fullmatch(r"\$\{PIDS_LIMIT:-\d{4}\}", limits["pids_limit"])


def test_the_container_gets_the_packages_that_are_tested() -> None:
    pin = re.compile(r"^([a-z-]+)(?:\[[a-z,]+\])?==([^ ;\n]+)", re.MULTILINE)
    container = pin.findall((ROOT / "deploy" / "requirements.txt").read_text())
    assert len(container) >= 11
    tested: dict[str, set[str]] = {}
    for name, version in pin.findall((ROOT / "requirements.lock").read_text()):
        tested.setdefault(name, set()).add(version)
    assert not [f"{name}=={version}" for name, version in container if version not in tested.get(name, {version})]


def test_compose_and_dockerfile_have_one_tensorrt() -> None:
    dockerfile = re.search(r"^ARG TENSORRT_VERSION=(\S+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert dockerfile is not None
    assert f"TENSORRT_VERSION: ${{TENSORRT_VERSION:-{dockerfile[1]}}}\n" in service("triton")


def test_the_image_has_the_settings_of_malloc_that_serve_gives() -> None:
    found = re.findall(r"\b(MALLOC_\w+)=(\S+)", (ROOT / "deploy" / "Dockerfile").read_text())
    assert len(found) == len(MALLOC)
    assert dict(found) == MALLOC


def test_serve_leaves_a_setting_of_malloc_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MALLOC:
        monkeypatch.delenv(name, raising=False)
    triton = TritonInstall(Path("tritonserver"), Path("python"), Path("stub"))
    assert MALLOC.items() <= triton.environment().items()
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert {**MALLOC, "MALLOC_ARENA_MAX": "2"}.items() <= triton.environment().items()


def test_the_grace_is_longer_than_a_stop_takes() -> None:
    grace = re.search(r"^    stop_grace_period: (\d+)s$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert grace is not None
    assert int(grace[1]) >= LONGEST_STOP_S + 5


def test_the_proxy_reads_the_recipe_and_is_reached_where_it_listens() -> None:
    compose, recipe = (ROOT / "docker-compose.yml").read_text(), (ROOT / "deploy" / "nginx.conf").read_text()
    mounted = dict(re.findall(r"^      - \./(\S+):(/etc/pinstream/\S+):ro$", compose, re.MULTILINE))
    configuration = Path(mounted["deploy/nginx.conf"])
    assert f"-c, {configuration}, " in compose
    files = re.findall(r"^ *ssl_\w+ (tls/\S+);$", recipe, re.MULTILINE)
    assert len(files) == 3
    # nginx looks for them beside its configuration.
    assert {str((configuration.parent / file).parent) for file in files} == {mounted["tls"]}
    ports = re.findall(r"listen (\d+) ssl", recipe)
    assert len(ports) == 2
    assert all(f":{port}:{port}" in compose for port in ports)


def test_every_argument_of_the_containers_command_is_one_of_serves_own() -> None:
    # What serve does not know goes to tritonserver, which ends with it.
    command = re.search(r"^CMD (\[.*?\])$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE | re.DOTALL)
    assert command is not None
    program, subcommand, *arguments = json.loads(command[1].replace("\\\n", ""))
    assert (program, subcommand) == ("pinstream", "serve")
    known = {option for parameter in serve.params for option in parameter.opts}
    assert {argument.partition("=")[0] for argument in arguments} <= known
    given = serve.make_context("serve", list(arguments)).params
    assert given["restart"]
    assert given["triton_arguments"] == ()


def test_nobody_elsewhere_reaches_a_port_unless_the_environment_says_so() -> None:
    ports = items("triton", "ports")
    assert [port.rpartition(":")[2] for port in ports] == ["8000", "8001", "8002", "8443", "8444"]
    assert [port.rsplit(":", 2)[0] for port in ports] == ["127.0.0.1"] * 3 + ["${HTTPS_ADDRESS:-127.0.0.1}"] * 2


def test_of_what_is_mounted_only_the_cache_can_be_written() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "XDG_CACHE_HOME=/var/cache\n" in dockerfile
    assert '"--model-repository=/models"' in dockerfile
    assert items("triton", "volumes") == [
        "./model_repository:/models:ro",
        "./service:/models/yolox_detector/1:ro",
        "cache:/var/cache/pinstream",
    ]
    assert all(volume.endswith(":ro") for volume in items("proxy", "volumes"))


def test_the_container_gets_a_gpu() -> None:
    (devices,) = re.findall(
        r"^    deploy:\n      resources:\n        reservations:\n          devices:\n((?:            .*\n)+)",
        service("triton"),
        re.MULTILINE,
    )
    assert [line.strip() for line in devices.splitlines()] == [
        "- driver: nvidia",
        f"count: ${{GPU_COUNT:-{GPUS}}}",
        "capabilities: [gpu]",
    ]


def test_the_container_is_healthy_once_the_model_is_ready_and_comes_back_when_it_ends() -> None:
    lines = service("triton")
    found = re.search(r"^    healthcheck:\n      test: (\[.*\])$", lines, re.MULTILINE)
    assert found is not None
    program, *_, url = json.loads(found[1])
    assert program == "CMD"
    # The server's own readiness says nothing of a model that did not load.
    model = re.fullmatch("http://localhost:8000/v2/models/([a-z_]+)/ready", url)
    assert model is not None
    assert (ROOT / "model_repository" / model[1] / "config.pbtxt").is_file()
    assert '"--fail"' in found[1], "else curl succeeds with any answer"
    assert "    restart: unless-stopped\n" in lines


def test_perf_analyzer_is_beside_the_server_it_measures() -> None:
    triton, sdk = service("triton"), service("sdk")
    assert "    profiles: [sdk]\n" in sdk, "it comes only where it is asked for"
    # NVIDIA's tools come with the release that serves.
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    base = re.search(r"^ARG TRITON_TAG=(\S+)\nFROM (\S+):\$\{TRITON_TAG\}-py3$", dockerfile, re.MULTILINE)
    assert base is not None
    tag = f"${{TRITON_TAG:-{base[1]}}}"
    assert f"        TRITON_TAG: {tag}\n" in triton
    assert f"    image: {base[2]}:{tag}-py3-sdk\n" in sdk
    assert "    network_mode: service:triton\n" in sdk
    # Of one /dev/shm, for requests in shared memory.
    assert "    ipc: shareable\n" in triton
    assert "    ipc: service:triton\n" in sdk
    assert "    depends_on:\n      triton:\n        condition: service_healthy\n" in sdk
    # What it runs is tried in tests/server/test_references.py.
    assert items("sdk", "command")[:2] == ["sh", "-c"]
    assert "exec perf_analyzer -m yolox_detector " in sdk
    assert "      - ./deploy/one_picture.py:/one_picture.py:ro\n" in sdk
    assert (ROOT / "deploy" / "one_picture.py").is_file()
    assert (ROOT / "model_repository" / "yolox_detector" / "config.pbtxt").is_file()
