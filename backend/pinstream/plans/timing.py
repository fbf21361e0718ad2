"""TensorRT's timing cache on disk: what it measured in one build, it need not measure in the next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pinstream.engines.flavour import Flavour
from pinstream.plans.locks import locked, replace_file


class TimingCache:
    """The cache of one TensorRT on one kind of GPU. For TensorRT-RTX, which times nothing when it builds, it is empty.

    Args:
        flavour: The TensorRT.
        gpu: Name of the GPU: measurements of another one are of no use.
        directory: Where caches are kept.

    Attributes:
        complaint: Why it could not be read or written; empty where it could. Builds take longer without, and go on.
    """

    def __init__(self, flavour: Flavour, gpu: str, directory: Path) -> None:
        self.complaint = ""
        self._used = not flavour.is_rtx
        name = "".join(c if c.isalnum() or c in ".-" else "_" for c in f"{flavour.name}-{flavour.version}-{gpu}")
        self._path = directory / f"{name}.timing"

    @contextlib.contextmanager
    def lent_to(self, config: Any) -> Iterator[None]:
        """Let the build that goes on inside read and extend the cache."""
        if not self._used:
            yield
            return
        cache = config.create_timing_cache(self._read())
        # False: measurements of another version or GPU are refused rather than trusted.
        if cache is None or not config.set_timing_cache(cache, False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        yield
        # Another process may have written meanwhile, hence read once more; builds themselves go on side by side.
        with self._noting_errors(), locked(self._path):
            other = config.create_timing_cache(self._read())
            with contextlib.suppress(RuntimeError):
                if other is not None:
                    cache.combine(other, False)
            replace_file(self._path, bytes(cache.serialize()))

    def _read(self) -> bytes:
        with self._noting_errors():
            return self._path.read_bytes() if self._path.is_file() else b""
        return b""

    @contextlib.contextmanager
    def _noting_errors(self) -> Iterator[None]:
        """A plan that is built is worth more than the cache."""
        try:
            yield
        except OSError as error:
            self.complaint = (
                f"TensorRT's timing cache {self._path} cannot be used ({error.strerror}), so that builds take longer; "
                "make its directory writable, or set XDG_CACHE_HOME"
            )
