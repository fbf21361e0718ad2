"""Starts a real tritonserver on this machine: find it, assemble what it reads, check the machine, run it."""

from pinstream_cli.triton.access import Access
from pinstream_cli.triton.assemble import RunDirectory
from pinstream_cli.triton.endpoints import Endpoints
from pinstream_cli.triton.install import TritonInstall, find_triton
from pinstream_cli.triton.preflight import check_arguments, check_ports, check_shared_memory
from pinstream_cli.triton.server import TritonServer

__all__ = [
    "Access",
    "Endpoints",
    "RunDirectory",
    "TritonInstall",
    "TritonServer",
    "check_arguments",
    "check_ports",
    "check_shared_memory",
    "find_triton",
]
