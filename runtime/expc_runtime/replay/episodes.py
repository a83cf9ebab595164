"""Which frames of the log are an episode, and which of them a batch is made of."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from expc_runtime.replay.games import FIRST

__all__ = ["Episodes", "Windows"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Where the frames of a batch are; (B, T) each."""

    row: Ints
    env: Ints
    is_first: NDArray[np.bool_]
    pieces: list[list[tuple[int, int, int]]]  # of each window: env, first row, frame begun at


class Episodes:
    """Episodes by environment, first row and length, oldest first; the running ones are among them.

    An episode is what lies between two firsts of one environment. ``capacity`` frames are kept: the
    oldest episodes go, but never one that still runs.
    """

    def __init__(self, envs: int, capacity: int) -> None:
        self._envs = np.arange(envs)
        self._capacity = capacity
        self._held = np.zeros((64, 3), np.int64)  # env, first row, length
        self._from, self._to = 0, 0
        self._running = np.full(envs, -1)
        self._frames = 0

    def __len__(self) -> int:
        return self._to - self._from

    @property
    def frames(self) -> int:
        """Frames of all episodes."""
        return self._frames

    @property
    def first_row(self) -> int:
        """No episode has a frame before it."""
        live = self._held[self._from : self._to, 1]
        return int(live.min()) if len(live) else 0

    def add(self, row: int, flags: NDArray[np.uint8]) -> None:
        """Frames of row ``row``, one of each environment, by their flags (envs,)."""
        begun = flags & FIRST
        if begun.any():
            for env in self._envs[begun > 0]:
                self._begin(int(env), row)
        self._held[self._running, 2] += 1
        self._frames += len(flags)
        if self._frames > self._capacity:
            self._trim()

    def _begin(self, env: int, row: int) -> None:
        if self._to == len(self._held):
            live = self._held[self._from : self._to]
            self._running -= self._from
            self._held = np.concatenate([live, np.zeros((len(live) + 64, 3), np.int64)])
            self._from, self._to = 0, len(live)
        self._held[self._to] = env, row, 0
        self._running[env] = self._to
        self._to += 1

    def _trim(self) -> None:
        while self._frames > self._capacity and self._from not in self._running:
            self._frames -= int(self._held[self._from, 2])
            self._from += 1

    def span(self, env: int) -> tuple[int, int]:
        """First row and length of the running episode of an environment."""
        _, first, length = self._held[self._running[env]].tolist()
        return first, length

    def windows(self, draws: np.random.Generator, batch: int, length: int) -> Windows:
        """``batch`` windows of ``length`` frames.

        An episode is drawn in proportion to its frames, the start uniformly from all but its last;
        where it ends, another one follows from its own start. The first frame of a window and of
        each episode that follows is marked as a first one.
        """
        held = self._held[self._from : self._to]
        weight = np.where(held[:, 2] > 1, held[:, 2], 0).cumsum()
        if not len(weight) or not weight[-1]:
            raise ValueError("no episode has two frames: there is nothing to replay yet")
        place, index = np.arange(length), np.arange(batch)
        row, env = np.zeros((2, batch, length), np.int64)
        is_first = np.zeros((batch, length), bool)
        filled = np.zeros(batch, np.int64)
        pieces: list[list[tuple[int, int, int]]] = [[] for _ in index]
        while (open_ := index[filled < length]).size:
            drawn = np.searchsorted(weight, draws.integers(weight[-1], size=len(open_)), "right")
            of, first, size = held[drawn].T
            start = draws.integers(size - 1) * (filled[open_] == 0)
            at = place - filled[open_, None]  # (open, T): frame of the episode, less start
            taken = (at >= 0) & (at < (size - start)[:, None])
            row[open_] = np.where(taken, (first + start)[:, None] + at, row[open_])
            env[open_] = np.where(taken, of[:, None], env[open_])
            is_first[open_, filled[open_]] = True
            filled[open_] = np.minimum(filled[open_] + size - start, length)
            for window, *piece in np.stack([open_, of, first, start], 1).tolist():
                pieces[window].append((piece[0], piece[1], piece[2]))
        return Windows(row, env, is_first, pieces)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {
            "held": torch.from_numpy(self._held[self._from : self._to].copy()),
            "running": torch.from_numpy(self._running - self._from),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self._held = np.concatenate([state["held"].numpy(), np.zeros((64, 3), np.int64)])
        self._from, self._to = 0, len(state["held"])
        self._running = state["running"].numpy().copy()
        self._frames = int(self._held[:, 2].sum())
