"""Which class of the model is which category of the annotation file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pinstream_cli.errors import CommandError

_SHOWN = 4


@dataclass(frozen=True)
class ClassMap:
    """The classes of a model among the categories of a file.

    Attributes:
        categories: For every class number the category id, or None for a class that the file does not have.
        notes: What a reader has to know of it, a line each; empty where every name agrees.
    """

    categories: tuple[int | None, ...]
    notes: tuple[str, ...]


def match_classes(names: Sequence[str], categories: Mapping[int, str]) -> ClassMap:
    """Matches by name where names agree, and otherwise by order.

    Args:
        names: The model's class names by class number.
        categories: The file's category names by id, in their order.

    Raises:
        CommandError: No name agrees and the numbers differ, so that nothing says what belongs together.
    """
    ids = {_plain(name): number for number, name in categories.items()}
    by_name = tuple(ids.get(_plain(name)) for name in names)
    strangers = [name for name, number in zip(names, by_name, strict=True) if number is None]
    unknown = {number: name for number, name in categories.items() if number not in by_name}
    if not strangers:
        return ClassMap(by_name, _unseen(unknown))
    if len(names) == len(categories):
        return _by_order(names, categories, by_name)
    if len(strangers) == len(names):
        raise CommandError(
            f"the model's {len(names)} classes ({_some(names)}) are not the file's {len(categories)} categories "
            f"({_some(list(categories.values()))}): no name agrees and their numbers differ; "
            "evaluate on annotations of what the model was trained for"
        )
    note = f"{len(strangers)} of {len(names)} classes are not in the file and left out: {_some(strangers)}"
    return ClassMap(by_name, (note, *_unseen(unknown)))


def _by_order(names: Sequence[str], categories: Mapping[int, str], by_name: tuple[int | None, ...]) -> ClassMap:
    """Classes without a namesake become the category of their place, where no other class has that one's name."""
    taken = {number for number in by_name if number is not None}
    matched, renamed, left_out = list(by_name), [], []
    for index, number in enumerate(categories):
        if by_name[index] is not None:
            continue
        if number in taken:
            left_out.append(names[index])
        else:
            matched[index] = number
            renamed.append(f"{names[index]} = {categories[number]}")
    notes = []
    if renamed:
        notes.append(f"{len(renamed)} of {len(names)} classes matched by order, not by name: {_some(renamed)}")
    if left_out:
        notes.append(f"{len(left_out)} of {len(names)} classes are not in the file and left out: {_some(left_out)}")
    unknown = {number: name for number, name in categories.items() if number not in matched}
    return ClassMap(tuple(matched), (*notes, *_unseen(unknown)))


def _unseen(unknown: Mapping[int, str]) -> tuple[str, ...]:
    if not unknown:
        return ()
    names = list(unknown.values())
    return (f"{len(names)} categories of the file are none of the model's, and count as not found: {_some(names)}",)


def _plain(name: str) -> str:
    return name.strip().casefold()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
