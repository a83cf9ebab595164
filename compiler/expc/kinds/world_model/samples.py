"""What one window of replay is."""

from __future__ import annotations

from expc.experiment import Stage
from expc.ir import Flag, Program
from expc.kinds.core import Sample

FRAME = (64, 64, 3)
"""A picture of an environment: height, width, channels."""


def samples(stage: Stage, program: Program) -> dict[str, Sample]:
    """The columns of a replayed batch, in its order; time comes first in a row."""
    kwargs = dict(program.feed.build.kwargs)
    length, names = kwargs["length"], kwargs["columns"]
    assert isinstance(length, Flag) and isinstance(names, tuple)
    actions = stage.uses["env"].component.actions
    own = {
        "image": Sample((length, *FRAME)),
        "action": Sample((length, actions) if actions is not None else None),
    }
    flags = ("is_first", "is_last", "is_terminal")
    plain = {str(n): Sample((length,), "bool" if n in flags else "float32") for n in names}
    return {**plain, **{name: sample for name, sample in own.items() if name in plain}}
