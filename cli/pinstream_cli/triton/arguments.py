"""tritonserver's own arguments, as a user gives them to `pinstream serve`."""

from __future__ import annotations

from collections.abc import Sequence

CONTROL = "--model-control-mode"


def without(option: str, arguments: Sequence[str]) -> list[str]:
    """The arguments less those that set an option, found as `values_of` finds it."""
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if skip:
            skip = False
        elif _is(option, name):
            skip = not equals
        else:
            kept.append(argument)
    return kept


def values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """What the arguments set an option to: `--name=value` or `--name value`.

    Args:
        option: Its whole name. Like getopt, this finds it cut short as well, as far as to `--grpc-r`.
        arguments: tritonserver's arguments.
    """
    values = []
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=False):
        name, equals, value = argument.partition("=")
        if _is(option, name):
            values.append(value if equals else following)
    return values


def control_mode(arguments: Sequence[str]) -> str:
    """Triton's model control mode: none, poll or explicit, in whatever letters it is given."""
    return (values_of(CONTROL, arguments) or ["none"])[-1].lower()


def _is(option: str, name: str) -> bool:
    return len(name) >= option.index("-", 2) + 2 and option.startswith(name)
