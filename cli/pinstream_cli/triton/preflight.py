"""What has to be true of this machine before tritonserver starts."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from pinstream_cli.errors import CommandError

SHARED_MEMORY = Path("/dev/shm")
# Every instance of a Python model starts with a region of this size, and it grows by as much (Triton's own defaults).
REGION_BYTES = 1 << 20


def check_ports(host: str, ports: Mapping[str, tuple[str, int]]) -> None:
    """See that every port is free.

    Args:
        host: Address to be listened on.
        ports: What it is for -> (option that sets it, port).

    Raises:
        CommandError: Naming the port, what it is for and the option that changes it.
    """
    for purpose, (option, port) in ports.items():
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise CommandError(
                    f"port {port} for {purpose} on {host} cannot be used: {error.strerror or error}; "
                    f"stop what listens there, or choose another with {option}"
                ) from None


def service_shared_memory(image: Sequence[int], max_batch_size: int, instances: int) -> int:
    """Bytes of /dev/shm that the YOLOX service needs.

    Args:
        image: Shape of one image, uint8 [H, W, 3].
        max_batch_size: Images of one batch.
        instances: Python model instances that hold such a batch.

    Returns:
        One full batch of images in each instance, and every instance's first region.
    """
    return instances * (math.prod(image) * max_batch_size + REGION_BYTES)


def check_shared_memory(needed: int, arithmetic: str) -> None:
    """See that /dev/shm has room; Triton's Python backend moves every tensor through it, and hangs where it is full.

    Args:
        needed: Bytes.
        arithmetic: How `needed` came about, for the message.

    Raises:
        CommandError: Showing both sides and how to enlarge it.
    """
    status = os.statvfs(SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        megabytes = -(-needed // (1 << 20))
        raise CommandError(
            f"{SHARED_MEMORY} has {free / (1 << 20):.0f} MiB free, and the service needs {megabytes} MiB "
            f"({arithmetic}); enlarge it (docker run --shm-size={megabytes * 2}m, or "
            f"mount -o remount,size={megabytes * 2}m {SHARED_MEMORY}), or lower max_batch_size"
        )
