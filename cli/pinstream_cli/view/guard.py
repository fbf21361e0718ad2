"""Who may use the page: this machine's own browser, on the page itself.

Listening on 127.0.0.1 alone does not keep other web sites out: a name of theirs may lead here (DNS rebinding), and
their pages may send requests here. So the Host header has to name this machine - at any port, for one that is forwarded
by SSH - and a request that says where it comes from has to come from the page itself.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from aiohttp import web
from multidict import CIMultiDict

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_THIS_MACHINE = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?")

HEADERS = {
    # Nothing but the page's own files: no inline script or style, nothing from the network, no frame around it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@web.middleware
async def only_this_machine(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses a request under a foreign name, or from a foreign page."""
    refusal = refused(request.headers.get("Host", ""), request.headers.get("Origin"))
    if refusal:
        return web.json_response({"error": refusal}, status=403)
    return await handler(request)


def refused(host: str, origin: str | None) -> str:
    """Why a request is refused; "" where it is not.

    Args:
        host: Its Host header.
        origin: Its Origin header, or None: only browsers send one.
    """
    if not _THIS_MACHINE.fullmatch(host):
        return "this page is for this machine alone: open it under 127.0.0.1 or localhost"
    if origin is not None and origin != f"http://{host}":
        return "only the page itself may ask"
    return ""


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Adds the headers that keep a browser from doing more than the page needs; a signal handler of aiohttp."""
    headers: CIMultiDict[str] = response.headers
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
