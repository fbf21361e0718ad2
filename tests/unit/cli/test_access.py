"""Who is let in, as it stands on tritonserver's command line and in the lines that begin with PUBLIC."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pinstream_cli.errors import CommandError
from pinstream_cli.triton.access import Access, Tls, exposures, read_key, read_keys, read_tls
from pinstream_cli.triton.arguments import control_mode
from pinstream_cli.triton.preflight import check_arguments
from tests import certificates

KEY, OTHER = "an-api-key-for-the-tests", "an-admin-key-for-the-tests"
GRPC, HTTP = "--grpc-restricted-protocol", "--http-restricted-api"
EVERYWHERE = "0.0.0.0"


def asked(access: Access, *given: str) -> dict[tuple[str, str], str]:
    """The header that each group of calls asks for: (option, group) -> name, of the user's restrictions as well."""
    headers: dict[tuple[str, str], str] = {}
    for argument in (*access.arguments(given), *given):
        option, _, rule = argument.partition("=")
        groups, _, header = rule.partition(":")
        for group in groups.split(","):
            assert (option, group) not in headers, "Triton refuses a group that is restricted twice"
            headers[option, group] = header.partition("=")[0]
    return headers


@pytest.mark.parametrize("option", [GRPC, HTTP])
def test_a_restriction_of_the_users_own_leaves_all_others_in_place(option: str) -> None:
    own = f"{option}=health:x=y"
    headers = asked(Access(api_key=KEY), own)
    assert headers.pop((option, "health")) == "x"
    assert headers == asked(Access(api_key=KEY))
    assert headers[option, "inference"] == "pinstream-key"
    assert headers[option, "model-repository"] == headers[option, "shared-memory"] == "pinstream-closed"


def test_what_is_closed_may_be_opened_with_a_header_of_ones_own() -> None:
    headers = asked(Access(api_key=KEY), f"{GRPC}=shared-memory,logging:mine=secret")
    assert headers[GRPC, "shared-memory"] == headers[GRPC, "logging"] == "mine"
    assert headers[HTTP, "shared-memory"] == headers[GRPC, "trace"] == "pinstream-closed"


@pytest.mark.parametrize(
    ("access", "given", "words"),
    [
        (
            Access(api_key=KEY),
            [f"{GRPC}=health,inference:x=y"],
            f"{GRPC} restricts inference, for which --api-key-file",
        ),
        (Access(api_key=KEY), [GRPC, "inference:x=y"], "restricts inference"),
        (Access(api_key=KEY), ["--http-restr=metadata, statistics:x=y"], f"{HTTP} restricts metadata, statistics, "),
        (Access(api_key=KEY, client_shm=True), [f"{HTTP}=shared-memory:x=y"], "--api-key-file"),
        (Access(admin_key=OTHER), [f"{GRPC}=model-repository:x=y"], "--admin-key-file"),
    ],
)
def test_a_key_and_a_restriction_of_the_same_calls_are_refused(access: Access, given: list[str], words: str) -> None:
    with pytest.raises(CommandError, match="leave out one of the two") as caught:
        access.arguments(given)
    assert words in str(caught.value)
    with pytest.raises(CommandError, match="leave out one of the two"):
        exposures(EVERYWHERE, access, given)


@pytest.mark.parametrize(
    ("access", "given", "exposed"),
    [
        (Access(), [], {"infer"}),
        (Access(api_key=KEY), [], set()),
        (Access(api_key=KEY), [f"{GRPC}=health:x=y"], set()),
        (Access(control=True), [], {"infer", "load"}),
        (Access(control=True, admin_key=OTHER), [], {"infer"}),
        (Access(control=True, api_key=KEY, client_shm=True), [], {"load"}),
        (Access(client_shm=True), [], {"infer", "have"}),
        # One of the two ways in is enough.
        (Access(control=True), [f"{GRPC}=inference,model-repository:x=y"], {"infer", "load"}),
        (Access(control=True), [f"{o}=inference,model-repository:x=y" for o in (GRPC, HTTP)], set()),
    ],
)
def test_what_everybody_can_do_is_said(access: Access, given: list[str], exposed: set[str]) -> None:
    lines = exposures(EVERYWHERE, access, given)
    assert {line.split()[2].strip(",") for line in lines if line.startswith("everybody can")} == exposed | {"read"}
    assert exposures("127.0.0.1", access, given) == []


def test_with_tls_only_grpc_is_reached_from_elsewhere() -> None:
    tls = Tls(Path("cert.pem"), Path("key.pem"))
    assert len(exposures(EVERYWHERE, Access(tls), [])) == 1
    assert exposures(EVERYWHERE, Access(tls), [f"{GRPC}=inference:x=y"]) == []
    mutual = Tls(Path("cert.pem"), Path("key.pem"), Path("ca.pem"))
    assert exposures(EVERYWHERE, Access(mutual, control=True), []) == []


@pytest.mark.parametrize("given", [["--http-address=0.0.0.0"], ["--grpc-a", "::"], ["--metrics-address", "0.0.0.0"]])
def test_an_address_behind_the_back_of_host_is_refused(given: list[str]) -> None:
    with pytest.raises(CommandError, match="give --host, or --public"):
        check_arguments(given)
    check_arguments(["--log-verbose=1", "--http-thread-count", "4", "--metrics-config=counter_latencies=true"])


@pytest.mark.parametrize("given", [["--model-store=/models"], ["--model-s", "/models"], ["--model-repo=/models"]])
def test_a_repository_behind_the_back_of_serve_is_refused(given: list[str]) -> None:
    with pytest.raises(CommandError, match="/models would be served without a look at it; name it with --model-repo"):
        check_arguments(given)


@pytest.mark.parametrize(
    "given",
    [
        ["--log-file=F"],
        ["--log-fi", "F"],
        ["--log-file="],
        ["--log-format=ISO8601"],
        ["--log-format", "ISO8601"],
        ["--log-info=false"],
        ["--log-info", "False"],
        ["--log-i=0"],
        ["--log-error=off"],
        ["--log-error=true", "--log-e", "FALSE"],
    ],
)
def test_what_serve_reads_in_the_log_is_not_taken_from_it(given: list[str]) -> None:
    with pytest.raises(CommandError, match=r"--log-\w+=\w* would keep from serve what it reads .*; leave it out, show"):
        check_arguments(given)
    harmless = ["--log-info=TRUE", "--log-error", "on", "--log-err=1", "--log-format=default", "--log-warning=false"]
    check_arguments([*harmless, "--log-verbose=1"])


@pytest.mark.parametrize("name", ["../fast", "sub/fast", "/fast"])
def test_a_configuration_is_chosen_of_those_that_are_looked_at(name: str) -> None:
    for given in ([f"--model-config-name={name}"], ["--model-config", name]):
        with pytest.raises(CommandError, match=f"--model-config-name {name} leads away from the models' configs/"):
            check_arguments(given)
    check_arguments(["--model-config-name=fast"])


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602])
def test_a_key_is_its_owners_alone(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o600)
    assert read_key("--api-key-file", file) == KEY
    file.chmod(mode)
    with pytest.raises(CommandError, match=f"can be read by others \\(mode {mode:o}\\); chmod 600 {file}"):
        read_key("--api-key-file", file)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have a file of root's")
def test_a_key_that_root_keeps_for_this_user_may_be_read_by_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    for mode in (0o640, 0o440):
        file.chmod(mode)
        assert read_key("--api-key-file", file) == KEY
    for mode in (0o660, 0o644):
        file.chmod(mode)
        with pytest.raises(CommandError, match="can be read by others"):
            read_key("--api-key-file", file)


def test_a_pipe_that_nobody_writes_into_is_no_key_and_a_descriptor_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(CommandError, match=f"--api-key-file {pipe} cannot be read: is no regular file"):
        read_key("--api-key-file", pipe)
    # What a shell makes of `--api-key-file <(vault read ...)`.
    reader, writer = os.pipe()
    os.write(writer, f"{KEY}\n".encode())
    os.close(writer)
    assert read_key("--api-key-file", Path(f"/dev/fd/{reader}")) == KEY
    os.close(reader)


def test_who_may_infer_has_not_the_key_of_those_who_load_models(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("api", "admin", "same")]
    for file, key in zip(files, (KEY, OTHER, f"{KEY} \n"), strict=True):
        file.write_text(key)
        file.chmod(0o600)
    api, admin, same = files
    assert read_keys(api, admin) == (KEY, OTHER)
    assert read_keys(None, None) == ("", "")
    with pytest.raises(CommandError, match=f"--api-key-file {api} and --admin-key-file {same} hold the same key"):
        read_keys(api, same)


def test_a_certificate_of_another_day_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = certificates.authority(tmp_path, "ca")
    ours = certificates.signed(tmp_path, "server", ca)
    assert read_tls(ours.cert, ours.key, ca.cert) == Tls(ours.cert, ours.key, ca.cert)
    # It is good for two days.
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3 * 86400)
    with pytest.raises(CommandError, match=rf"--tls-cert {ours.cert} has expired \(\w+ +\d+ .* GMT\); renew it"):
        read_tls(ours.cert, ours.key, None)
    monkeypatch.setattr(time, "time", lambda: now - 3 * 86400)
    with pytest.raises(CommandError, match=rf"--tls-cert {ours.cert} is not valid before \w+ +\d+ .* GMT"):
        read_tls(ours.cert, ours.key, None)


def test_of_the_authorities_that_clients_may_have_one_has_to_be_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = certificates.authority(tmp_path, "ours", days=9)
    short, long = certificates.authority(tmp_path, "short"), certificates.authority(tmp_path, "long", days=9)
    both = tmp_path / "both.pem"
    both.write_bytes(short.cert.read_bytes() + long.cert.read_bytes())
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3 * 86400)
    assert read_tls(ours.cert, ours.key, both) == Tls(ours.cert, ours.key, both)
    with pytest.raises(CommandError, match=rf"--tls-client-ca {short.cert} has expired"):
        read_tls(ours.cert, ours.key, short.cert)


def test_what_is_no_number_of_seconds_between_polls_is_refused_and_the_mode_is_known_in_any_letters() -> None:
    """As Triton takes them: 15s for 15, and POLL for poll."""
    for wrong in ("15s", "-1", "", "1.5"):
        with pytest.raises(CommandError, match=r"--repository-poll-secs .* is no number of whole seconds"):
            check_arguments([f"--repository-poll-secs={wrong}"])
    check_arguments(["--repository-poll-secs", "15"])
    assert [control_mode(given) for given in ([], ["--model-control-mode=POLL"])] == ["none", "poll"]
