"""`pinstream doctor`: what a support engineer asks first, asked by the machine itself."""

from pinstream_cli.doctor.command import doctor

__all__ = ["doctor"]
