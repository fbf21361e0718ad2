"""What has to be true of this machine before tritonserver starts."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pinstream_cli.errors import CommandError
from pinstream_cli.triton.arguments import values_of
from pinstream_cli.triton.repository import is_read_by_shell

SHARED_MEMORY = Path("/dev/shm")
# Where the NVIDIA driver tells of itself.
DRIVER = Path("/proc/driver/nvidia")
MIB = 1 << 20
ADDRESSES = ("--http-address", "--grpc-address", "--metrics-address")
# Further doors of Triton's, on all addresses and without the keys.
DOORS = {
    "--allow-sagemaker": "Amazon SageMaker's",
    "--allow-vertex-ai": "Vertex AI's",
}
# Options that keep from the log what is looked for in it, and the values that leave it there, in small letters.
LOG_OPTIONS: Mapping[str, Sequence[str]] = {
    "--log-file": (),
    "--log-format": ("default",),
    "--log-info": ("true", "on", "1"),
    "--log-error": ("true", "on", "1"),
}
HOST_REMEDY = "give one of its addresses, 127.0.0.1 for this machine only, or 0.0.0.0 for all of them"


def check_ports(host: str, ports: Mapping[str, tuple[str, int]]) -> None:
    """See that this machine can listen on `host`, that the ports differ, and that every one is free.

    Args:
        host: Address to be listened on.
        ports: What it is for -> (option that sets it, port).

    Raises:
        CommandError: Naming the address or the port, what it is for and the option that changes it.
    """
    family, address = resolve(host)
    taken: dict[int, str] = {}
    for purpose, (option, port) in ports.items():
        if port in taken:
            raise CommandError(
                f"port {port} is given for {taken[port]} and for {purpose}; choose another with {option}"
            )
        taken[port] = purpose
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise CommandError(f"--host {host} is not an address of this machine; {HOST_REMEDY}") from None
                raise CommandError(
                    f"port {port} for {purpose} on {host} cannot be used: {error.strerror or error}; "
                    f"stop what listens there, or choose another with {option}"
                ) from None


def resolve(host: str) -> tuple[int, str]:
    """Address family and address of a name or an address.

    Raises:
        CommandError: Nothing knows that name.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        reason = str(error.strerror).lower()
        raise CommandError(f"--host {host} cannot be looked up: {reason}; {HOST_REMEDY}") from None
    return family, str(address[0])


def check_arguments(arguments: Sequence[str]) -> None:
    """See that what goes on to tritonserver are options and their values, nothing by itself, no addresses, and the log.

    Raises:
        CommandError: Naming the argument that belongs to no option, sets an address, opens another door, or takes from
            the log what is read in it.
    """
    for option in ADDRESSES:
        if values := values_of(option, arguments):
            # Who is let in depends on it.
            raise CommandError(
                f"{option} {values[0]} would listen where --host does not say so; give --host, or --public"
            )
    for option, whose in DOORS.items():
        if any(value.strip().lower() not in ("false", "0") for value in values_of(option, arguments)):
            raise CommandError(
                f"{option} would open {whose} address to everybody, on all addresses and without the keys; "
                "leave it out, or start tritonserver by itself"
            )
    for option in ("--model-store", "--model-repository"):
        # Triton takes these for the same, and the latter cut short.
        if values := values_of(option, arguments):
            raise CommandError(
                f"{values[0]} would be served without a look at it; name it with --model-repository, written out"
            )
    for name in values_of("--model-config-name", arguments):
        if "/" in name:
            raise CommandError(
                f"--model-config-name {name} leads away from the models' configs/, where nobody has looked at what it "
                "says; put the file there, and name it alone"
            )
    _check_log(arguments)
    for seconds in values_of("--repository-poll-secs", arguments):
        if not (seconds.isascii() and seconds.isdecimal()):
            raise CommandError(
                f"--repository-poll-secs {seconds!r} is no number of whole seconds; give one, such as 15"
            )
    before = ""
    for argument in arguments:
        # "--log-verbose 1" is an option and its value, "--log-verbose=1 1" has one word too many.
        takes_value = before.startswith("-") and "=" not in before
        if not argument.startswith("-") and not takes_value:
            meant = f"; did you mean --model {argument}?" if Path(argument).exists() else ""
            raise CommandError(
                f"{argument!r} belongs to no option; arguments of tritonserver look like --name=value{meant}"
            )
        before = argument


def _check_log(arguments: Sequence[str]) -> None:
    for option, harmless in LOG_OPTIONS.items():
        for value in values_of(option, arguments):
            if value.lower() not in harmless:
                raise CommandError(
                    f"{option}={value} would keep from serve what it reads in Triton's log, when models are ready and "
                    "when one is lost; leave it out, show the log with --verbose, and redirect serve's stderr"
                )


def gpu_count() -> int:
    """GPUs that Triton will find here."""
    try:
        from pinstream import cuda
    except ImportError:
        return sum(1 for _ in DRIVER.glob("gpus/*"))
    return cuda.device_count()


def check_temporary_files() -> Path:
    """See that what Triton reads can be put together among temporary files, and run there.

    Returns:
        Where they go.

    Raises:
        CommandError: Naming the directory, and the variable that names another one.
    """
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise CommandError(
            "there is no directory for temporary files that this user may write to; set TMPDIR to one"
        ) from None
    if is_read_by_shell(place):
        raise CommandError(
            f"temporary files go to {str(place)!r}, and Triton's Python backend gives its paths to a shell as they "
            "are; set TMPDIR to a directory whose path has ASCII letters, digits, and . _ - only"
        )
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        raise CommandError(
            f"{place} is mounted noexec, and Triton's Python backend is a library that is put there; "
            "set TMPDIR to a directory of another file system, or mount this one without noexec"
        )
    return place


def check_writable_shared_memory() -> None:
    """See that this user can put something into /dev/shm.

    Raises:
        CommandError: Saying what to do.
    """
    if not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        raise no_shared_memory("cannot be written to" if SHARED_MEMORY.is_dir() else "is not there")


def no_shared_memory(found: str) -> CommandError:
    """The error of a /dev/shm that cannot be used, for the reason found."""
    return CommandError(
        f"{SHARED_MEMORY} {found}, and Triton's Python backend moves every tensor through it; "
        "mount a tmpfs there that this user may write to"
    )


def free_shared_memory() -> int:
    """Bytes of /dev/shm that are free."""
    status = os.statvfs(SHARED_MEMORY)
    return status.f_bavail * status.f_frsize


def check_shared_memory(needed: int, arithmetic: str) -> None:
    """See that /dev/shm has room; Triton's Python backend moves every tensor through it, and hangs where it is full.

    Args:
        needed: Bytes.
        arithmetic: How `needed` came about, for the message.

    Raises:
        CommandError: Showing both sides and how to enlarge it.
    """
    free = free_shared_memory()
    if free < needed:
        raise CommandError(
            f"{SHARED_MEMORY} has {free / MIB:.0f} MiB free, and the models need {in_words(needed)} ({arithmetic}); "
            f"{remedy_of(needed)}"
        )


def in_words(needed: int) -> str:
    """So many bytes of /dev/shm; where no setting of this machine would give them, that."""
    memory = machine_memory()
    if needed > memory:
        return f"more than the {memory / MIB:.0f} MiB of memory of this machine"
    return f"{-(-needed // MIB)} MiB"


def remedy_of(needed: int) -> str:
    """What to do where so many bytes of /dev/shm are not free."""
    if needed > machine_memory():
        return "dims, max_batch_size or instance_group of a model are wrong, or too large for this machine: lower them"
    size = f"{-(-needed // MIB) * 2}m"
    return (
        f"enlarge it (docker run --shm-size={size}, or mount -o remount,size={size} {SHARED_MEMORY}), "
        "or lower max_batch_size"
    )


def machine_memory() -> int:
    """Bytes of memory of this machine, whatever a container may have of it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
