"""`pinstream detect`: pictures, videos, a camera or a directory in; tables, records or annotated pictures out."""

from pinstream_cli.detect.command import detect
from pinstream_cli.detect.timing import settled_statistics

__all__ = ["detect", "settled_statistics"]
