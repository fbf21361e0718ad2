"""The page's web application: its files, the server's state, and objects for images."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from aiohttp import web
from aiohttp.http import HttpProcessingError

from pinstream_cli.detect.connection import told
from pinstream_cli.view.guard import add_headers, only_this_machine
from pinstream_cli.view.service import Service
from pinstream_client import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    PinstreamError,
    ServerNotReady,
    ServerUnreachable,
)

PAGE = Path(__file__).parent / "page"
# A photograph has up to 20 MB; Triton itself takes 64 MB over HTTP.
MOST_BYTES = 32 * 2**20

SERVICE = web.AppKey("service", Service)


class WithoutClientsFaults(logging.Filter):
    """Keeps what clients do wrong out of aiohttp's log: uploads that break off, requests that are no HTTP."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be told."""
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (ConnectionError, HttpProcessingError, web.RequestPayloadError))


def make_app(service: Service) -> web.Application:
    """The application around a service, which it closes when it ends."""
    app = web.Application(middlewares=[only_this_machine], client_max_size=MOST_BYTES)
    app[SERVICE] = service
    app.router.add_get("/", partial(_file, PAGE / "index.html"))
    app.router.add_get("/api/state", _state)
    app.router.add_post("/api/detect", _detect)
    # By their names, so that no path from outside reaches the file system.
    for file in PAGE.iterdir():
        app.router.add_get(f"/page/{file.name}", partial(_file, file))
    app.on_response_prepare.append(add_headers)
    app.cleanup_ctx.append(_looking)
    return app


async def _looking(app: web.Application) -> AsyncIterator[None]:
    looking = asyncio.create_task(app[SERVICE].keep_looking())
    yield
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking
    await app[SERVICE].close()


async def _file(file: Path, request: web.Request) -> web.FileResponse:
    return web.FileResponse(file)


async def _state(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    return web.json_response({"server": service.address, "model": service.model, **service.state.to_dict()})


async def _detect(request: web.Request) -> web.Response:
    """The body is an image file; conf and iou may be in the query."""
    try:
        conf, iou = _share(request, "conf"), _share(request, "iou")
        found = await request.app[SERVICE].detect(await request.read(), conf, iou)
    except web.HTTPRequestEntityTooLarge:
        return _refusal(413, f"the image is too large: expected at most {MOST_BYTES // 2**20} MB")
    except web.RequestPayloadError:
        return _refusal(400, "the body is not what its Content-Encoding or its chunks say: send the image as it is")
    except PinstreamError as error:
        return _refusal(_status(error), told(error))
    return web.json_response(found.to_dict())


def _share(request: web.Request, name: str) -> float | None:
    text = request.query.get(name)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise InvalidRequest(f"{name} is {text!r}: expected a number from 0 to 1")
    return number


def _status(error: PinstreamError) -> int:
    if isinstance(error, InvalidRequest):
        return 400
    if isinstance(error, (ServerUnreachable, ServerNotReady, ModelNotFound)):
        return 503
    return 504 if isinstance(error, DeadlineExceeded) else 502


def _refusal(status: int, reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=status)
