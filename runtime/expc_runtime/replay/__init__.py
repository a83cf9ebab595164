"""A feed that acts: environments are played, what they show is kept, and batches are replayed."""

from expc_runtime.replay.evaluation import Evaluate
from expc_runtime.replay.feed import Replay

__all__ = ["Evaluate", "Replay"]
