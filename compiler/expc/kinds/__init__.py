"""Kinds of stage. A kind is the shape of its spec and one lowering function; it differs from others in feeds,
routines and phases, nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from expc.kinds.core import Kind
from expc.kinds.evaluate import EVALUATE
from expc.kinds.supervised import SUPERVISED
from expc.kinds.world_model import WORLD_MODEL

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (SUPERVISED, WORLD_MODEL, EVALUATE)}
