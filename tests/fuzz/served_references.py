"""References to pictures in shared memory through a real server: asked of the first step, as clients may, and sent on.

What a client has got by asking the first step for `images_at` it may send to the detector as it is, once; anything else
has to be refused, and none of it may touch what other requests refer to.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from pinstream.tensors import Array
from tests.fuzz.beside import PATIENCE_S
from tests.fuzz.pictures import corpus
from tests.fuzz.references import changed

MOST_PICTURES = 3
# Of a picture, as the small detector takes it.
ITEM_BYTES = 64 * 64 * 3
# Where something of them is not there any more, or has been read before.
GONE = "UNAVAILABLE"


def references(infer: Callable[..., Any], rng: random.Random) -> Array:
    """References to one to three pictures, as the service's first step gives them to whoever asks.

    Returns:
        UINT8 [n, 72]; the pictures themselves, [n, bytes of one], where nobody has read what was asked for before.

    Raises:
        grpc.RpcError: It does not.
    """
    pictures = [corpus()[0]] * rng.randint(1, MOST_PICTURES)
    request = service_pb2.ModelInferRequest(model_name="yolox_preprocess")
    request.inputs.add(name="image", datatype="BYTES", shape=[len(pictures), 1])
    request.raw_input_contents.append(b"".join(len(data).to_bytes(4, "little") + data for data in pictures))
    request.outputs.add(name="images_at")
    answer = infer(request, timeout=PATIENCE_S)
    return np.frombuffer(answer.raw_output_contents[0], np.uint8).reshape(len(pictures), -1)


def request_with(rows: Array, rng: random.Random) -> tuple[Any, bool]:
    """A request to the detector with these references, or with what somebody has made of them.

    Args:
        rows: Of `references`.
        rng: Chooses.

    Returns:
        The request, and whether it has to be answered.
    """
    sent = changed(rows, ITEM_BYTES, rng)
    return detect(sent), sent is rows


def detect(rows: Array) -> Any:
    """A request to the detector with these rows for `images_at`, UINT8 [n, any number]."""
    request = service_pb2.ModelInferRequest(model_name="yolox_detector")
    request.inputs.add(name="images_at", datatype="UINT8", shape=rows.shape)
    request.raw_input_contents.append(rows.tobytes())
    return request
