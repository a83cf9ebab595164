"""Held-out episodes, as a world model's training leaves them, and the events in them."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expc_runtime.errors import BadValue, MissingInput

__all__ = ["DECLARED", "HELD_OUT", "Episode", "event", "frame_delta", "held_out", "large_deltas"]

HELD_OUT = "held_out"  # folder in that of the stage that played them, rewritten as it is measured
DECLARED = "event_"  # begins the key of an event that the environment declares

Flags = NDArray[np.bool_]
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Episode:
    """One whole episode, L frames from its reset on; row t belongs to the frame after action t."""

    name: str
    image: NDArray[np.uint8]  # (L, H, W, C)
    action: NDArray[np.float32]  # (L, A), the one that led to the frame; zeros in the first
    reward: NDArray[np.float32]  # (L,)
    is_first: Flags  # (L,)
    declared: Mapping[str, Flags]  # by event, (L,) each

    def __len__(self) -> int:
        return len(self.image)


def held_out(stage: Path, limit: int) -> list[Episode]:
    """The first ``limit`` held-out episodes in the folder of ``stage``, by number.

    Raises MissingInput: there is none, or one cannot be read.
    """
    folder = stage / HELD_OUT
    files = sorted(folder.glob("*.npz"), key=lambda path: (len(path.stem), path.stem))
    if not files:
        raise MissingInput(f"{stage} has held out no episodes: {folder} has none")
    return [_read(path) for path in files[:limit]]


def _read(path: Path) -> Episode:
    try:
        with np.load(path) as file:
            columns = {key: file[key] for key in file.files}
        return _episode(path.stem, columns)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise MissingInput(f"the episode {path} cannot be read: {error}") from error


def _episode(name: str, columns: Mapping[str, NDArray[Any]]) -> Episode:
    declared = {
        key.removeprefix(DECLARED): np.asarray(column, dtype=np.bool_)
        for key, column in columns.items()
        if key.startswith(DECLARED)
    }
    episode = Episode(
        name=name,
        image=columns["image"],
        action=np.asarray(columns["action"], dtype=np.float32),
        reward=np.asarray(columns["reward"], dtype=np.float32),
        is_first=np.asarray(columns["is_first"], dtype=np.bool_),
        declared=declared,
    )
    lengths = {
        len(c) for c in (episode.action, episode.reward, episode.is_first, *declared.values())
    }
    if lengths != {len(episode)} or not len(episode):
        raise ValueError(f"{len(episode)} frames, but columns of {sorted(lengths)}")
    return episode


def frame_delta(image: NDArray[np.uint8]) -> Reals:
    """(L,) how much each frame differs from the one before it: mean over pixels and channels, 0..255.

    The first has none before it and gets 0.
    """
    delta = np.zeros(len(image))
    steps = np.abs(np.diff(image.astype(np.int16), axis=0))
    delta[1:] = steps.reshape(len(steps), -1).mean(axis=1) if len(steps) else 0.0
    return delta


def large_deltas(delta: Reals, percentile: float) -> Flags:
    """(L,) frames whose delta reaches the ``percentile`` of the episode (linear interpolation).

    On a picture that changes in few sizes, ties make this many more frames than the percentile says.
    """
    return delta >= np.percentile(delta, percentile)


def event(episode: Episode, name: str, percentile: float) -> Flags:
    """(L,) where the event ``name`` is: computed from pixels and rewards, or declared by the env.

    Raises BadValue for an event that neither knows.
    """
    rewarded = np.abs(episode.reward) > 0
    if name == "reward":
        return rewarded
    if name in ("frame_delta", "reward_or_delta"):
        large = large_deltas(frame_delta(episode.image), percentile)
        return large | rewarded if name == "reward_or_delta" else large
    if name not in episode.declared:
        known = ", ".join(["reward", "frame_delta", "reward_or_delta", *episode.declared])
        raise BadValue(f"episode {episode.name} has no event {name}; it has {known}")
    return episode.declared[name]
