"""What can go wrong between a client and the service, one class for each thing a caller would do differently.

Every message is one line: what was found, what was expected, what to do.
"""

from __future__ import annotations

import re
from concurrent.futures import CancelledError

_REQUEST_ID = re.compile(r"^\[request id: [^\]]*\] ")
_RESTRICTED = re.compile(r"^This (protocol|API) is restricted")
_ENSEMBLE = re.compile(r"^in ensemble '[^']*', ")
# Line breaks; control characters, which can have a terminal do anything; what turns the direction in which text is
# shown; and halves of characters, which cannot be printed.
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 4000  # characters of a message


def printable(text: str) -> str:
    """Text, whoever wrote it, as it can be printed: on one line, with escapes for what is not to be shown."""
    return _NOT_SHOWN.sub(lambda found: ascii(found.group())[1:-1], text)


class PinstreamError(Exception):
    """Base of all errors that this package raises on purpose.

    Args:
        message: May have a server's words in it, and names of files: it is made `printable` here, and shortened where
            it is longer than anybody reads.

    Attributes:
        transient: The same request may well succeed a moment later: the connection was refused or broke, or the server
            takes no request now. These, and no others, are tried again within a call's timeout.
    """

    transient = False

    def __init__(self, message: str = "") -> None:
        if len(message) > _LONGEST:  # what was found stands at its beginning, what to do at its end
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        super().__init__(printable(message))


class InvalidURL(PinstreamError, ValueError):
    """The server's URL or protocol cannot be used."""


class ServerUnreachable(PinstreamError):
    """No Triton server answers at the address, or the connection broke."""


class ServerNotReady(PinstreamError):
    """The server is there, but it or the model does not take requests now.

    Attributes:
        waited: It has had the request in its queue for as long as one may wait there.
    """

    waited = False


class AccessDenied(PinstreamError):
    """The server or a proxy before it wants a header or token that was not sent."""


class Cancelled(PinstreamError, CancelledError):
    """The caller cancelled the call."""


class RegionUnknown(PinstreamError):
    """The server does not know a shared memory region, having been started anew; the client registers it again."""


class ModelNotFound(PinstreamError):
    """The server has no model of that name, or it is no detection service."""


class InvalidRequest(PinstreamError, ValueError):
    """The server refused the request (INVALID_ARGUMENT): sending it again will not help."""


class InvalidImage(InvalidRequest):
    """The image cannot be read or encoded; nothing was sent."""


class DeadlineExceeded(PinstreamError, TimeoutError):
    """No answer within the timeout."""


class ServerError(PinstreamError):
    """The server failed while it worked on the request, or its model gave what cannot be used."""


class AnswerTooLarge(PinstreamError):
    """The answer is larger than the client takes (``max_answer_bytes``), or than gRPC does."""


class MissingExtra(PinstreamError, ImportError):
    """An optional dependency is not installed."""


def unreachable(address: object, reason: str, transient: bool = True) -> ServerUnreachable:
    """The error for a connection that cannot be made or broke.

    Args:
        address: Where the client tried to connect.
        reason: What the network said, as short as it is known.
        transient: Whether that may be otherwise in a moment.
    """
    error = ServerUnreachable(
        f"no Triton server answers at {address} ({first_line(reason)}): "
        "is it running, and is this the port of this protocol (gRPC 8001, HTTP 8000 by default)?"
    )
    error.transient = transient
    return error


def not_triton(address: object, reason: str) -> ServerUnreachable:
    """The error for an answer that no Triton gives; ``reason`` is what is wrong with it."""
    return unreachable(address, f"the answer is not Triton's: {reason}", transient=False)


def unusable(address: object, model: str, reason: str) -> ServerError:
    """The error for outputs that are not what the model's clients expect; ``reason`` is what is wrong with them."""
    return ServerError(
        f"the answer of model '{model}' at {address} cannot be used: {first_line(reason)}; "
        "look at the model and the server's log, or at what else answers there"
    )


def too_large(address: object, most: int, what: str = "the answer") -> AnswerTooLarge:
    """The error for an answer, or what of it is named, of more than ``most`` bytes."""
    return AnswerTooLarge(
        f"{what} from {address} has more than {most} bytes, the most that this client takes: ask for fewer outputs or "
        "smaller batches, or raise max_answer_bytes"
    )


def too_large_for_grpc(address: object, most: int) -> AnswerTooLarge:
    """The error for an answer of more than ``most`` bytes, the largest message of gRPC: no option raises that."""
    return AnswerTooLarge(
        f"the answer from {address} has more than {most} bytes, the most that gRPC takes: ask for fewer outputs or "
        "smaller batches"
    )


def cancelled(address: object) -> Cancelled:
    """The error for a call that its caller gave up."""
    return Cancelled(f"the call to {address} was cancelled")


def deadline_exceeded(address: object, seconds: float) -> DeadlineExceeded:
    """The error for a call that took longer than ``seconds``."""
    shown = round(seconds, 1) if seconds >= 0.1 else float(f"{max(seconds, 0.0):.1g}")
    return DeadlineExceeded(
        f"no answer from {address} within {shown:g} s: "
        "the server is overloaded or stuck, or something else listens there; look at its log or allow a longer timeout"
    )


def from_status(code: str, text: str, address: object, model: str) -> PinstreamError:
    """The error for a Triton server's own refusal.

    Args:
        code: Name of the gRPC status code; the HTTP transport translates its status first.
        text: The server's message. A traceback in it stays on the server: only the first line is kept.
        address: Where the server is.
        model: The model that was asked, or "".
    """
    reason = first_line(text)
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED") or is_restriction(reason):
        return AccessDenied(f"the server at {address} refused access: {reason}; give the header or token it wants")
    if "Unable to find shared memory region" in reason:
        return RegionUnknown(f"the server at {address} does not know a region of shared memory: {reason}")
    if code == "INVALID_ARGUMENT":
        return InvalidRequest(f"the server refused the request: {reason}")
    if code == "NOT_FOUND" and "no available versions" in reason:
        return ServerNotReady(f"model '{model}' at {address} is not ready: it failed to load or was unloaded")
    if code == "NOT_FOUND":
        return ModelNotFound(f"the server at {address} has no model '{model}': check the model's name and repository")
    if code == "UNAVAILABLE":
        not_now = ServerNotReady(f"the server at {address} takes no request now: {reason}; try again later")
        not_now.transient = True
        not_now.waited = has_waited(reason)
        return not_now
    return ServerError(f"the server at {address} failed ({code}): {reason}; the server's log has the details")


def is_restriction(text: str) -> bool:
    """Whether this is Triton's refusal of a restricted API, which over gRPC has the status UNAVAILABLE."""
    return _RESTRICTED.search(text) is not None


def has_waited(text: str) -> bool:
    """Whether this is Triton's refusal of a request that has waited as long as it may."""
    return "Request timeout expired" in text


def first_line(text: str) -> str:
    """Triton's message without its prefixes and without the lines (a stub's traceback) that follow the first."""
    line = (text.strip() or "no reason given").splitlines()[0].strip()
    return _ENSEMBLE.sub("", _REQUEST_ID.sub("", line)).rstrip(".: ")
