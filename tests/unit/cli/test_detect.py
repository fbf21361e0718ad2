"""`pinstream detect` as far as it goes without a server; tests/server/commands goes on with one."""

import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pinstream_cli.main import main
from tests.network import closed_port, silent_server


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["detect", *arguments])


def test_help_names_every_option() -> None:
    result = run("--help")
    assert result.exit_code == 0
    options = ("-u,", "-i,", "-m,", "-t,", "-v,", "--out", "--save", "--format", "--json", "--watch", "--restart")
    for option in (
        *options,
        "--conf",
        "--iou",
        "--max-det",
        "--in-flight",
        "-H,",
        "--api-key-file",
        "--tls-ca",
        "IMAGE...",
        "Examples:",
    ):
        assert option in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_server_not_there_is_one_line_and_exit_code_2(protocol: str, extra: list[str]) -> None:
    with closed_port() as netloc:
        result = run("a.jpg", "-i", protocol, "-u", netloc, *extra)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: no Triton server answers at {protocol}://{netloc}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_silent_server_ends_with_the_timeout_and_exit_code_2(protocol: str) -> None:
    started = time.monotonic()
    with silent_server() as netloc:
        result = run("a.jpg", "-u", f"{protocol}://{netloc}", "-t", "0.5")
    assert result.exit_code == 2
    assert time.monotonic() - started < 3
    assert "within 0.5 s" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument"),
        (["a.jpg", "--conf", "1.5"], "--conf"),
        (["a.jpg", "--iou", "-1"], "--iou"),
        (["a.jpg", "--max-det", "0"], "--max-det"),
        (["a.jpg", "-t", "0"], "--timeout"),
        (["a.jpg", "-i", "rest"], "--protocol"),
        (["a.jpg", "--conf", "nan"], "nan is no finite number"),
        (["a.jpg", "--iou", "NaN"], "NaN is no finite number"),
        (["a.jpg", "-t", "inf"], "inf is no finite number"),
        (["a.jpg", "--in-flight", "0"], "--in-flight"),
        (["a.jpg", "--format", "xml"], "--format"),
        (["a.jpg", "--save", "found.txt"], "must end in .jsonl, .csv, .json"),
        (["a.jpg", "--save", "no/such/found.csv"], "there is no directory no/such"),
        (["a.jpg", "--out", "annotated.png"], "must be a directory"),
        (["a.jpg", "--watch", "."], "--watch takes no other images"),
        (["--watch", "no/such"], "--watch no/such is not a directory"),
        (["no/such/*.jpg"], "no file matches 'no/such/*.jpg'"),
        (["-", "-"], "only once"),
        (["a.jpg", "-u", "http://h:1", "-i", "grpc"], "leave out one of the two"),
        (["a.jpg", "-u", "ftp://h"], "unknown protocol 'ftp'"),
        (["a.jpg", "-H", "no colon"], "is no header"),
        (["a.jpg", "--tls-key", "key.pem"], "--tls-cert and --tls-key belong together"),
    ],
)
def test_wrong_command_line_is_exit_code_2(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
def test_protocol_may_be_written_as_nvidias_clients_write_it(protocol: str) -> None:
    with closed_port() as netloc:
        result = run("a.jpg", "-i", protocol, "-u", netloc)
    assert f"no Triton server answers at {protocol.lower()}://{netloc}" in result.stderr


def test_directory_that_cannot_be_made_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("a.jpg", "--out", str(tmp_path / "file" / "out"))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: cannot make the directory")
    assert result.stderr.count("\n") == 1
