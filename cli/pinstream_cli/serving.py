"""A Triton with models in it, from the files to READY and back: what `serve`, `demo`, `bench` and the tests share."""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.text import Text

from pinstream import sidecar as sidecars
from pinstream.options import VERIFY_ALL
from pinstream.verify import listed_files
from pinstream_cli.console import Console
from pinstream_cli.errors import CommandError
from pinstream_cli.triton import (
    Access,
    Endpoints,
    RunDirectory,
    TritonServer,
    check_arguments,
    check_ports,
    check_shared_memory,
    find_triton,
    leftovers,
)
from pinstream_cli.triton.assemble import keep_to_us
from pinstream_cli.triton.caches import compile_models
from pinstream_cli.triton.completion import COMPLETE
from pinstream_cli.triton.echo import Echo
from pinstream_cli.triton.fallback import Fallback, Views
from pinstream_cli.triton.ownership import check_code, check_owners, check_vouched, written_by_others
from pinstream_cli.triton.preflight import check_temporary_files, check_writable_shared_memory, gpu_count
from pinstream_cli.triton.repository import CONFIG, may_break_shell, model_directories, read_configurations
from pinstream_cli.triton.shared_memory import needs
from pinstream_cli.triton.withdrawn import Withdrawn
from pinstream_cli.yolox_graph import is_serving_graph, is_yolox_export
from pinstream_cli.yolox_service import build_apart

_LABELS_OF_AN_EXPORT = (
    "--labels {labels} are for a YOLOX export served as one, and --model {model} is not; what `pinstream build` "
    "made has its names from `pinstream build --labels`, and plain models have none"
)


@contextlib.contextmanager
def serving(
    model: Path | None,
    *,
    name: str | None = None,
    labels: Path | None = None,
    repositories: Sequence[Path] = (),
    tritonserver: Path | None = None,
    endpoints: Endpoints,
    extra: Sequence[str] = (),
    access: Access | None = None,
    fallback: Fallback | None = None,
    verify: bool = False,
    prepare: Sequence[Callable[[Path], None]] = (),
    startup_timeout_s: float = 180.0,
    console: Console,
    verbose: bool = False,
) -> Iterator[TritonServer]:
    """A Triton with every model ready, stopped and cleaned up after on exit.

    Args:
        model: Directory made by `pinstream build`, a YOLOX export, or any ONNX file; None where `repositories` is all.
        name: Serve `model` as a plain model of this name.
        labels: A text file of class names, one a line, for a YOLOX export.
        repositories: Model repositories to be served as they are.
        tritonserver: The binary, where it is not to be looked for.
        endpoints: Where to listen.
        extra: More arguments for tritonserver.
        access: Who may do what; by default everybody infers and nobody does anything else.
        fallback: How to start where that failed before; then it decides on `extra`.
        verify: Whether VERIFY holds for every model, and nobody else may write anything of what is served.
        prepare: What changes the configurations that are made for `model`, in a repository.
        startup_timeout_s: Seconds until every model must be ready.
        console: Where progress is shown.
        verbose: Whether to show Triton's whole log.

    Raises:
        CommandError: The machine, the model or the server is not fit; one line says why and what to do.
    """
    check_arguments(extra)
    fallback = fallback or Fallback(repositories, extra)
    arguments = fallback.arguments()
    if model is None and not repositories:
        raise CommandError(
            f"nothing to serve; name a model with --model, or a repository with --model-repository{_misspelt(extra)}"
        )
    for option, given in (("--name", name), ("--labels", labels)):
        if model is None and given is not None:
            raise CommandError(
                f"{option} {given} belongs to --model, which is not given; leave it out, or name a model"
            )
    with _telling_of_closed_files():
        if model is not None:
            _check_model(model, name)
        for repository in repositories:
            _check_repository(repository, arguments)
        _look_at_owners((*repositories, *([model] if model is not None else [])), console, verify=verify)
    install = find_triton(tritonserver)
    _check_ports(endpoints)
    check_writable_shared_memory()
    check_temporary_files()
    with contextlib.ExitStack() as stack:
        with _telling_of_room():
            for path in leftovers.remove():
                console.print(f"Removed {path}, left by a process that was killed", soft_wrap=True)
            run = stack.enter_context(RunDirectory(install))
            if model is not None:
                _add_model(run, model, name, labels, console)
                for change in prepare:
                    change(run.models)
                if verify:
                    check_vouched(run.models, model)
            for repository in (*([run.models] if model is not None else []), *repositories):
                check_code(repository, verify=verify)
            views = Views(run.path / "repositories", repositories, fallback.hidden)
        served = [*([run.models] if model is not None else []), *views.paths]
        _check_shared_memory(served)
        compile_models(served, arguments)
        complete = run.complete and not repositories and not _more_may_come(access or Access(), extra)
        show = partial(console.print, soft_wrap=True, style="dim")
        echo = Echo(show, run.log)
        server = TritonServer(
            install,
            run,
            served,
            endpoints,
            [*([COMPLETE] if complete else []), *arguments],
            access,
            {VERIFY_ALL: "true"} if verify else {},
            on_ready=lambda ready, seconds: console.print(
                f"  {ready:<24}", Text("READY", "green"), f"{seconds:6.1f} s", soft_wrap=True
            ),
            on_log=show if verbose else echo.add,
            reword=views.reword,
        )
        console.print(f"Starting {install.binary}", soft_wrap=True)
        try:
            server.start()
            server.wait_ready(startup_timeout_s)
            echo.limit()
            required = {path.name for path in model_directories(run.models)}
            for lack in (*views.left_out, *fallback.lacking(server.loads, required)):
                console.print(Text("NOT SERVED", "red bold"), lack, soft_wrap=True)
            with _telling_of_room():
                views.open()
            warn = partial(console.print, Text("WARNING", "red bold"), soft_wrap=True)
            with Withdrawn(server.loads, views.paths, arguments, warn, server.stubs.runs):
                yield server
        finally:
            began = time.monotonic()
            server.stop()
            echo.close()
            console.print(f"Triton has stopped ({time.monotonic() - began:.1f} s).")


@contextlib.contextmanager
def _telling_of_closed_files() -> Iterator[None]:
    """Look at what is named; what this user may not look at, for the most part a volume of another, in one line."""
    try:
        yield
    except OSError as error:
        raise CommandError(
            f"{error.filename} cannot be looked at: {error.strerror}; let this user read it and pass through its "
            "directories"
        ) from error


@contextlib.contextmanager
def _telling_of_room() -> Iterator[None]:
    """Put together what Triton reads; what keeps it from being there, for the most part a full disk, in one line."""
    try:
        yield
    except OSError as error:
        # shutil.Error has a source, a target and a reason for each file.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        raise CommandError(
            f"what Triton reads cannot be put together among temporary files: {reason}; make room there, let this user "
            "read the model and write there, or set TMPDIR to another directory"
        ) from error


def _more_may_come(access: Access, extra: Sequence[str]) -> bool:
    """Whether models may be loaded later, which may lack something in their configurations."""
    controlled = any(argument.startswith("--model-control-mode") for argument in extra)
    return access.control or bool(access.admin_key) or controlled


def _misspelt(arguments: Sequence[str]) -> str:
    """What is said of an argument for tritonserver that is nearly an option of ours."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if meant := difflib.get_close_matches(name, ("--model", "--model-repository"), 1, cutoff=0.8):
            return f" ({name} went to tritonserver; did you mean {meant[0]}?)"
    return ""


def _check_model(model: Path, name: str | None) -> None:
    # Triton's Python backend gives it to a shell as it is.
    if name is not None and (shlex.quote(name) != name or "/" in name or name.startswith(".")):
        raise CommandError(
            f"--name {name!r} cannot be a model's name: it becomes a directory; use letters, digits, and . _ - only, "
            "and no leading dot"
        )
    if not model.exists():
        raise CommandError(f"--model {model} does not exist; name an .onnx file or what `pinstream build` made")
    if not model.is_dir() and not model.is_file():
        raise CommandError(f"--model {model} is no regular file; name an .onnx file or what `pinstream build` made")
    if model.is_dir() and not (model / sidecars.FILE_NAME).is_file():
        _check_level(model)


def _check_level(directory: Path) -> None:
    """See that a directory in which nothing was built is not a repository, or a model of one."""
    if (directory / CONFIG).is_file():
        raise CommandError(
            f"--model {directory} is a model of a repository: {CONFIG} lies in it; name its parent, "
            f"--model-repository {_parent(directory)}"
        )
    if any(directory.glob(f"*/{CONFIG}")):
        raise CommandError(f"--model {directory} is a model repository; name it with --model-repository {directory}")


def _parent(directory: Path) -> str:
    """What a directory lies in, also where it is named as "." or "..", and of a link where the link is."""
    return os.path.dirname(os.path.abspath(directory))


def _check_repository(repository: Path, arguments: Sequence[str]) -> None:
    if not repository.is_dir():
        raise CommandError(
            f"--model-repository {repository} is not a directory; name the one that holds the models' own"
        )
    if (repository / CONFIG).is_file():
        raise CommandError(
            f"--model-repository {repository} is a model: {CONFIG} lies in it; name its parent, "
            f"--model-repository {_parent(repository)}"
        )
    holds_models = any(entry.is_dir() and not entry.name.startswith(".") for entry in repository.iterdir())
    # With these modes models may come later.
    if not holds_models and not any(argument.startswith("--model-control-mode") for argument in arguments):
        raise CommandError(
            f"--model-repository {repository} holds no models; a model is a directory with a config.pbtxt and a "
            'version directory, such as classifier/config.pbtxt (backend: "pinstream") and classifier/1/model.onnx'
        )

    for directory in model_directories(repository.resolve()):
        if may_break_shell(read_configurations(directory)):
            raise CommandError(
                f"{directory}: Triton's Python backend gives this to a shell as it is, and hangs; use ASCII letters, "
                "digits, and . _ - only"
            )


def _look_at_owners(served: Sequence[Path], console: Console, *, verify: bool) -> None:
    """Refuse what others can write where it is to be verified; else tell of the first of it in each place."""
    for path in served:
        if verify:
            check_owners(path)
        elif found := written_by_others(path):
            decides = "whoever can write a model decides what runs here, and --verify refuses it (docs/security.md)"
            console.print(Text("WARNING", "yellow"), f"{found}; {decides}", soft_wrap=True)


def _check_ports(endpoints: Endpoints) -> None:
    ports = {
        "HTTP": ("--http-port", endpoints.http),
        "gRPC": ("--grpc-port", endpoints.grpc),
        "metrics": ("--metrics-port", endpoints.metrics),
    }
    check_ports(endpoints.host, ports)


def _add_model(run: RunDirectory, model: Path, name: str | None, labels: Path | None, console: Console) -> None:
    """Put `model` into the run's repository: the YOLOX service where it is one, else a plain model."""
    exported = name is None and model.suffix == ".onnx" and model.is_file() and is_yolox_export(model)
    if labels is not None and not exported:
        raise CommandError(_LABELS_OF_AN_EXPORT.format(labels=labels, model=model))
    if model.is_dir():
        _add_built(run, model, name)
    elif model.suffix not in (".onnx", ".plan"):
        raise CommandError(
            f"--model {model} is neither an .onnx nor a .plan file, nor what `pinstream build` made; export it to "
            "ONNX, and name that file"
        )
    elif model.suffix == ".plan":
        run.add_model(name or _own_name(model.stem), [model])
    elif exported:
        console.print(f"{model.name} is a YOLOX export: building its serving graph")
        report = build_apart(model, run.path / "built", labels=labels)
        keep_to_us(run.path / "built")
        if report.hint:
            console.print(f"hint: {report.hint}", soft_wrap=True)
        _add_built(run, run.path / "built", name)
    elif name is None and is_serving_graph(model):
        if not (model.parent / sidecars.FILE_NAME).is_file():
            raise CommandError(
                f"--model {model} is a serving graph without its {sidecars.FILE_NAME}; keep the two together"
            )
        run.add_yolox_service([model, model.parent / sidecars.FILE_NAME])
    else:
        run.add_model(name or _own_name(model.stem), [model])


def _own_name(name: str) -> str:
    if shlex.quote(name) != name:
        raise CommandError(
            f"{name!r} cannot be a model's name: use letters, digits, and . _ - only; give one with --name"
        )
    return name


def _add_built(run: RunDirectory, directory: Path, name: str | None) -> None:
    """What `pinstream build` made: the service where its sidecar says that it is YOLOX, else a plain model."""
    try:
        sidecar = sidecars.read(directory / sidecars.FILE_NAME)
    except sidecars.SidecarError as error:
        raise CommandError(f"--model {error}") from error
    # Nothing else: Triton would run a library of its backends' names that lies there.
    listed = (directory / file for file in sorted({sidecars.FILE_NAME, *listed_files(sidecar)}))
    files = [file for file in listed if file.is_file()]
    if name is None and "yolox" in sidecar.sections:
        run.add_yolox_service(files)
    else:
        run.add_model(name or _own_name(directory.resolve().name), files)


def _check_shared_memory(repositories: Sequence[Path]) -> None:
    models = needs(repositories, gpu_count())
    check_shared_memory(sum(model.needed for model in models), "; ".join(map(str, models)))
