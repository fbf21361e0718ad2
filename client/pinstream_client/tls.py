"""Encrypted HTTP connections."""

from __future__ import annotations

import ssl

from .errors import InvalidURL
from .options import TLS


def tls_context(tls: TLS, socket_class: type[ssl.SSLSocket] = ssl.SSLSocket) -> ssl.SSLContext:
    """What encrypted connections are made with.

    Args:
        tls: The files.
        socket_class: Of its sockets.

    Raises:
        InvalidURL: A file cannot be read, or is no PEM file of its kind.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.cert is not None:
            context.load_cert_chain(tls.cert, tls.key)
    except OSError as error:
        files = ", ".join(str(file) for file in (tls.ca, tls.cert, tls.key) if file)
        raise InvalidURL(f"cannot use the TLS files {files}: {error.strerror or error}") from None
    context.sslsocket_class = socket_class
    return context
