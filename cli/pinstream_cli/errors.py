"""Failures that the command line reports in one line."""


class CommandError(Exception):
    """Something the user can act on: what was found, what was expected, what to do. Printed without a traceback.

    Its message is one text: several arguments, as an exception takes by itself, would be printed as a tuple.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
