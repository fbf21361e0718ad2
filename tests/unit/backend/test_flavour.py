"""Finding TensorRT, its log, its plugins, its data types."""

import _ctypes
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pinstream.engines.flavour import Flavour, leading_numbers, load_flavour, made, register_plugins, triton_dtype, why
from pinstream.errors import ModelFileError
from tests.rtx import installed_rtx

PLUGIN = Path(__file__).parents[2] / "data" / "plugin.cpp"


@pytest.fixture
def rtx() -> Flavour:
    return installed_rtx()


def fail_to_build(flavour: Flavour) -> None:
    """Makes TensorRT log an error: an empty network."""
    builder = flavour.module.Builder(flavour.logger)
    network = builder.create_network(0)
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None


def test_rtx_is_found_by_its_name_and_by_itself(rtx: Flavour) -> None:
    assert rtx.name == "tensorrt_rtx"
    assert rtx.is_rtx
    assert str(rtx) == f"tensorrt_rtx {rtx.module.__version__}"
    assert load_flavour("auto").name in ("tensorrt", "tensorrt_rtx")


def test_a_named_flavour_is_the_only_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # Python's own way to make an import fail
    with pytest.raises(ModelFileError, match=r"no TensorRT here \(tensorrt: .*pip install tensorrt`") as caught:
        load_flavour("tensorrt")
    assert "rtx" not in str(caught.value)


def test_without_any_the_message_names_all_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelFileError, match=r"tensorrt: .*; tensorrt_rtx: .*; tensorrt_rtx_bindings: ") as caught:
        load_flavour()
    assert "pip install tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings" in str(caught.value)


def test_one_that_is_too_old_is_told_from_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # so that what is imported here is gone afterwards
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.0.1'")
    with pytest.raises(ModelFileError, match=r"tensorrt 10.0.1 is too old, 10.1 is needed"):
        load_flavour("tensorrt")


def test_numbers_of_a_version() -> None:
    assert leading_numbers("10.13.3.9.post1") == (10, 13, 3, 9)
    assert leading_numbers("11.1.0.106") > leading_numbers("10.16.1.11")
    assert leading_numbers("") == ()


def test_what_cannot_be_made_without_a_gpu_says_so(rtx: Flavour) -> None:
    def nothing(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(ModelFileError, match=r"cannot build a plan here \(pybind11.*needs a GPU .*, or sell it"):
        made(rtx, nothing, "build a plan", "sell it")


def test_a_broken_or_foreign_module_is_told_from_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # so that what is imported here is gone afterwards
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    with pytest.raises(ModelFileError, match=r"tensorrt: libnvinfer.so.10: cannot open"):
        load_flavour("tensorrt")
    (tmp_path / "tensorrt.py").unlink()
    (tmp_path / "tensorrt").mkdir()
    with pytest.raises(ModelFileError, match="tensorrt: something else of that name is in the way"):
        load_flavour("tensorrt")


def test_an_unknown_flavour_is_refused() -> None:
    with pytest.raises(ModelFileError, match="choose auto, tensorrt or tensorrt_rtx"):
        load_flavour("openvino")


def test_there_is_one_logger_and_it_keeps_errors_until_they_are_taken(rtx: Flavour) -> None:
    assert rtx.logger is load_flavour("tensorrt_rtx").logger
    rtx.logger.take_errors()
    fail_to_build(rtx)
    errors = rtx.logger.take_errors()
    assert len(errors) == 1, "the line without content is left out"
    assert "Network must have at least one output" in errors[0]
    assert rtx.logger.take_errors() == []
    fail_to_build(rtx)
    text = why(rtx)
    assert "Network must have at least one output" in text
    assert ".cpp" not in text, "places in TensorRT's source tell users nothing"
    assert why(rtx) == "it gave no reason"


def test_messages_go_to_the_sink_with_levels_of_logging(rtx: Flavour, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "pinstream.tensorrt"):
        fail_to_build(rtx)
    assert "at least one output" in caplog.text
    seen: list[tuple[int, str]] = []
    usual, rtx.logger.sink = rtx.logger.sink, lambda level, text: seen.append((level, text))
    try:
        fail_to_build(rtx)
    finally:
        rtx.logger.sink = usual
    assert any(level == logging.ERROR and "at least one output" in text for level, text in seen)


def test_plugin_libraries_load_and_an_error_names_the_file(rtx: Flavour, tmp_path: Path) -> None:
    register_plugins(rtx)
    register_plugins(rtx, [Path(_ctypes.__file__)])  # a shared library without plugins does no harm
    text = tmp_path / "plugin.so"
    text.write_text("no library")
    with pytest.raises(ModelFileError, match=r"plugin\.so cannot be loaded: .*(invalid ELF header|file too short)"):
        register_plugins(rtx, [text])
    with pytest.raises(ModelFileError, match=r"absent\.so: no such file; correct PLUGINS"):
        register_plugins(rtx, [tmp_path / "absent.so"])


def test_a_library_is_asked_for_its_plugins_once_by_whatever_name_it_comes(
    rtx: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("c++") or pytest.skip("needs a C++ compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "plugin.so", PLUGIN], check=True, timeout=60)
    (tmp_path / "link.so").symlink_to("plugin.so")
    monkeypatch.chdir(tmp_path)
    register_plugins(rtx, map(Path, ("plugin.so", "./plugin.so", "link.so")))  # as of PLUGINS="plugin.so;./plugin.so"
    register_plugins(rtx, [tmp_path / "plugin.so"])  # as of a second engine in this process
    registry = rtx.module.get_plugin_registry()
    assert [creator.name for creator in registry.all_creators].count("PinstreamTest") == 1
    shutil.copy("plugin.so", "copy.so")
    with pytest.raises(ModelFileError, match=r"copy\.so is refused by .* another library has brought already"):
        register_plugins(rtx, [Path("copy.so")])


def test_data_types_are_triton_s_and_others_are_refused(rtx: Flavour) -> None:
    trt = rtx.module
    assert {name: triton_dtype(getattr(trt.DataType, name), "x") for name in ("FLOAT", "HALF", "BF16", "UINT8")} == {
        "FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "UINT8": "UINT8",
    }  # fmt: skip
    assert [triton_dtype(getattr(trt.DataType, n), "x") for n in ("INT8", "INT32", "INT64", "BOOL")] == [
        "INT8", "INT32", "INT64", "BOOL",
    ]  # fmt: skip
    with pytest.raises(ModelFileError, match="tensor scores has TensorRT's data type FP8, which Triton cannot carry"):
        triton_dtype(trt.DataType.FP8, "scores")
