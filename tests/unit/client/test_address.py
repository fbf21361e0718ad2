"""Server URLs, as users write them."""

import pytest

from pinstream_client import Address, InvalidURL, parse_url


@pytest.mark.parametrize(
    ("url", "protocol", "expected"),
    [
        ("localhost", None, Address("grpc", "localhost", 8001)),
        ("localhost", "grpc", Address("grpc", "localhost", 8001)),
        ("localhost", "http", Address("http", "localhost", 8000)),
        ("localhost:9000", "http", Address("http", "localhost", 9000)),
        ("grpc://gpu-1:9001", None, Address("grpc", "gpu-1", 9001)),
        ("http://gpu-1", None, Address("http", "gpu-1", 8000)),
        ("http://gpu-1:8000/", "http", Address("http", "gpu-1", 8000)),
        (" 10.0.0.7:8001 ", None, Address("grpc", "10.0.0.7", 8001)),
        ("[::1]:8001", None, Address("grpc", "::1", 8001)),
        ("https://gpu-1", None, Address("http", "gpu-1", 443, secure=True)),
        ("https://gpu-1:9000", "http", Address("http", "gpu-1", 9000, secure=True)),
        ("grpcs://gpu-1", None, Address("grpc", "gpu-1", 8001, secure=True)),
    ],
)
def test_url_with_and_without_scheme_port_and_protocol(url: str, protocol: str | None, expected: Address) -> None:
    assert parse_url(url, protocol) == expected


def test_address_is_written_as_a_url_that_reads_back() -> None:
    for url in ("grpc://localhost:8001", "http://[::1]:9000", "grpcs://localhost:8001", "https://localhost:443"):
        assert str(parse_url(url)) == url


@pytest.mark.parametrize(
    ("url", "protocol", "words"),
    [
        ("", None, "expected"),
        (":8001", None, "expected"),
        ("localhost:0", None, "expected"),
        ("localhost:99999", None, "expected"),
        ("localhost:port", None, "expected"),
        ("http://host/v2/models", None, "nothing else"),
        ("http://host?x=1", None, "nothing else"),
        ("user:secret@host", None, "nothing else"),
        ("ftp://host", None, "unknown protocol 'ftp'"),
        ("https://host", "grpc", "leave out one of the two"),
        ("localhost", "rest", "unknown protocol 'rest'"),
        ("http://host:8000", "grpc", "leave out one of the two"),
    ],
)
def test_url_that_cannot_be_used_says_what_is_expected(url: str, protocol: str | None, words: str) -> None:
    with pytest.raises(InvalidURL, match=words) as caught:
        parse_url(url, protocol)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "here"), [("localhost", True), ("127.0.0.2:1", True), ("[::1]:1", True), ("10.0.0.1", False), ("h", False)]
)
def test_this_machine_is_known_by_its_names(url: str, here: bool) -> None:
    assert parse_url(url).is_loopback is here
