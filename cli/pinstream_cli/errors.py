"""Failures that the command line reports in one line."""


class CommandError(Exception):
    """Something the user can act on: what was found, what was expected, what to do. Printed without a traceback."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
