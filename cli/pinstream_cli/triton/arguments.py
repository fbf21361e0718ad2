"""tritonserver's own arguments, as a user gives them to `pinstream serve`."""

from __future__ import annotations

from collections.abc import Sequence


def values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """What the arguments set an option to: `--name=value` or `--name value`.

    Args:
        option: Its whole name. Like getopt, this finds it cut short as well, as far as to `--grpc-r`.
        arguments: tritonserver's arguments.
    """
    shortest = option.index("-", 2) + 2
    values = []
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=False):
        name, equals, value = argument.partition("=")
        if len(name) >= shortest and option.startswith(name):
            values.append(value if equals else following)
    return values
