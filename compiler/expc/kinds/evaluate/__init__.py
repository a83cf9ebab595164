"""`evaluate`: measure what a trained stage has learned, with its verified checkpoint and its held-out episodes."""

from __future__ import annotations

from expc.kinds.core import Kind
from expc.kinds.evaluate.lower import lower
from expc.kinds.evaluate.shape import Evaluate, logged, parents

EVALUATE = Kind(
    "evaluate",
    "measure what a trained stage has learned",
    Evaluate,
    parents,
    logged,
    lower,
    undivided=(
        "nothing is trained, so there are no gradients to gather",
        "measure fewer `episodes` in the spec, in all runs alike",
    ),
)
