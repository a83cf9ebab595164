"""`world_model`: a model of an environment learned from replay, and an actor and a critic trained in its imagination."""

from __future__ import annotations

from expc.kinds.core import Kind
from expc.kinds.world_model.lower import lower
from expc.kinds.world_model.samples import FRAME, samples
from expc.kinds.world_model.shape import WorldModel, logged, parents

WORLD_MODEL = Kind(
    "world_model",
    "learn a model of an environment from replay, and to act in its imagination",
    WorldModel,
    parents,
    logged,
    lower,
    measured="eval",
    keeps_episodes=True,
    samples=samples,
    frame=FRAME,
    undivided=(
        "each call of its phases moves targets that the next one reads: two halves would be two updates",
        "set a smaller `replay.batch` or `replay.length` in the spec, for all runs alike",
    ),
)
