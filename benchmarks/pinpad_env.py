"""What a step of Visual Pin Pad costs: played, and painted as 64 x 64 pixels.

Layout eight, random actions, episodes of 1,000 steps, 256 games at once and one alone; the
draws of actions and spawns count. Wall time, since threads are the point: it wants an idle machine
(two threads on cores that others use mostly wait for each other). Beside it the game
as it is usually written, one at a time in Python and NumPy: one game alone is cheaper like that.

python -m benchmarks.pinpad_env
"""

import argparse
import random
import statistics
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.ratios import Verdict, at_most, in_turn, report, speed_up
from expc_runtime.envs.automaton import MOVES, rows
from expc_runtime.envs.pinpad import COLOURS, PinPad

LAYOUT, LENGTH, BATCH = "eight", 1000, 256
BUDGET = 60.0  # seconds for a million rendered steps: a million a minute
MILLION = 1_000_000


class Plain:
    """One game in Python and NumPy: a dict of tiles, a loop over the cells to paint them."""

    def __init__(self) -> None:
        text = rows(LAYOUT)
        self.tiles = {(x, y): tile for y, row in enumerate(text) for x, tile in enumerate(row)}
        self.target = sorted({tile for tile in self.tiles.values() if tile.isdigit()})
        self.free = [cell for cell, tile in self.tiles.items() if tile != "#"]
        self.colours = dict(zip(self.target, COLOURS, strict=True))
        self.dimmed = {
            pad: (10 * np.array(colour) + 90 * 255) // 100 for pad, colour in self.colours.items()
        }
        self.sequence: deque[str] = deque(maxlen=len(self.target))
        self.reset()

    def reset(self) -> None:
        self.appear()
        self.countdown = self.steps = 0

    def appear(self) -> None:
        self.player = random.choice(self.free)
        self.sequence.clear()

    def step(self, action: int) -> tuple[np.ndarray, float]:
        if self.steps >= LENGTH:
            self.reset()
            return self.image(), 0.0
        if self.countdown:
            self.countdown -= 1
            if self.countdown == 0:
                self.appear()
        (x, y), (dx, dy) = self.player, MOVES[action]
        tile = self.tiles[x + dx, y + dy]
        if tile != "#":
            self.player = (x + dx, y + dy)
        if tile in self.colours and (not self.sequence or self.sequence[-1] != tile):
            self.sequence.append(tile)
        self.steps += 1
        if self.countdown == 0 and list(self.sequence) == self.target:
            self.countdown = 10
            return self.image(), 10.0
        return self.image(), 0.0

    def image(self) -> np.ndarray:
        grid = np.full((16, 16, 3), 255, np.uint8)
        if self.countdown:
            grid[:] = (223, 255, 223)
        under = self.tiles[self.player]
        for (x, y), tile in self.tiles.items():
            if tile == "#":
                grid[y, x] = 192
            elif tile in self.colours:
                grid[y, x] = self.colours[tile] if tile == under else self.dimmed[tile]
        grid[self.player[1], self.player[0]] = 0
        grid[14:] = 192
        for slot, pad in enumerate(self.sequence):
            grid[14, 2 * slot + 1] = self.colours[pad]
        return grid.repeat(4, 0).repeat(4, 1)


def plain(steps: int) -> Callable[[], float]:
    """Wall seconds for a million rendered steps of one game."""
    game = Plain()

    def run() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            game.step(random.randrange(len(MOVES)))
        return (time.perf_counter() - began) / steps * MILLION

    return run


def batched(batch: int, steps: int, threads: int, *, painted: bool = True) -> Callable[[], float]:
    """The same of ``batch`` games at once."""
    env = PinPad(LAYOUT, batch=batch, time_limit=LENGTH)
    play = env.step if painted else env.advance

    def run() -> float:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        for _ in range(steps):
            play(torch.randint(env.actions, (batch,)), torch.rand(batch, dtype=torch.float64))
        return (time.perf_counter() - began) / (steps * batch) * MILLION

    return run


def require_equal() -> None:
    """RuntimeError unless both games show the same frames and pay the same."""
    env, game = PinPad(LAYOUT), Plain()
    env.reset(torch.zeros(1, dtype=torch.float64))
    game.player = (1, 1)
    for _ in range(LENGTH - 1):
        action = random.randrange(len(MOVES))
        obs, reward = env.step(torch.tensor([action]), torch.zeros(1, dtype=torch.float64))
        image, paid = game.step(action)
        if reward.item() != paid or not np.array_equal(obs["image"][0].numpy(), image):
            raise RuntimeError("the plain game that is written here is another one")


def measure(rounds: int) -> list[Verdict]:
    costs = in_turn(
        {
            "2 threads": batched(BATCH, 200, threads=2),
            "1 thread": batched(BATCH, 200, threads=1),
            "unpainted": batched(BATCH, 200, threads=1, painted=False),
            "alone": batched(1, 1000, threads=1),
            "plain": plain(300),
        },
        rounds,
    )
    rate = {name: 60 / statistics.median(cost) for name, cost in costs.items()}
    for name, millions in rate.items():
        print(f"{name:<10} {millions:8.2f} million steps a minute", flush=True)
    return [
        *[
            at_most(
                f"a million rendered steps, {BATCH} games, {threads}",
                costs[threads],
                BUDGET,
                "s",
                note=f"{rate[threads]:.1f} million a minute",
            )
            for threads in ("2 threads", "1 thread")
        ],
        speed_up(f"plain Python / {BATCH} games, 1 thread", costs["plain"], costs["1 thread"], 10),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of a step of Visual Pin Pad.")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    require_equal()
    return report(f"Visual Pin Pad, torch {torch.__version__}, CPU", measure(asked.rounds))


if __name__ == "__main__":
    raise SystemExit(main())
