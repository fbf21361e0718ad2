"""The `pinstream` command. A subcommand is imported only when it runs: `detect` needs nothing of the server."""

from __future__ import annotations

import importlib
import importlib.util
import signal
import threading
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import click
from click.shell_completion import CompletionItem

from pinstream_cli.standard_files import open_standard_files
from pinstream_cli.terminal import show_controls


@dataclass(frozen=True)
class Subcommand:
    """Where a subcommand is and what it needs.

    Attributes:
        module: Module that holds a click command named as the subcommand.
        extra: The package's extra with its dependencies, or "" for those that are always there.
        summary: Its line in ``pinstream --help``.
    """

    module: str
    extra: str
    summary: str


SUBCOMMANDS = {
    "serve": Subcommand("pinstream_cli.serve", "server", "Run Triton with the pinstream backend and a model."),
    "build": Subcommand(
        "pinstream_cli.build", "server", "Make TensorRT plans of ONNX models, and YOLOX's serving graph."
    ),
    "detect": Subcommand("pinstream_cli.detect", "", "Find objects in images through a running server."),
    "view": Subcommand("pinstream_cli.view", "view", "Show what a running server finds, on a page in the browser."),
    "fetch": Subcommand("pinstream_cli.fetch", "server", "Download an official YOLOX model, once."),
    "eval": Subcommand("pinstream_cli.eval", "eval", "Measure average precision on annotated images."),
    "bench": Subcommand("pinstream_cli.bench", "server", "Measure the server and its detector."),
    "tune": Subcommand("pinstream_cli.tune", "server", "Try a model's settings on this machine and write the best."),
    "doctor": Subcommand("pinstream_cli.doctor", "", "Check this machine and a model repository, and say what to do."),
    "demo": Subcommand("pinstream_cli.demo", "server", "Build, serve and detect on one image, then stop."),
}


class MissingDependency(click.ClickException):
    """A subcommand needs a module that is not installed."""

    exit_code = 2

    def __init__(self, name: str, module: str) -> None:
        extra = SUBCOMMANDS[name].extra
        package = f'"pinstream[{extra}]"' if extra else "pinstream"
        super().__init__(f"`pinstream {name}` needs the module '{module}': pip install {package}")

    def show(self, file: Any = None) -> None:
        """Prints one line to stderr, as all of pinstream's errors."""
        click.echo(f"error: {self.message}", file=file, err=True)


class LazyGroup(click.Group):
    """A group that knows its subcommands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The subcommands whose modules are there, in their usual order."""
        return [name for name in SUBCOMMANDS if importlib.util.find_spec(SUBCOMMANDS[name].module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the subcommand's module."""
        if cmd_name not in self.list_commands(ctx):
            return None
        open_standard_files()  # before anything is imported that opens others
        show_controls()
        try:
            module = _imported(SUBCOMMANDS[cmd_name].module)
        except ModuleNotFoundError as error:
            raise _missing_dependency(cmd_name, error) from error
        command: click.Command = getattr(module, cmd_name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completes subcommands without importing them: a missing extra must not end a TAB in an error."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        return [CompletionItem(name, help=SUBCOMMANDS[name].summary) for name in names]

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the subcommand; what it imports only when it runs may be missing as well."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise _missing_dependency(ctx.invoked_subcommand or "", error) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUBCOMMANDS[name].summary) for name in self.list_commands(ctx)])


def _imported(name: str) -> ModuleType:
    """A module, imported. Ctrl-C ends the program at once meanwhile: half a second in which nothing has begun."""
    # An exception within imports would become any error, of any library.
    ends = (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and threading.current_thread() is threading.main_thread()
    )
    if ends:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return importlib.import_module(name)
    finally:
        if ends:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _missing_dependency(name: str, error: ModuleNotFoundError) -> Exception:
    missing = error.name or str(error)
    # A missing module of our own is a fault of this program: no extra would bring it.
    if name not in SUBCOMMANDS or missing.partition(".")[0] in ("pinstream", "pinstream_cli", "pinstream_client"):
        return error
    return MissingDependency(name, missing)


def _version() -> str:
    try:
        return version("pinstream")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="pinstream")
def main() -> None:
    """Serve TensorRT and ONNX engines from Triton, and detect objects with YOLOX."""
