"""What nobody waits for any more is not begun: the client tells Triton how long it waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pinstream_client import DeadlineExceeded, Detector
from pinstream_client.retry import NO_RETRY
from tests.server.client.conftest import TIMEOUT_S, url_of
from tests.server.client.test_cancelling import PICTURE, SLOW_CONFIG, SLOW_MODEL, metric, score, soon
from tests.server.conftest import add_model
from tests.server.running import Running, running

# Triton looks at a request's own timeout only where there is one by default.
LIMITS = "default_timeout_microseconds: 60000000 allow_timeout_override: true"
POLICY = f"dynamic_batching {{ default_queue_policy {{ {LIMITS} }} }}"
OUTPUTS = ("num_dets", "det_boxes", "det_scores", "det_classes")
MAPPED = "".join(f' output_map {{ key: "{name}" value: "{name}" }}' for name in OUTPUTS)
STEP = f'step {{ model_name: "step" model_version: -1 input_map {{ key: "image" value: "image" }}{MAPPED} }}'
ENSEMBLE = f'platform: "ensemble"\nmax_batch_size: 1\nensemble_scheduling {{ {STEP} }}\n'
TENSORS = "\n".join(line for line in SLOW_CONFIG.splitlines() if line.startswith(("input", "output")))
LONG, SHORT, PATIENCE_S, MANY = 1.5, 0.01, 0.8, 5


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An ensemble, as the detection service is, whose one step does one call at a time."""
    repository = tmp_path_factory.mktemp("slow")
    config = SLOW_CONFIG.replace("dynamic_batching { }", POLICY)
    add_model(repository, "step", config).with_name("model.py").write_text(SLOW_MODEL)
    add_model(repository, "yolox", ENSEMBLE + TENSORS)
    with running(repositories=[repository]) as server:
        yield server


def computed(server: Running) -> float:
    """How many requests the step has answered."""
    return metric(server, 'nv_inference_request_success{model="step"')


def refused(server: Running) -> float:
    """How many requests to the step have waited too long."""
    return metric(server, 'nv_inference_request_failure{model="step",reason="REJECTED"')


def test_what_has_waited_longer_than_its_client_is_not_computed(slow: Running, protocol: str) -> None:
    url = url_of(slow, protocol)
    with (
        Detector(url, timeout=TIMEOUT_S) as patient,
        Detector(url, timeout=PATIENCE_S, retry=NO_RETRY) as impatient,
    ):
        assert score(patient.detect(PICTURE, conf=SHORT)) == SHORT
        impatient.class_names()  # which would be asked for within the short timeout
        done, late = computed(slow), refused(slow)
        busy = [patient.submit(PICTURE, conf=LONG) for _ in range(2)]
        assert soon(lambda: metric(slow, 'nv_inference_pending_request_count{model="step"') == len(busy) - 1)
        left = [impatient.submit(PICTURE, conf=SHORT) for _ in range(MANY)]
        assert all(isinstance(call.exception(5), DeadlineExceeded) for call in left)
        assert [score(call.result()) for call in busy] == [LONG] * len(busy)
        assert score(patient.detect(PICTURE, conf=SHORT)) == SHORT
    assert soon(lambda: computed(slow) == done + len(busy) + 1)
    assert refused(slow) == late + MANY
