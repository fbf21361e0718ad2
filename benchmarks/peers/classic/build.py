"""The classic loop's model directory: an FP16 export with a dynamic batch, a plan as trtexec builds it, model.py.

python -m benchmarks.peers.classic.build --model m --size 640 --out peers/classic
"""

import argparse
import shutil
import warnings
from pathlib import Path

import torch

from benchmarks.peers.torch.network import half_network
from pinstream.engines.flavour import load_flavour

HERE = Path(__file__).parent
OPTIMAL, LARGEST = 8, 32


def export(model: str, size: int, file: Path) -> int:
    """Write `images` FP16 [batch, 3, size, size] to `output` FP16 [batch, rows, 85]; the rows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = half_network(model, 80, 0).to(device)
    image = torch.zeros(1, 3, size, size, dtype=torch.float16, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (image,),
            str(file),
            input_names=["images"],
            output_names=["output"],
            dynamic_axes={"images": {0: "batch"}, "output": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    return sum((size // stride) ** 2 for stride in (8, 16, 32))


def build(file: Path, size: int, plan: Path) -> None:
    """As `trtexec --onnx --minShapes --optShapes --maxShapes --saveEngine` does: one profile, defaults otherwise."""
    flavour = load_flavour()
    trt = flavour.module
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(file.read_bytes()):
        raise SystemExit(f"{file}: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    if not flavour.is_rtx and hasattr(trt.BuilderFlag, "FP16"):  # elsewhere the types are those of the graph
        config.set_flag(trt.BuilderFlag.FP16)
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *((batch, 3, size, size) for batch in (1, OPTIMAL, LARGEST)))
    config.add_optimization_profile(profile)
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise SystemExit(f"{file}: no plan could be built")
    plan.write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="m")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    version = options.out / "1"
    version.mkdir(parents=True, exist_ok=True)
    rows = export(options.model, options.size, options.out / "model.onnx")
    build(options.out / "model.onnx", options.size, version / "model.plan")
    shutil.copyfile(HERE / "1" / "model.py", version / "model.py")
    config = (HERE / "config.pbtxt").read_text().replace("$SIZE", str(options.size)).replace("$ROWS", str(rows))
    (options.out / "config.pbtxt").write_text(config)


if __name__ == "__main__":
    main()
