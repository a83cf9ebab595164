"""Handwritten digits that come with scikit-learn: 1,797 images of 8 x 8, no download."""

import gzip
import importlib.util
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from expc_runtime.errors import MissingInput

__all__ = ["Digits"]

LOOPS = (0, 6, 8, 9)


class Digits:
    """The UCI optical digits (test part), as bundled with scikit-learn.

    Columns: ``image`` (N, 1, 8, 8) float32 in [0, 1]; ``digit`` (N,) int64; and, float32 in {0, 1},
    ``even``, ``loop`` (drawn with a closed loop: 0, 6, 8, 9) and ``zero``.
    """

    columns: ClassVar[dict[str, str]] = {
        "image": "features",
        "digit": "class",
        "even": "prob",
        "loop": "prob",
        "zero": "prob",
    }

    def tensors(self) -> dict[str, Tensor]:
        """Raises MissingInput where scikit-learn, whose file this is, is not installed."""
        with gzip.open(_file(), "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float32)
        digit = torch.from_numpy(table[:, 64]).long()
        return {
            "image": torch.from_numpy(table[:, :64]).reshape(-1, 1, 8, 8) / 16,
            "digit": digit,
            "even": (digit % 2 == 0).float(),
            "loop": torch.isin(digit, torch.tensor(LOOPS)).float(),
            "zero": (digit == 0).float(),
        }


def _file() -> Path:
    # Found, not imported: scikit-learn's own import costs more than a whole epoch.
    spec = importlib.util.find_spec("sklearn")
    if spec is not None and spec.submodule_search_locations:
        for folder in spec.submodule_search_locations:
            path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
            if path.is_file():
                return path
    raise MissingInput("the digits come with scikit-learn, which is not installed here")
