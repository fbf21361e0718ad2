"""Measurements beside `pinstream bench`; run from the repository's root: `python -m benchmarks.startup --help`.

They may use the tests' models and pictures and the service's own steps, whose directory is in no package.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "model_repository" / "yolox" / "1"))
