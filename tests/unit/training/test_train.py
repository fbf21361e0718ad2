"""The schedule, the moving average, what a step is made of - and that a network learns at all."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training is done by PyTorch, which nothing else here needs")

import training.train  # noqa: E402
from training.pool import PicturePool  # noqa: E402
from training.train import EMA_STEPS, PLAIN_FROM, WARM_UP, Options, Trainer, schedule, train  # noqa: E402

SIZE = 64


def test_the_learning_rate_warms_up_linearly_to_its_highest_value() -> None:
    assert schedule(0.0) == 0.01, "the first step is one, too"
    assert schedule(WARM_UP / 2) == pytest.approx(0.5)
    assert schedule(WARM_UP) == pytest.approx(1.0)
    assert schedule(WARM_UP - 1e-9) == pytest.approx(schedule(WARM_UP), abs=1e-6)


def test_the_learning_rate_falls_as_a_cosine_to_two_percent() -> None:
    middle = WARM_UP + (1 - WARM_UP) / 2
    assert schedule(middle) == pytest.approx(0.51)
    assert schedule(WARM_UP + (1 - WARM_UP) / 4) == pytest.approx(0.02 + 0.98 * (1 + 0.5**0.5) / 2)
    assert schedule(1.0) == pytest.approx(0.02)
    assert schedule(1.3) == pytest.approx(0.02), "the last step may end after the time is up"
    falling = [schedule(progress) for progress in np.linspace(WARM_UP, 1, 50)]
    assert falling == sorted(falling, reverse=True)


@pytest.fixture(scope="module")
def pool() -> PicturePool:
    pool = PicturePool(0, 8, SIZE, processes=2)
    pool.move_to(torch.device("cpu"))
    pool.wait(8)
    return pool


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    return Options(
        model="nano",
        device="cpu",
        minutes=0.1,
        size=SIZE,
        batch=4,
        learning_rate=2e-3,
        pictures=8,
        held_out=8,
        processes=2,
        report_seconds=60.0,
        compile=False,
        seed=0,
        out=tmp_path_factory.mktemp("trained"),
    )


@pytest.fixture
def trainer(options: Options, pool: PicturePool) -> Trainer:
    return Trainer(options, pool, pool)


def test_the_average_follows_fast_at_first_and_slowly_in_the_end(trainer: Trainer) -> None:
    for steps, share in ((1, 1 / 1.2), (10, 1 / 3), (5 * EMA_STEPS, 1 / EMA_STEPS)):
        before = {name: value.clone() for name, value in trainer.average.state_dict().items()}
        trainer.steps = steps - 1
        trainer.step(0.1)
        now = trainer.model.state_dict()
        for name, average in trainer.average.state_dict().items():
            if average.is_floating_point():  # weights, and the statistics of batch norm
                wanted = torch.lerp(before[name], now[name], share)
                torch.testing.assert_close(average, wanted, rtol=1e-4, atol=1e-6)


def test_the_average_is_in_evaluation_mode_and_learns_nothing_by_itself(trainer: Trainer) -> None:
    trainer.step(0.1)
    assert trainer.model.training
    assert not trainer.average.training
    assert all(parameter.grad is None for parameter in trainer.average.parameters())


def test_only_weights_decay_and_each_is_trained_once(trainer: Trainer) -> None:
    decayed, others = trainer.optimizer.param_groups
    assert decayed["weight_decay"] > others["weight_decay"] == 0
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    trained = [id(parameter) for group in (decayed, others) for parameter in group["params"]]
    assert sorted(trained) == sorted(map(id, trainer.model.parameters()))


@pytest.mark.parametrize(("progress", "ending"), [(0.1, False), (PLAIN_FROM - 0.01, False), (PLAIN_FROM, True)])
def test_at_the_end_there_are_plain_pictures_and_an_l1_loss(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, progress: float, ending: bool
) -> None:
    asked: list[bool] = []
    batch = trainer._batch

    def watched(mosaics: bool) -> object:
        asked.append(mosaics)
        return batch(mosaics)

    monkeypatch.setattr(trainer, "_batch", watched)
    trainer.dice = np.random.default_rng(3)  # whose first number is below one half
    parts = trainer.step(progress)
    assert asked == [not ending]
    assert ("l1" in parts) is ending
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {2e-3 * schedule(progress)}


def test_a_network_learns_eight_pictures(options: Options, pool: PicturePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.train, "MOSAIC_PROBABILITY", 0.0)
    trainer = Trainer(dataclasses.replace(options, batch=8, learning_rate=5e-3), pool, pool)

    def total(parts: dict[str, Any]) -> float:
        return sum(float(loss) for loss in parts.values())

    losses = [total(trainer.step(0.2)) for _ in range(40)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_training_leaves_everything_that_the_readme_names(options: Options) -> None:
    out = options.out / "whole"
    metrics = train(dataclasses.replace(options, minutes=0.15, report_seconds=2.0, out=out))
    names = {path.name for path in out.iterdir()}
    assert names == {"model.onnx", "weights.pt", "curve.jsonl", "metrics.json", *(f"sample_{i}.png" for i in range(3))}
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["steps"] * options.batch == metrics["images"] > 0
    assert 0 <= metrics["AP"] <= metrics["AP50"] <= 1
    curve = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert [line["AP50"] for line in curve if "AP50" in line], "the report within and the one at the end"
