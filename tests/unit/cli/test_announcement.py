"""What `pinstream serve` says when all models are ready."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pinstream_cli.console import Console
from pinstream_cli.serve import _announce
from pinstream_cli.triton import Access, Endpoints
from pinstream_cli.triton.access import Tls

CERT, KEY, CA = Path("cert.pem"), Path("key.pem"), Path("ca.pem")


def announced(access: Access, *models: str) -> str:
    text = io.StringIO()
    _announce(Console(file=text, width=40), Endpoints("127.0.0.1", 8000, 8001, 8002), access, models)
    return text.getvalue()


@pytest.mark.parametrize(
    ("access", "options"),
    [
        (Access(), "127.0.0.1:8001  "),
        (Access(api_key="k" * 32), "127.0.0.1:8001 --api-key-file FILE  "),
        (Access(Tls(CERT, KEY)), "grpcs://127.0.0.1:8001  "),
        (Access(Tls(CERT, KEY, CA), "k" * 32), ":8001 --tls-cert FILE --tls-key FILE --api-key-file FILE  "),
    ],
)
def test_the_command_that_is_shown_would_be_let_in(access: Access, options: str) -> None:
    line = announced(access, "yolox").splitlines()[-1]
    assert line.startswith("Try:  pinstream detect IMAGE -u ")
    assert options in line
    assert line.endswith("Stop with Ctrl-C.")
    assert "kkk" not in line


def test_no_command_is_shown_for_what_it_is_not_for() -> None:
    assert announced(Access(api_key="k" * 32), "classifier").splitlines()[-1] == "Stop with Ctrl-C."
