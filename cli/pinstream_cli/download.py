"""One large file over HTTP, into a part file from which a broken download goes on."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinstream_cli.errors import CommandError

# How long a server may be silent, and how often a connection that broke is made anew by itself.
SILENCE_S = 30.0
_ATTEMPTS = 4
_CHUNK = 1 << 18


class UnreachableError(CommandError):
    """Nobody answers at the address."""


@dataclass(frozen=True)
class Source:
    """What is downloaded.

    Attributes:
        url: http:// or https://.
        smallest: Fewest bytes that it can have.
        largest: Most bytes.
    """

    url: str
    smallest: int
    largest: int


class _Broken(Exception):
    """The connection ended early; there may be more to get by another."""


def download(
    source: Source, part: Path, progress: Callable[[int, int | None], None] = lambda done, total: None
) -> None:
    """Downloads a file, going on from what an earlier call left in `part`.

    A part is gone on with only where the server says that the file has not changed since (its strong ETag).

    Args:
        source: What to get.
        part: Where to write; complete on return. Its ETag is kept in a file beside it, which stays.
        progress: Called with the bytes there are and, where the server says so, will be.

    Raises:
        UnreachableError: No connection can be made.
        CommandError: The server refuses, sends something of another size, or the connection broke time and again; the
            part is kept where it is of use.
        OSError: The part cannot be written.
    """
    for _ in range(_ATTEMPTS):
        before = _size(part)
        try:
            return _go_on(source, part, progress)
        except _Broken as error:
            reason = str(error)
            if _size(part) <= before:
                break  # nothing came; trying again at once brings no more
    raise CommandError(
        f"{source.url}: the connection broke after {_size(part) / 1e6:.1f} MB ({reason}); "
        "run the same command again to go on from there"
    )


def discard(part: Path) -> None:
    """Removes a part and what belongs to it."""
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)


def _go_on(source: Source, part: Path, progress: Callable[[int, int | None], None]) -> None:
    answer = _request(source.url, part)
    if answer is None:
        return
    with answer:
        start = _size(part) if answer.status == 206 else 0
        total = _total(answer, start)
        _check_size(source, total)
        if not start:
            _keep_tag(part, answer.headers.get("ETag", ""))
        with part.open("ab" if start else "wb") as file:
            done = start
            while chunk := _read(answer):
                done += file.write(chunk)
                if done > source.largest:
                    raise _wrong_size(source, f"more than {source.largest:,} bytes")
                progress(done, total)
    if total is not None and done < total:
        raise _Broken(f"of {total / 1e6:.1f} MB")
    _check_size(source, done)


def _request(url: str, part: Path) -> Any:
    """The open answer: the file (200) or the rest of it (206); None where there is nothing left to get."""
    headers = {"User-Agent": "pinstream", "Accept-Encoding": "identity"}
    start, tag = _size(part), _tag(part)
    if start and tag:
        headers |= {"Range": f"bytes={start}-", "If-Range": tag}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SILENCE_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{start}":
            return None  # broke off after the last byte
        if error.code == 416:
            discard(part)
            raise _Broken("it has another length now") from None
        if error.code >= 500:  # a proxy's answer, too, where there is no way to the server
            raise UnreachableError(f"{url} cannot be reached (answer {error.code}, {error.reason})") from None
        raise CommandError(f"{url}: the server answers {error.code} ({error.reason}); the file is not there") from None
    except urllib.error.URLError as error:
        raise UnreachableError(f"{url} cannot be reached ({_reason(error.reason)})") from None
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{url} cannot be reached ({_reason(error)})") from None
    if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        answer.close()
        discard(part)
        raise _Broken("the server sent another part than it was asked for")
    return answer


def _read(answer: Any) -> bytes:
    try:
        chunk: bytes = answer.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_reason(error)) from None
    return chunk


def _total(answer: Any, start: int) -> int | None:
    """The whole file's length, where the server tells it."""
    length = answer.headers.get("Content-Length")
    return start + int(length) if length and re.fullmatch(r"\d+", length) else None


def _check_size(source: Source, size: int | None) -> None:
    if size is not None and not source.smallest <= size <= source.largest:
        raise _wrong_size(source, f"{size:,} bytes")


def _wrong_size(source: Source, found: str) -> CommandError:
    return CommandError(
        f"{source.url} has {found}, expected {source.smallest:,} to {source.largest:,}: it is not the file that "
        "it should be; is there a page in between that asks for a login?"
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _tag(part: Path) -> str:
    file = _tag_file(part)
    return file.read_text() if file.exists() else ""


def _keep_tag(part: Path, tag: str) -> None:
    if tag.startswith('"'):
        _tag_file(part).write_text(tag)
    else:  # none, or a weak one, which does not promise the same bytes
        _tag_file(part).unlink(missing_ok=True)


def _reason(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
