"""Which class of a model is which category of an annotation file."""

import pytest

from pinstream_cli.errors import CommandError
from pinstream_cli.evaluation.classes import match_classes
from pinstream_client import COCO

PETS = {3: "cat", 7: "dog", 9: "fish"}


def test_names_that_agree_decide_whatever_their_order() -> None:
    found = match_classes(["Dog ", "fish", "cat"], PETS)
    assert found.categories == (7, 9, 3)
    assert found.notes == ()


def test_coco_s_ids_have_gaps() -> None:
    # As in COCO's own file, where 12, 26, 29, 30, 45, 66, 68, 69, 71 and 83 are missing.
    ids = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    found = match_classes(COCO, dict(zip(ids, COCO, strict=True)))
    assert found.categories == tuple(ids)
    assert found.notes == ()


def test_classes_without_names_go_by_order_and_say_so() -> None:
    found = match_classes(["class_0", "class_1", "class_2"], PETS)
    assert found.categories == (3, 7, 9)
    (note,) = found.notes
    assert note == "3 of 3 classes matched by order, not by name: class_0 = cat, class_1 = dog, class_2 = fish"


def test_a_renamed_class_takes_the_place_that_no_name_has_taken() -> None:
    found = match_classes(["cat", "hound", "fish"], PETS)
    assert found.categories == (3, 7, 9)
    assert found.notes == ("1 of 3 classes matched by order, not by name: hound = dog",)


def test_a_place_that_another_class_has_by_name_is_not_given_away() -> None:
    # At dog's place stands a stranger, and dog stands at fish's.
    found = match_classes(["cat", "bird", "dog"], PETS)
    assert found.categories == (3, None, 7)
    assert found.notes == (
        "1 of 3 classes are not in the file and left out: bird",
        "1 categories of the file are none of the model's, and count as not found: fish",
    )


def test_other_numbers_of_classes_match_by_name_alone() -> None:
    found = match_classes(COCO, PETS)
    assert found.categories[COCO.index("cat")] == 3
    assert found.categories[COCO.index("dog")] == 7
    assert sum(category is not None for category in found.categories) == 2
    left_out, unknown = found.notes
    assert left_out.startswith("78 of 80 classes are not in the file and left out: person, ")
    assert unknown.endswith("count as not found: fish")


def test_fewer_classes_than_categories_are_said() -> None:
    found = match_classes(["fish"], PETS)
    assert found.categories == (9,)
    assert found.notes == ("2 categories of the file are none of the model's, and count as not found: cat, dog",)


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(CommandError, match=r"80 classes \(person.*\) are not the file's 2 categories \(ball, cube\)"):
        match_classes(COCO, {1: "ball", 2: "cube"})
