"""`supervised`: one net with named heads, each with a loss; metrics on held-out rows; a threshold or a budget."""

from __future__ import annotations

from expc.kinds.core import Kind
from expc.kinds.supervised.lower import lower
from expc.kinds.supervised.samples import samples
from expc.kinds.supervised.shape import Supervised, logged, parents

SUPERVISED = Kind(
    "supervised",
    "train one net with named heads and losses on rows",
    Supervised,
    parents,
    logged,
    lower,
    samples=samples,
)
