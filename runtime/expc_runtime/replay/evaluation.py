"""Whole episodes played beside the training, which never reach its replay."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expc_runtime.clocks import EnvSteps
from expc_runtime.evals.episodes import DECLARED, HELD_OUT
from expc_runtime.feeds import Work
from expc_runtime.module import Module
from expc_runtime.replay.draws import Draws, generator
from expc_runtime.replay.environment import Environment
from expc_runtime.replay.games import FIRST, LAST, NO_ACTION, TERMINAL, Games, frame_of
from expc_runtime.state.files import sync

__all__ = ["Evaluate", "Evaluation"]

FLOOR_EPISODES = 20  # of a random policy, at least
SMOKE_STEPS = 8
LOOK = 64  # steps between two looks at whether all is over, where a look is a sync


@dataclass(frozen=True)
class Evaluate:
    """Play ``episodes`` whole episodes at every multiple of ``every``.

    ``policy`` is ``mode``, the likeliest action, or ``sample``, as in training.
    """

    every: EnvSteps
    episodes: int = 1
    policy: str = "mode"

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes={self.episodes}: at least one is played")
        if self.policy not in ("mode", "sample"):
            raise ValueError(f"policy={self.policy!r} is neither 'mode' nor 'sample'")


@dataclass(frozen=True)
class Episode:
    """One episode as it was played; L frames, the first that of the reset."""

    frames: NDArray[np.void]  # (L,)
    events: dict[str, NDArray[np.bool_]]  # (L,) each

    @property
    def figures(self) -> tuple[float, float, float]:
        """Return, env steps, steps with a reward."""
        reward = self.frames["reward"]
        return float(reward.sum()), len(reward) - 1.0, float((reward != 0).sum())


class Evaluation:
    """The evaluation of one training.

    The module stays in train mode: it meets what it meets when it acts for the replay, with latents
    sampled, and its policy was made for that (in eval mode a read boundary is an argmax, and
    another filter is played). But it leaves no trace: draws come from generators of its own, and
    running statistics are put back. Every evaluation of a run has the same draws, so two of them differ
    by the module alone.
    """

    def __init__(self, env: Environment, how: Evaluate, seed: int, *, smoke: bool) -> None:
        if env.settings.get("time_limit") is None and not smoke:
            raise ValueError("an environment without a time limit: its episodes need not end")
        self._env = env
        self._how = how
        self._seed = seed
        self._limit = SMOKE_STEPS if smoke else None

    def measured(self, work: Work) -> dict[str, float]:
        """Figures of whole episodes, which are left in ``held_out`` of the stage's folder."""
        module, held = work.module, work.folder / HELD_OUT
        games = Games(self._env.like(batch=self._how.episodes))

        def choose(v: Tensor) -> Tensor:
            work.alive("evaluation")
            return games.choose(module, v, self._how.policy)

        with _aside(module, int(generator(self._seed, "latents").integers(2**62))):
            episodes = self._played(games, choose, self._draws("evaluate", self._seed, games))
        held.mkdir(exist_ok=True)
        for torn in held.glob(".*.tmp"):  # of a process that was killed
            torn.unlink()
        for number, episode in enumerate(episodes):
            self._write(held / f"{number}.npz", episode)
        sync(held)
        return _figures(episodes)

    def floors(self) -> dict[str, float]:
        """What a uniform random policy reaches, the same for every run."""
        games = Games(self._env.like(batch=max(FLOOR_EPISODES, self._how.episodes)))
        played = self._played(games, games.guess, self._draws("floor", 0, games))
        figures = _figures(played)
        del figures["eval/length"]  # no better, no worse
        return figures

    def _draws(self, purpose: str, seed: int, games: Games) -> Draws:
        return Draws(seed, purpose, games.env.batch, games.env.is_first.device)

    def _played(
        self, games: Games, choose: Callable[[Tensor], Tensor], draws: Draws
    ) -> list[Episode]:
        """One episode of each environment."""
        env, row = games.env, 0
        action = torch.zeros_like(env.is_first, dtype=torch.int64)
        ended = torch.zeros_like(env.is_first)
        often = 1 if env.is_first.device.type == "cpu" else LOOK
        records, events = [], []
        while True:
            u, _ = draws.row(row)
            records.append(games.record(games.advance(action, u)))
            events.append(torch.stack(list(env.events.values())))
            ended |= env.is_last
            if row == self._limit or (row % often == 0 and bool(ended.all())):
                break
            action = choose(draws.row(row)[1])
            row += 1
        names = list(env.events)
        seen = torch.stack(events).cpu().numpy()  # (L, events, B)
        frames = torch.stack(records).cpu().numpy().view(frame_of(env))[..., 0]  # (L, B)
        return [_cut(frames[:, b], names, seen[..., b]) for b in range(env.batch)]

    def _write(self, path: Path, episode: Episode) -> None:
        frames, env = episode.frames, self._env
        cells = torch.from_numpy(np.ascontiguousarray(frames["cells"])).to(env.is_first.device)
        actions = np.vstack([np.eye(env.actions, dtype=np.float32), np.zeros(env.actions)])
        flags = frames["flags"]
        columns: dict[str, NDArray[Any]] = {
            "image": env.paint(cells).cpu().numpy(),
            "action": actions[np.minimum(frames["action"], env.actions)].astype(np.float32),
            "reward": frames["reward"].astype(np.float32),
            "discount": (flags & TERMINAL == 0).astype(np.float32),
            "is_first": flags & FIRST > 0,
            "is_last": flags & LAST > 0,
            "is_terminal": flags & TERMINAL > 0,
            **{f"{DECLARED}{name}": event for name, event in episode.events.items()},
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **columns)
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _cut(frames: NDArray[np.void], names: list[str], events: NDArray[np.bool_]) -> Episode:
    """What belongs to the first episode."""
    assert frames["action"][0] == NO_ACTION
    last = np.flatnonzero(frames["flags"] & LAST)
    length = int(last[0]) + 1 if len(last) else len(frames)
    return Episode(
        frames[:length].copy(),
        {name: events[:length, k].copy() for k, name in enumerate(names)},
    )


def _figures(episodes: list[Episode]) -> dict[str, float]:
    names = ("eval/return", "eval/length", "eval/reward_events")
    means = np.mean([episode.figures for episode in episodes], axis=0)
    return dict(zip(names, means.tolist(), strict=True))


@contextmanager
def _aside(module: Module, seed: int) -> Iterator[None]:
    """Inside, torch draws from ``seed``; after, its generators and the module's buffers are back."""
    device = module.device
    buffers = [(b, b.clone()) for b in module.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, was in buffers:
                    buffer.copy_(was)
