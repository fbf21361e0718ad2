"""A pool has the pictures of its seeds, letterboxed as YOLOX does it, and says so where it cannot have them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pictures are kept by PyTorch, which nothing else here needs")

import training.pool  # noqa: E402
from pinstream_cli.yolox_reference import letterbox as yolox_letterbox  # noqa: E402
from training.pool import BLOCK, PicturePool, letterbox  # noqa: E402
from training.shapes import HELD_OUT_SEED, render  # noqa: E402

SIZE = 96


@pytest.fixture(scope="module")
def pool() -> PicturePool:
    pool = PicturePool(HELD_OUT_SEED, BLOCK + 3, SIZE, processes=2)
    pool.move_to(torch.device("cpu"))
    pool.wait(BLOCK + 3)
    return pool


@pytest.mark.parametrize("index", [0, BLOCK - 1, BLOCK, BLOCK + 2])
def test_each_place_has_the_picture_of_its_seed(pool: PicturePool, index: int) -> None:
    picture = render(HELD_OUT_SEED + index)
    height, width = picture.image.shape[:2]
    ratio = SIZE / max(height, width)
    np.testing.assert_array_equal(pool.images[index].numpy(), yolox_letterbox(picture.image, (SIZE, SIZE)))
    assert pool.extents[index].tolist() == [int(width * ratio), int(height * ratio)]
    count = len(picture.labels)
    assert pool.labels[index, :count].tolist() == picture.labels.tolist()
    assert (pool.labels[index, count:] == -1).all()
    np.testing.assert_allclose(pool.boxes[index, :count].numpy(), picture.boxes * ratio, rtol=1e-6)


def test_no_two_places_have_the_same_picture(pool: PicturePool) -> None:
    assert pool.count == pool.capacity == BLOCK + 3
    assert len({image.numpy().tobytes() for image in pool.images}) == pool.capacity


def test_waiting_for_more_than_there_will_be_ends_with_the_last(pool: PicturePool) -> None:
    pool.wait(10 * pool.capacity)


@pytest.mark.parametrize("shape", [(30, 200), (200, 30), (96, 96), (97, 41)])
def test_letterbox_is_yolox_s(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    boxed, ratio, (width, height) = letterbox(image, SIZE)
    np.testing.assert_array_equal(boxed, yolox_letterbox(image, (SIZE, SIZE)))
    assert (int(shape[0] * ratio), int(shape[1] * ratio)) == (height, width)
    assert (boxed[height:] == 114).all()
    assert (boxed[:, width:] == 114).all()


def test_a_picture_that_cannot_be_made_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(seed: int) -> object:
        raise ValueError(f"no picture of seed {seed}")

    monkeypatch.setattr(training.pool, "render", broken)  # the processes are forks and see it
    pool = PicturePool(0, 4, SIZE, processes=1)
    pool.move_to(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="only 0 of 4 pictures could be made") as caught:
        pool.wait(4)
    assert "no picture of seed 0" in str(caught.value.__cause__)
