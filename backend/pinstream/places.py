"""Where models may lie: in the repositories that a server was given, and nowhere else.

What a client sends with a load (`file:1/model.onnx`) Triton puts into a temporary directory, and hands that over as the
model's. By its name nobody can tell it from the one of a repository in a cloud, which Triton copies there as well: the
server says which repositories it has.
"""

from __future__ import annotations

import os
from pathlib import Path

from pinstream.errors import ModelFileError

# In the environment of a server: its model repositories, separated by ";". Without it models may lie anywhere.
REPOSITORIES = "PINSTREAM_REPOSITORIES"


def check_place(version: Path) -> None:
    """See that a model lies in one of the server's repositories, where the server says which it has.

    Args:
        version: The directory that Triton hands over, `<repository>/<model>/<version>` or deeper.

    Raises:
        ModelFileError: It lies elsewhere.
    """
    # As Triton was given them: links are followed neither here nor there.
    repositories = [Path(path) for path in os.environ.get(REPOSITORIES, "").split(";") if path]
    if repositories and not any(map(version.is_relative_to, repositories)):
        raise ModelFileError(
            f"{version} lies in no model repository of this server, as files that are sent with a load do; expected it "
            f"in {' or '.join(map(str, repositories))}: put them into a model repository, and load the model from there"
        )
