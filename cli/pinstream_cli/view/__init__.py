"""`pinstream view`: a page on this machine that shows what a running server finds."""

from pinstream_cli.view.command import view

__all__ = ["view"]
