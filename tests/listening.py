"""Who listens where on this machine, as /proc shows it."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LISTEN = "0A"


class Listener(NamedTuple):
    """A TCP socket that waits for connections: its address and port, and the number that its owner knows it by."""

    address: str
    port: int
    inode: str


def addresses(port: int) -> set[str]:
    """The addresses on which somebody listens at a port; an IPv4 address of IPv6 is the former."""
    found = {listener.address for listener in _listeners() if listener.port == port}
    assert found, f"nobody listens on port {port}"
    return found


def ports_of(pid: int) -> set[int]:
    """The ports on which a process listens."""
    own = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            own.add(str(entry.readlink()))
    return {listener.port for listener in _listeners() if f"socket:[{listener.inode}]" in own}


def _listeners() -> Iterator[Listener]:
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == LISTEN:
                address, _, port = fields[1].partition(":")
                yield Listener(_address(address), int(port, 16), fields[9])


def _address(words: str) -> str:
    """An address from words of 32 bits in the order of this machine."""
    packed = b"".join(bytes.fromhex(words[start : start + 8])[::-1] for start in range(0, len(words), 8))
    address = ipaddress.ip_address(packed)
    return str(getattr(address, "ipv4_mapped", None) or address)
