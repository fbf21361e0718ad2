"""Parameters: what config.pbtxt sets, and the thresholds that a request gives instead."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from yolox_steps.errors import RequestError
from yolox_steps.places import PATIENCE_S

# Characters of what a client sent that an error repeats.
LONGEST_SHOWN = 60
MOST_READ_WITHIN_S = int(PATIENCE_S)


@dataclass(frozen=True)
class Thresholds:
    """What makes a candidate a detection.

    Attributes:
        conf: Lowest score, 0 to 1.
        iou: Highest intersection over union of two detections of one class, 0 to 1.
        max_det: Most detections per image, 1 to the detector's number of candidates.
    """

    conf: float = 0.25
    iou: float = 0.45
    max_det: int = 100


@dataclass(frozen=True)
class _Range:
    """The values that a threshold can have, both ends included."""

    kind: type[int] | type[float]
    lowest: int
    highest: int

    def __contains__(self, value: object) -> bool:
        # JSON's true and false are integers to Python. NaN, which Triton passes on, fails the comparison.
        number = isinstance(value, (self.kind, int)) and not isinstance(value, bool)
        return number and self.lowest <= value <= self.highest  # type: ignore[operator]

    def __str__(self) -> str:
        return f"{'a whole' if self.kind is int else 'a'} number from {self.lowest} to {self.highest}"


def shown(value: object) -> str:
    """What a client sent, as an error repeats it: its beginning. gRPC loses an answer whose error is too long."""
    text = repr(value[:LONGEST_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


class Parameters:
    """Reads the thresholds out of requests.

    Args:
        config: The model's `parameters` of config.pbtxt by name: CONF, IOU, MAX_DET and IGNORED_PARAMETERS, each
            optional. A MAX_DET above the detector's number of candidates means that number.
        candidates: The detector's number of candidates per image, the highest `max_det` there can be.

    Raises:
        ValueError: A default is no number or out of range, or IGNORED_PARAMETERS is no regular expression.
    """

    def __init__(self, config: Mapping[str, str], candidates: int) -> None:
        self._ranges = {"conf": _Range(float, 0, 1), "iou": _Range(float, 0, 1), "max_det": _Range(int, 1, candidates)}
        self.defaults = self._configured(config)
        self._ignored = _ignored_names(config)

    def of_request(self, text: str) -> Thresholds:
        """The thresholds of one request: the defaults, overridden by what the request says.

        Args:
            text: The request's parameters as Triton hands them over, a JSON object.

        Raises:
            RequestError: A parameter is unknown, of the wrong type, or out of range.
        """
        # Almost every request has none.
        given = {} if text in ("", "{}") else json.loads(text)
        known: dict[str, Any] = {}
        for name, value in given.items():
            if name not in self._ranges:
                if self._ignored.fullmatch(name):
                    continue
                names = ", ".join(f"{known_name} ({values})" for known_name, values in self._ranges.items())
                raise RequestError(
                    f"unknown request parameter {shown(name)} (given: {shown(value)}); known are {names}"
                )
            if value not in self._ranges[name]:
                found = f"{shown(value)} ({type(value).__name__})"
                raise RequestError(f"request parameter {name!r}: expected {self._ranges[name]}, found {found}")
            known[name] = value
        return replace(self.defaults, **known) if known else self.defaults

    def _configured(self, config: Mapping[str, str]) -> Thresholds:
        """The defaults: those of config.pbtxt, and for what it leaves out those of `Thresholds`."""
        defaults: dict[str, Any] = {}
        for name, values in self._ranges.items():
            text = config.get(name.upper(), str(getattr(Thresholds(), name)))
            try:
                value = values.kind(text)
            except ValueError:
                value = None
            if name == "max_det" and value is not None:
                value = min(value, values.highest)
            if value not in values:
                raise ValueError(f"parameter {name.upper()} in config.pbtxt: expected {values}, found {text!r}")
            defaults[name] = value
        return Thresholds(**defaults)


@dataclass(frozen=True)
class Preprocessing:
    """What config.pbtxt sets of yolox_preprocess.

    Attributes:
        max_pixels: Images of more are refused.
        reduced: Whether large JPEGs are decoded smaller than they are.
        threads: Over which the images of a request are spread.
        read_within_s: Seconds in which the detector begins to read what was left for it in shared memory.
    """

    max_pixels: int
    reduced: bool
    threads: int
    read_within_s: int

    @classmethod
    def of_config(cls, config: Mapping[str, str], max_pixels: int) -> Preprocessing:
        """Read MAX_IMAGE_PIXELS, REDUCED_DECODING, THREADS and READ_WITHIN_S, each optional.

        Args:
            config: The model's `parameters` of config.pbtxt by name.
            max_pixels: Where config.pbtxt says nothing.

        Raises:
            ValueError: One of them is no number above 0, or neither true nor false, or READ_WITHIN_S is above 50.
        """
        read_within_s = positive_integer(config, "READ_WITHIN_S", MOST_READ_WITHIN_S)
        if read_within_s > MOST_READ_WITHIN_S:
            raise ValueError(
                f"parameter READ_WITHIN_S in config.pbtxt: expected at most {MOST_READ_WITHIN_S}, after which nothing "
                f"is read any more, found {read_within_s}"
            )
        return cls(
            positive_integer(config, "MAX_IMAGE_PIXELS", max_pixels),
            boolean(config, "REDUCED_DECODING", default=False),
            positive_integer(config, "THREADS", 2),
            read_within_s,
        )


def positive_integer(config: Mapping[str, str], name: str, default: int) -> int:
    """A parameter of config.pbtxt that is a count.

    Args:
        config: The model's `parameters` of config.pbtxt by name.
        name: The parameter's name.
        default: Its value where config.pbtxt does not give it.

    Raises:
        ValueError: It is no whole number above 0.
    """
    text = config.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"parameter {name} in config.pbtxt: expected a whole number above 0, found {text!r}")
    return int(text)


def boolean(config: Mapping[str, str], name: str, *, default: bool) -> bool:
    """A parameter of config.pbtxt that is true or false.

    Args:
        config: The model's `parameters` of config.pbtxt by name.
        name: The parameter's name.
        default: Its value where config.pbtxt does not give it.

    Raises:
        ValueError: It is neither.
    """
    text = config.get(name, str(default)).lower()
    if text not in ("true", "false"):
        raise ValueError(f"parameter {name} in config.pbtxt: expected true or false, found {text!r}")
    return text == "true"


def _ignored_names(config: Mapping[str, str]) -> re.Pattern[str]:
    """What to pass over: names that Triton keeps to itself, and those that config.pbtxt names."""
    text = config.get("IGNORED_PARAMETERS", "")
    try:
        return re.compile(f"triton_.*|{text}")
    except re.error as error:
        raise ValueError(
            f"parameter IGNORED_PARAMETERS in config.pbtxt: expected a regular expression, found {text!r}: {error}"
        ) from None
