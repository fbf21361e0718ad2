"""Thresholds: defaults of config.pbtxt, what a request may say, and the words for what it may not."""

from __future__ import annotations

import re

import pytest

from yolox_steps.errors import RequestError
from yolox_steps.parameters import Parameters, Preprocessing, Thresholds, positive_integer

CONFIG = {"CONF": "0.3", "IOU": "0.5", "MAX_DET": "20"}


@pytest.mark.parametrize("text", ["", "{}"])
def test_a_request_without_parameters_gets_the_defaults(text: str) -> None:
    assert Parameters(CONFIG, 300).of_request(text) == Thresholds(0.3, 0.5, 20)
    assert Parameters({}, 300).of_request(text) == Thresholds(0.25, 0.45, 100)


def test_a_request_overrides_one_or_all() -> None:
    parameters = Parameters(CONFIG, 300)
    assert parameters.of_request('{"iou": 0.7}') == Thresholds(0.3, 0.7, 20)
    assert parameters.of_request('{"conf": 0.1, "iou": 0.2, "max_det": 3}') == Thresholds(0.1, 0.2, 3)
    assert parameters.of_request("{}") == Thresholds(0.3, 0.5, 20)


@pytest.mark.parametrize(
    "text", ['{"conf": 0}', '{"conf": 1}', '{"iou": 0.0}', '{"iou": 1.0}', '{"max_det": 1}', '{"max_det": 300}']
)
def test_the_ends_of_a_range_belong_to_it(text: str) -> None:
    Parameters({}, 300).of_request(text)


@pytest.mark.parametrize("name", ["conf", "iou"])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("-0.01", "-0.01 (float)"),
        ("1.01", "1.01 (float)"),
        ("2", "2 (int)"),
        ("NaN", "nan (float)"),
        ("Infinity", "inf (float)"),
        ("true", "True (bool)"),
        ('"0.5"', "'0.5' (str)"),
    ],
)
def test_a_fraction_out_of_range_or_of_another_type(name: str, value: str, found: str) -> None:
    expected = re.escape(f"request parameter '{name}': expected a number from 0 to 1, found {found}")
    with pytest.raises(RequestError, match=expected):
        Parameters({}, 300).of_request(f'{{"{name}": {value}}}')


@pytest.mark.parametrize(
    ("value", "found"),
    [("0", "0 (int)"), ("301", "301 (int)"), ("5.0", "5.0 (float)"), ("true", "True (bool)"), ('"5"', "'5' (str)")],
)
def test_a_count_out_of_range_or_of_another_type(value: str, found: str) -> None:
    expected = re.escape(f"request parameter 'max_det': expected a whole number from 1 to 300, found {found}")
    with pytest.raises(RequestError, match=expected):
        Parameters({}, 300).of_request(f'{{"max_det": {value}}}')


def test_an_unknown_parameter_is_named_along_with_the_known_ones() -> None:
    with pytest.raises(RequestError) as caught:
        Parameters({}, 300).of_request('{"confidence": 0.3}')
    text = str(caught.value)
    assert "'confidence' (given: 0.3)" in text
    for known in ("conf (a number from 0 to 1)", "iou (", "max_det (a whole number from 1 to 300)"):
        assert known in text


def test_names_are_case_sensitive() -> None:
    with pytest.raises(RequestError, match="unknown request parameter 'CONF'"):
        Parameters({}, 300).of_request('{"CONF": 0.3}')


def test_names_of_triton_itself_are_passed_over() -> None:
    text = '{"triton_enable_empty_final_response": true, "conf": 0.5}'
    assert Parameters({}, 300).of_request(text).conf == 0.5


def test_forwarded_headers_are_passed_over_where_configured() -> None:
    text = '{"x-request-id": "1", "traceparent": "00-1", "conf": 0.5}'
    with pytest.raises(RequestError, match="unknown"):
        Parameters({}, 300).of_request(text)
    assert Parameters({"IGNORED_PARAMETERS": "x-.*|traceparent"}, 300).of_request(text).conf == 0.5
    # The expression is for whole names.
    with pytest.raises(RequestError, match="unknown"):
        Parameters({"IGNORED_PARAMETERS": "x"}, 300).of_request(text)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"CONF": "1.5"}, "parameter CONF in config.pbtxt: expected a number from 0 to 1, found '1.5'"),
        ({"IOU": "much"}, "parameter IOU in config.pbtxt: expected a number from 0 to 1, found 'much'"),
        ({"CONF": "nan"}, "parameter CONF in config.pbtxt"),
        ({"MAX_DET": "0"}, "parameter MAX_DET in config.pbtxt: expected a whole number from 1 to 300, found '0'"),
        ({"MAX_DET": "1.5"}, "parameter MAX_DET in config.pbtxt"),
        ({"IGNORED_PARAMETERS": "("}, "parameter IGNORED_PARAMETERS in config.pbtxt: expected a regular expression"),
    ],
)
def test_a_wrong_default_is_found_when_the_model_loads(config: dict[str, str], expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        Parameters(config, 300)


def test_the_default_of_max_det_ends_at_the_number_of_candidates() -> None:
    assert Parameters({"MAX_DET": "100"}, 50).defaults.max_det == 50
    assert Parameters({}, 50).defaults.max_det == 50


def test_positive_integer() -> None:
    assert positive_integer({"THREADS": "3"}, "THREADS", 2) == 3
    assert positive_integer({}, "THREADS", 2) == 2
    for text in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(ValueError, match=r"parameter THREADS in config\.pbtxt: expected a whole number above 0"):
            positive_integer({"THREADS": text}, "THREADS", 2)


@pytest.mark.parametrize("text", ['{"conf": "%s"}', '{"%s": 1}', '{"a": "%s"}'])
def test_however_long_what_was_sent_is_the_error_is_not(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        Parameters({}, 300).of_request(text % ("x" * 100_000))
    assert "xxx..." in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["0", "51", "5.0", "soon"])
def test_pictures_are_read_within_a_minute(text: str) -> None:
    assert Preprocessing.of_config({}, 1).read_within_s == 50
    assert Preprocessing.of_config({"READ_WITHIN_S": "5"}, 1).read_within_s == 5
    with pytest.raises(ValueError, match=r"parameter READ_WITHIN_S in config\.pbtxt: expected "):
        Preprocessing.of_config({"READ_WITHIN_S": text}, 1)
