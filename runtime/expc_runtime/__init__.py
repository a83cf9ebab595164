"""What generated experiments import: training steps, guards, state, data, models, losses."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"

__all__ = ["load"]


def load(run: str | Path, *, best: str | None = None) -> "nn.Module":
    """The trained module of the stage folder ``run``; see `expc_runtime.export.load`."""
    from expc_runtime import export  # torch is not for everyone who reads state files

    return export.load(run, best=best)
