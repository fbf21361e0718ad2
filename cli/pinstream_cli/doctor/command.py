"""The command: runs the checks, shows them as a table or as JSON, and ends with a code that scripts can ask for."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from pinstream_cli.console import Console
from pinstream_cli.doctor.backends import Triton
from pinstream_cli.doctor.check import Check
from pinstream_cli.doctor.gpu import check_gpus
from pinstream_cli.doctor.machine import check_machine
from pinstream_cli.doctor.model_files import onnx_files
from pinstream_cli.doctor.opened import OnnxFiles
from pinstream_cli.doctor.remains import check_leftovers
from pinstream_cli.doctor.repository import check_repositories
from pinstream_cli.doctor.versions import check_versions
from pinstream_cli.errors import CommandError
from pinstream_cli.terminal import behind
from pinstream_cli.triton.endpoints import Endpoints
from pinstream_cli.triton.install import find_triton
from pinstream_cli.triton.preflight import gpu_count

STYLES = {"OK": "green", "WARN": "yellow", "FIX": "red bold"}
PROBLEM_EXIT_CODE, UNWRITTEN_EXIT_CODE = 1, 2


@click.command()
@click.option(
    "--model-repository",
    "repositories",
    type=click.Path(path_type=Path, readable=False),
    multiple=True,
    help="Check this model repository too, file by file; may be given several times.",
)
@click.option("--tritonserver", type=click.Path(path_type=Path), help="The tritonserver that is to be run.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to be listened on.")
@click.option("--http-port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--grpc-port", type=click.IntRange(1, 65535), default=8001, show_default=True)
@click.option("--metrics-port", type=click.IntRange(1, 65535), default=8002, show_default=True)
@click.option(
    "--fix", is_flag=True, help="Delete what killed servers of ours left in /dev/shm and the temporary files."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the table.")
def doctor(
    repositories: tuple[Path, ...],
    tritonserver: Path | None,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    fix: bool,
    as_json: bool,
) -> None:
    """Check whether this machine and a model repository are fit for serving.

    Every line is OK, WARN (it works, but may surprise) or FIX (it will not work), with what to do. Ends with exit code
    1 where anything is to be fixed, with 2 where the report cannot be written, else with 0.
    """
    checks = list(run_checks(repositories, tritonserver, Endpoints(host, http_port, grpc_port, metrics_port), fix=fix))
    problems = sum(check.status == "FIX" for check in checks)
    if as_json:
        report = {"fit": not problems, "checks": [check.as_json() for check in checks]}
        _write(json.dumps(report, indent=2) + "\n")
    else:
        _write(_table(checks))
    raise SystemExit(PROBLEM_EXIT_CODE if problems else 0)


def _write(report: str) -> None:
    # There is none where stdout is closed.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        # Names of files may be of any bytes.
        click.echo(report.encode(encoding, "backslashreplace").decode(encoding), file=behind(sys.stdout), nl=False)
    except BrokenPipeError:
        # Whoever reads has seen enough, as `head` does; what was found stays true. Nothing is to be flushed at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.echo(f"error: the report cannot be written: {error.strerror}; make room where stdout goes", err=True)
        raise SystemExit(UNWRITTEN_EXIT_CODE) from None


def run_checks(
    repositories: Sequence[Path], tritonserver: Path | None, endpoints: Endpoints, *, fix: bool
) -> Iterator[Check]:
    """All checks, in the order in which one would ask.

    Args:
        repositories: Model repositories to look into.
        tritonserver: The binary that the user names, if any.
        endpoints: Where the server is to listen.
        fix: Whether to delete what killed servers left.
    """
    gpus = gpu_count()
    yield from check_versions(tritonserver, gpus)
    yield from check_gpus()
    yield from check_leftovers(fix=fix)
    # Links may lead in circles.
    places = list(dict.fromkeys(Path(os.path.realpath(path)) for path in repositories))
    there = [path for path in places if os.access(path, os.R_OK | os.X_OK) and path.is_dir()]
    read_onnx = OnnxFiles(onnx_files(there)).spec
    yield from check_machine(endpoints, there, gpus, read_onnx)
    yield from check_repositories(places, _triton(tritonserver), gpus, read_onnx)


def _triton(named: Path | None) -> Triton | None:
    try:
        install = find_triton(named)
    except CommandError:
        return None
    return Triton(install.python_backend.parent, install.binary)


def _table(checks: Iterable[Check]) -> str:
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("status", "name", "found"):
        table.add_column(column, overflow="fold")
    area = ""
    for check in checks:
        if check.area != area:
            table.add_row("", Text(check.area, "bold"), "")
            area = check.area
        found = check.found + (f"\n-> {check.remedy}" if check.remedy else "")
        # As text: shapes in brackets are no markup.
        table.add_row(Text(check.status, STYLES[check.status]), Text(check.name), Text(found))
    counts = Counter[str](check.status for check in checks)
    terminal = Console()
    text = io.StringIO()
    console = Console(file=text, width=terminal.width, force_terminal=terminal.is_terminal)
    console.print(table, ", ".join(f"{counts[status]} {status}" for status in STYLES), sep="\n")
    return text.getvalue()
