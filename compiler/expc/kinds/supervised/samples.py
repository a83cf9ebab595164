"""What one row of a supervised batch is, as far as the declarations say it."""

from __future__ import annotations

from expc.components.core import Column
from expc.components.data import columns_of
from expc.experiment import Stage
from expc.ir import ClassId, Program
from expc.kinds.core import Sample


def samples(stage: Stage, program: Program) -> dict[str, Sample]:
    """The columns of a batch, in its order. A column of a file, or of the user's own source, has no declared shape."""
    use = stage.uses["data"]
    known = columns_of(use)
    declared = bool(use.component.columns) and not use.component.own
    names = dict(program.feed.build.kwargs)["columns"]
    assert isinstance(names, tuple)
    return {str(name): _sample(known[str(name)], declared) for name in names}


def _sample(column: Column, declared: bool) -> Sample:
    dtype = column.dtype or ("int64" if column.port is ClassId else "float32")
    shape = column.shape if declared or column.shape or column.port is ClassId else None
    return Sample(shape, dtype)
