"""What a client tells Triton of its timeout, and what it makes of a refusal for that."""

from __future__ import annotations

import pytest

from pinstream_client import DeadlineExceeded, PinstreamError, ServerNotReady
from pinstream_client.address import parse_url
from pinstream_client.cluster import Cluster
from pinstream_client.errors import from_status
from pinstream_client.payloads import LONGEST_TOLD_S, TOLD_EARLIER_S, told_timeout
from pinstream_client.retry import NO_RETRY
from pinstream_client.steps import Steps
from pinstream_client.transport import Deadline

ADDRESS = parse_url("localhost")


@pytest.mark.parametrize(
    ("seconds", "told"), [(10.0, 9_900_000), (0.1, 80_000), (float("inf"), int(LONGEST_TOLD_S * 1e6)), (-1.0, 1)]
)
def test_triton_is_told_a_little_less_than_the_client_waits(seconds: float, told: int) -> None:
    assert told_timeout(seconds) == told


@pytest.mark.parametrize(
    ("said", "left", "kind"),
    [
        ("Request timeout expired", TOLD_EARLIER_S, DeadlineExceeded),
        ("Request timeout expired", 10.0, ServerNotReady),
        ("Exceeds maximum queue size", TOLD_EARLIER_S, ServerNotReady),
    ],
)
def test_a_refusal_as_the_time_is_over_is_no_answer_in_time(said: str, left: float, kind: type[PinstreamError]) -> None:
    def refused(_: int) -> Steps[None]:
        raise from_status("UNAVAILABLE", said, ADDRESS, "yolox")
        yield

    with pytest.raises(kind) as caught:
        list(Cluster([ADDRESS], NO_RETRY).attempt(refused, Deadline(left)))
    assert type(caught.value) is kind
