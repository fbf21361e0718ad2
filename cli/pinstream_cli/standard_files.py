"""stdin, stdout and stderr, which a program may be started without, as by `2>&-`."""

from __future__ import annotations

import os
import sys
from typing import cast

STDERR = 2


def open_standard_files() -> None:
    """Open those on nothing that are closed.

    Else the next file that is opened takes the number of one, and whatever writes to stderr writes there: ONNX Runtime
    opens a database as it is imported.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if cast(object, sys.stderr) is None:
        sys.stderr = os.fdopen(STDERR, "w", closefd=False)
