"""Visual Pin Pad plays, and is painted, to the byte like the reference it is written from."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expc_runtime.envs.automaton import LAYOUTS, rows
from expc_runtime.envs.oracle import Oracle
from expc_runtime.envs.pinpad import PinPad

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
)
NAMES = tuple(LAYOUTS)


def draw(index: Any) -> Tensor:
    """The u that makes the player appear in the free cell of this index."""
    return (torch.as_tensor(index, dtype=torch.float64) + 0.5) / 168


def at(x: int, y: int) -> int:
    return (x - 1) * 12 + (y - 1)


def indices(seed: int) -> Iterator[int]:
    """What the reference's randint(168) gives, call by call."""
    random = np.random.RandomState(seed)
    while True:
        yield int(random.randint(168))


class Played:
    """One game, fed the draws of a legacy NumPy generator as the reference uses them up."""

    def __init__(self, layout: str, seed: int, **how: Any) -> None:
        self.env = PinPad(layout, batch=1, **how)
        self.draws = indices(seed)
        self.u = draw([next(self.draws)])
        self.obs = self.env.reset(self.u)
        self.u = draw([next(self.draws)])

    def step(self, action: int) -> float:
        self.obs, reward = self.env.step(torch.tensor([action]), self.u)
        if self.env.events["respawn"] or self.env.is_first:
            self.u = draw([next(self.draws)])
        return reward.item()

    @property
    def player(self) -> tuple[int, int]:
        x, y = self.env.player[0].tolist()
        return x, y

    @property
    def sequence(self) -> str:
        return "".join(str(pad) for pad in self.env.sequence[0].tolist() if pad)

    @property
    def image(self) -> tuple[str, int]:
        image = self.obs["image"][0].numpy()
        return hashlib.sha256(image.tobytes()).hexdigest()[:16], int(image.sum())


# ----------------------------------------------------------------- a reference in scalars and lists


class Scalar:
    """The rules and the painting of one game, in the order the reference has them."""

    def __init__(self, layout: str, length: int, index: Callable[[], int]) -> None:
        self.tiles = {(x, y): t for y, row in enumerate(rows(layout)) for x, t in enumerate(row)}
        self.pads = sorted({t for t in self.tiles.values() if t.isdigit()})
        self.free = sorted(cell for cell, t in self.tiles.items() if t != "#")
        self.sequence: deque[str] = deque(maxlen=len(self.pads))
        self.length, self.index, self.done = length, index, True

    def step(self, action: int) -> tuple[float, bool]:
        """The reward, and whether this was a reset."""
        if self.done:
            self.player = self.free[self.index()]
            self.sequence.clear()
            self.steps = self.countdown = 0
            self.done = False
            return 0.0, True
        if self.countdown:
            self.countdown -= 1
            if self.countdown == 0:
                self.player = self.free[self.index()]
                self.sequence.clear()
        dx, dy = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)][action]
        x, y = self.player[0] + dx, self.player[1] + dy
        tile = self.tiles[x, y]
        if tile != "#":
            self.player = (x, y)
        if tile in self.pads and (not self.sequence or self.sequence[-1] != tile):
            self.sequence.append(tile)
        reward = 0.0
        if list(self.sequence) == self.pads and self.countdown == 0:
            reward, self.countdown = 10.0, 10
        self.steps += 1
        self.done = self.steps >= self.length
        return reward, False

    def image(self) -> np.ndarray[Any, Any]:
        full = {
            "1": (255, 0, 0),
            "2": (0, 255, 0),
            "3": (0, 0, 255),
            "4": (255, 255, 0),
            "5": (255, 0, 255),
            "6": (0, 255, 255),
            "7": (128, 0, 128),
            "8": (0, 128, 128),
        }
        grid = np.zeros((16, 16, 3), np.uint8) + np.uint8(255)  # by x, then y
        if self.countdown:
            grid[:] = (223, 255, 223)
        for (x, y), tile in self.tiles.items():
            if tile == "#":
                grid[x, y] = (192, 192, 192)
            elif tile in full:
                lit = tile == self.tiles[self.player]
                dim = [(10 * c + 90 * 255) // 100 for c in full[tile]]
                grid[x, y] = full[tile] if lit else dim
        grid[self.player] = (0, 0, 0)
        grid[:, 14:] = (192, 192, 192)
        for slot, pad in enumerate(self.sequence):
            grid[2 * slot + 1, 14] = full[pad]
        return grid.repeat(4, 0).repeat(4, 1).transpose(1, 0, 2)


@pytest.mark.parametrize("layout", NAMES)
def test_every_step_agrees_with_a_plain_reference(layout: str) -> None:
    batch, length = 8, 150
    env = PinPad(layout, batch=batch, time_limit=length)
    oracle = Oracle(env)
    random = np.random.default_rng(7)
    index = np.zeros(batch, np.int64)
    games = [Scalar(layout, length, lambda b=b: int(index[b])) for b in range(batch)]
    paid = resets = 0.0
    for t in range(320):
        index[:] = random.integers(168, size=batch)
        best = oracle.act(env).numpy()
        # Half of the games nearly always do the best thing, the others anything.
        careless = random.random(batch) < np.where(np.arange(batch) % 2, 0.03, 1.0)
        action = np.where(careless, random.integers(5, size=batch), best)
        obs, reward = env.step(torch.from_numpy(action), draw(index))
        told = [game.step(int(a)) for game, a in zip(games, action, strict=True)]
        assert reward.tolist() == [r for r, _ in told]
        assert obs["is_first"].tolist() == [first for _, first in told]
        assert obs["is_last"].tolist() == [game.done for game in games]
        assert not obs["is_terminal"].any()
        assert env.player.tolist() == [list(game.player) for game in games]
        assert env.countdown.tolist() == [game.countdown for game in games]
        assert env.steps.tolist() == [game.steps for game in games]
        for b, game in enumerate(games):
            held = [int(pad) for pad in game.sequence]
            assert env.sequence[b].tolist() == held + [0] * (env.pads - len(held))
            if t % 5 == b % 5 or reward[b]:
                assert np.array_equal(obs["image"][b].numpy(), game.image())
        paid += reward.sum().item()
        resets += obs["is_first"].sum().item()
    assert paid >= 40 and resets == 3 * batch


# ---------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("layout", "digest"),
    [
        ("three", "1937c423cd31"),
        ("four", "bcb22e06d488"),
        ("five", "05ccbf22816f"),
        ("six", "92badabe99b7"),
        ("seven", "16d21527e0b7"),
        ("eight", "65a86b263967"),
    ],
)
def test_layouts_are_the_references(layout: str, digest: str) -> None:
    assert hashlib.sha256("\n".join(rows(layout)).encode()).hexdigest()[:12] == digest


# ---------------------------------------------------------------------------------------- goldens


@pytest.mark.parametrize("layout", NAMES)
@pytest.mark.parametrize(
    ("seed", "spawns"),
    [
        (0, [(4, 12), (10, 10), (6, 8), (9, 8), (1, 10)]),
        (1, [(4, 2), (12, 9), (7, 1), (12, 6), (12, 2)]),
        (2, [(2, 4), (7, 1), (2, 11), (4, 8), (7, 4)]),
    ],
)
def test_spawns(layout: str, seed: int, spawns: list[tuple[int, int]]) -> None:
    env, draws = PinPad(layout), indices(seed)
    for spawn in spawns:
        env.reset(draw([next(draws)]))
        assert tuple(env.player[0].tolist()) == spawn


RANDOM_WALK = "3401300144124243424241101111041003210311"
WALKED = (
    "5,12 4,12 4,12 4,12 5,12 5,12 5,12 5,12 4,12 3,12 3,12 3,11 2,11 2,10 1,10 2,10 "
    "1,10 1,9 1,9 1,8 1,8 1,9 1,10 1,10 1,11 1,12 1,12 1,12 1,12 1,12 1,12 1,12 1,12 2,12 2,11 "
    "2,12 2,12 3,12 3,12 3,12"
)


@pytest.mark.parametrize(
    ("layout", "start", "sequence", "end"),
    [
        ("three", ("aa90c2979a3aff3e", 2815152), "", ("6020468c69eaac7e", 2815152)),
        ("eight", ("5625b0c0f697aea5", 2811824), "636", ("1ea8c43098d2c587", 2779344)),
    ],
)
def test_a_random_walk(
    layout: str, start: tuple[str, int], sequence: str, end: tuple[str, int]
) -> None:
    game = Played(layout, seed=0)
    assert game.player == (4, 12)
    assert game.image == start
    walked = []
    for action in RANDOM_WALK:
        assert game.step(int(action)) == 0
        walked.append(game.player)
    assert walked == [tuple(map(int, cell.split(","))) for cell in WALKED.split()]
    assert game.sequence == sequence
    assert game.image == end


@pytest.mark.parametrize(
    ("layout", "plan", "player", "sequence", "paid", "after"),
    [
        (
            "three",
            "2222222211111332222233333",
            (11, 4),
            "123",
            ("53d0a199cec1e72b", 2567776),
            ("bf2e35e90570dd23", 2815152),
        ),
        (
            "eight",
            "2222222222411111111333333313322222244444444442323333333333111111414444444144333222222222",
            (6, 2),
            "12345678",
            ("a8512b3b865c8221", 2626160),
            ("131a2b769da7b79c", 2811824),
        ),
    ],
)
def test_a_shortest_plan_is_paid_counts_down_and_respawns(
    layout: str,
    plan: str,
    player: tuple[int, int],
    sequence: str,
    paid: tuple[str, int],
    after: tuple[str, int],
) -> None:
    game = Played(layout, seed=0)
    assert [game.step(int(action)) for action in plan] == [0] * (len(plan) - 1) + [10]
    assert game.player == player
    assert game.sequence == sequence
    assert game.env.countdown.item() == 10
    assert game.image == paid
    assert game.obs["image"][0, 36, 40].tolist() == [223, 255, 223]
    assert game.env.events["reward"].item()

    for left in (9, 8, 7, 6, 5, 4, 3, 2, 1):
        assert game.step(0) == 0
        assert game.env.countdown.item() == left
        assert game.player == player and game.sequence == sequence
        assert not game.env.events["respawn"]
    assert game.step(0) == 0
    assert game.player == (10, 10) and game.sequence == ""
    assert game.env.countdown.item() == 0
    assert game.env.events["respawn"] and not game.env.is_first
    assert game.step(0) == 0
    assert game.image == after


def test_a_bump_touches_nothing_and_a_stay_touches_the_own_tile() -> None:
    env = PinPad("three")
    env.reset(draw([at(1, 1)]))
    env.advance(torch.tensor([4]), draw([0]))
    assert env.sequence.tolist() == [[0, 0, 0]]
    env.advance(torch.tensor([0]), draw([0]))
    assert env.sequence.tolist() == [[1, 0, 0]]


def test_the_call_after_the_last_step_is_a_reset() -> None:
    env = PinPad("three", time_limit=5)
    env.reset(draw([at(6, 6)]))
    for step in range(1, 6):
        obs, _ = env.step(torch.tensor([1]), draw([0]))
        assert obs["is_last"].item() == (step == 5)
        assert not obs["is_first"] and not obs["is_terminal"]
    obs, reward = env.step(torch.tensor([1]), draw([at(2, 3)]))
    assert obs["is_first"] and not obs["is_last"]
    assert reward.item() == 0 and env.steps.item() == 0
    assert env.player.tolist() == [[2, 3]]  # the action of that call is ignored,
    assert env.sequence.tolist() == [[0, 0, 0]]  # and the spawn tile, a pad, isn't touched


def test_sample_pixels() -> None:
    env = PinPad("three")
    env.reset(draw([at(1, 1)]))
    obs, _ = env.step(torch.tensor([0]), draw([0]))
    pixel = {
        (x, y): tuple(obs["image"][0, 4 * y + 1, 4 * x + 2].tolist()) for x, y in np.ndindex(16, 16)
    }
    assert pixel[0, 5] == (192, 192, 192)
    assert pixel[1, 1] == (0, 0, 0)
    assert pixel[2, 2] == (255, 0, 0)
    assert pixel[7, 10] == (229, 255, 229)
    assert pixel[12, 2] == (229, 229, 255)
    assert pixel[5, 6] == (255, 255, 255)
    assert pixel[0, 14] == (192, 192, 192)
    assert pixel[1, 14] == (255, 0, 0)
    assert pixel[1, 15] == (192, 192, 192)


@pytest.mark.parametrize(
    ("pad", "dim"),
    [
        (1, (255, 229, 229)),
        (2, (229, 255, 229)),
        (3, (229, 229, 255)),
        (4, (255, 255, 229)),
        (5, (255, 229, 255)),
        (6, (229, 255, 255)),
        (7, (242, 229, 242)),
        (8, (229, 242, 242)),
    ],
)
def test_dim_colours(pad: int, dim: tuple[int, int, int]) -> None:
    image = PinPad("eight").reset(draw([at(8, 6)]))["image"][0]
    row = next(y for y, text in enumerate(rows("eight")) if str(pad) in text)
    assert tuple(image[4 * row, 4 * rows("eight")[row].index(str(pad))].tolist()) == dim


# ----------------------------------------------------------------------------------------- oracle


@pytest.mark.parametrize(
    ("layout", "least", "mean", "most"),
    [
        ("three", 18, 24.86, 35),
        ("four", 32, 38.86, 49),
        ("five", 40, 47.10, 57),
        ("six", 51, 58.93, 70),
        ("seven", 69, 77.37, 89),
        ("eight", 78, 86.37, 98),
    ],
)
def test_shortest_plans_from_each_spawn(layout: str, least: int, mean: float, most: int) -> None:
    length = Oracle(PinPad(layout)).plan_length
    assert len(length) == 168
    assert (length.min().item(), length.max().item()) == (least, most)
    assert round(length.double().mean().item(), 2) == mean


REWARD_STEPS = {
    "three": [25, 64, 97, 133, 169, 204],
    "four": [39, 92, 139, 189, 239, 288],
    "five": [47, 108, 163, 221, 277, 332],
    "six": [60, 134, 202, 273, 342, 410],
    "seven": [79, 172, 259, 349, 435, 520],
    "eight": [88, 190, 286, 385, 480, 574],
}


def oracle_rewards(layout: str, seeds: int, steps: int) -> Tensor:
    """(steps, seeds): what the oracle is paid; game b is fed the draws of seed b."""
    env = PinPad(layout, batch=seeds)
    oracle = Oracle(env)
    told = [indices(seed) for seed in range(seeds)]
    queue = draw([[next(draws) for _ in range(2 + steps // 18)] for draws in told])
    used = torch.zeros(seeds, 1, dtype=torch.int64)
    env.reset(queue[:, 0])
    rewards = []
    for _ in range(steps):
        used += env.is_first[:, None] | env.events["respawn"][:, None]
        rewards.append(env.advance(oracle.act(env), queue.gather(1, used)[:, 0]))
    return torch.stack(rewards)


@pytest.mark.parametrize("layout", NAMES)
def test_when_the_oracle_is_paid(layout: str) -> None:
    paid = REWARD_STEPS[layout]
    rewards = oracle_rewards(layout, seeds=1, steps=paid[-1])[:, 0]
    assert (1 + rewards.nonzero()[:, 0]).tolist() == paid
    assert set(rewards.tolist()) == {0.0, 10.0}


@pytest.mark.parametrize(
    ("layout", "mean", "least", "most"),
    [
        ("three", 282.5, 270, 290),
        ("four", 199.5, 190, 200),
        ("five", 169.0, 160, 170),
        ("six", 139.5, 130, 140),
        ("seven", 109.5, 100, 110),
        ("eight", 100.0, 100, 100),
    ],
)
def test_the_oracles_return_in_1000_steps(layout: str, mean: float, least: int, most: int) -> None:
    returns = oracle_rewards(layout, seeds=20, steps=1000).sum(0)
    assert returns.mean().item() == mean
    assert (returns.min().item(), returns.max().item()) == (least, most)


# --------------------------------------------------------------------------------- batch, devices


def transcript(env: PinPad, actions: Tensor, u: Tensor, *, paint: bool = False) -> list[Tensor]:
    """Everything that is to see of steps (T, B), the first of which resets; on the CPU."""
    seen = []
    for t in range(len(actions)):
        reward = env.advance(actions[t], u[t])
        image = [env.paint(env.cells), env.paint_unit(env.cells)] if paint else []
        flags = [env.is_first, env.is_last, env.is_terminal]
        state = [env.player, env.sequence, env.countdown, env.steps, env.cells]
        seen += [x.clone().cpu() for x in [reward, *flags, *state, *env.events.values(), *image]]
    return seen


def random_steps(steps: int, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    actions = torch.randint(5, (steps, batch), generator=random)
    return actions, torch.rand(steps, batch, dtype=torch.float64, generator=random)


PORT: dict[str, Any] = {"variant": "port", "targets": ["1", "12", "23"]}


@settings(deadline=None, max_examples=12)
@given(
    layout=st.sampled_from(NAMES),
    limit=st.integers(1, 60),
    seed=st.integers(0, 2**32),
    game=st.integers(0, 255),
    how=st.sampled_from([{}, PORT]),
)
def test_a_game_is_the_same_alone_and_among_256(
    layout: str, limit: int, seed: int, game: int, how: dict[str, Any]
) -> None:
    actions, u = random_steps(80, 256, seed)
    many = transcript(PinPad(layout, batch=256, time_limit=limit, **how), actions, u)
    one = slice(game, game + 1)
    alone = transcript(PinPad(layout, time_limit=limit, **how), actions[:, one], u[:, one])
    for theirs, mine in zip(many, alone, strict=True):
        assert torch.equal(theirs[one], mine)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("how", [{}, PORT])
@pytest.mark.parametrize("layout", NAMES)
def test_a_gpu_plays_the_same_games(layout: str, how: dict[str, Any], device: str) -> None:
    actions, u = random_steps(400, 64)
    here = PinPad(layout, batch=64, time_limit=120, **how)
    there = PinPad(layout, batch=64, time_limit=120, **how).to(device)
    theirs = transcript(there, actions.to(device), u.to(device), paint=True)
    for x, y in zip(theirs, transcript(here, actions, u, paint=True), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("how", [{}, PORT])
def test_no_step_looks_at_a_value(how: dict[str, Any]) -> None:
    # On the meta device tensors have none: an `.item()`, an `if`, a `nonzero` would raise.
    env = PinPad("eight", batch=4, device="meta", **how)
    action = torch.zeros(4, dtype=torch.int64, device="meta")
    u = torch.zeros(4, dtype=torch.float64, device="meta")
    env.reset(u)
    obs, reward = env.step(action, u)
    assert obs["image"].is_meta and obs["image"].shape == (4, 64, 64, 3)
    assert env.paint_unit(env.cells).shape == (4, 64, 64, 3)
    assert reward.shape == (4,) and reward.dtype == torch.float32
    assert env.player.shape == (4, 2)
    assert all(event.shape == (4,) for event in env.events.values())


@pytest.mark.parametrize("device", [CUDA])
def test_a_step_on_a_gpu_never_waits_for_it(device: str) -> None:
    env = PinPad("eight", batch=64, device=device)
    u = random_steps(30, 64)[1].to(device)
    env.reset(u[0])
    oracle = Oracle(env)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in range(30):
            env.step(oracle.act(env), u[t])
            env.paint_unit(env.cells)
            _ = env.player, env.events
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ----------------------------------------------------------------------------------------- events


def test_events_are_what_changed_between_two_frames() -> None:
    env = PinPad("three", time_limit=4)
    env.reset(draw([at(5, 2)]))
    assert not any(event.any() for event in env.events.values())
    assert tuple(env.events) == PinPad.EVENTS

    def happened(action: int, u: int = 0) -> list[str]:
        env.advance(torch.tensor([action]), draw([u]))
        return [name for name, event in env.events.items() if event.item()]

    assert happened(4) == ["pad_enter"]  # onto pad 1
    assert happened(4) == []
    assert happened(3) == []
    assert happened(3) == ["pad_leave"]
    assert env.is_last
    assert happened(0, at(1, 1)) == []  # a reset onto a pad enters nothing


def test_a_respawn_leaves_the_pad_it_came_from() -> None:
    env = PinPad("three")
    oracle = Oracle(env)
    env.reset(draw([at(5, 2)]))
    while not env.events["reward"]:
        env.advance(oracle.act(env), draw([0]))
    for _ in range(10):
        env.advance(torch.tensor([0]), draw([at(8, 6)]))
    told = {name: event.item() for name, event in env.events.items()}
    assert told == {"reward": False, "pad_enter": False, "pad_leave": True, "respawn": True}


# ---------------------------------------------------------------------------- painting from cells


@pytest.mark.parametrize("layout", NAMES)
def test_cells_painted_later_are_the_image(layout: str) -> None:
    env = PinPad(layout, batch=6)
    oracle = Oracle(env)
    _, u = random_steps(120, 6)
    env.reset(u[0])
    cells, images = [], []
    for t in range(120):
        obs, _ = env.step(oracle.act(env), u[t])
        cells.append(env.cells)
        images.append(obs["image"])
    image, held = torch.stack(images), torch.stack(cells)
    assert held.shape == (120, 6, 16, 16) and held.dtype == torch.uint8
    assert torch.equal(env.paint(held), image)
    unit = env.paint_unit(held)
    assert unit.dtype == torch.float32
    assert torch.equal(unit, image.float() / 255)
    assert torch.equal(env.paint(held.transpose(0, 1)), image.transpose(0, 1))
    assert torch.equal(env.paint(held[3, 2]), image[3, 2])
    assert env.paint(held[:0]).shape == (0, 6, 64, 64, 3)


@pytest.mark.parametrize(
    "cells", [torch.zeros(64, 64, dtype=torch.uint8), torch.zeros(16, 16, dtype=torch.int64)]
)
def test_what_is_no_frame_of_cells_is_not_painted(cells: Tensor) -> None:
    with pytest.raises(ValueError, match=r"cells must be \(..., 16, 16\) torch.uint8, not \("):
        PinPad("three").paint(cells)


# ------------------------------------------------------------------------------------------- port


def follow(env: PinPad, ways: str) -> list[float]:
    return [env.advance(torch.tensor([int(a)]), draw([0])).item() for a in ways]


# From (5, 2) in `three`: onto pad 1, then down and right onto pad 2, then up and right onto pad 3.
TO_1, TO_2, TO_3 = "4", "11111113333", "2222222333"


def test_a_port_without_targets_never_pays() -> None:
    env = PinPad("three", batch=32, variant="port", time_limit=None)
    assert not env.can_pay
    assert (Oracle(env).to_go == -1).all()
    actions, u = random_steps(1200, 32)
    env.reset(u[0])
    total = sum(env.advance(actions[t], u[t]).sum().item() for t in range(1200))
    assert total == 0 and not env.is_last.any()


def test_a_port_pays_1_on_every_step_while_the_list_is_a_target() -> None:
    env = PinPad("three", variant="port", targets=[(1, 2), "13"])
    assert env.can_pay
    env.reset(draw([at(5, 2)]))
    assert follow(env, TO_1) == [0]
    assert follow(env, TO_2)[-1] == 1
    assert follow(env, "00000000000000000000") == [1] * 20  # no countdown, no respawn, no green
    assert env.paint(env.cells)[0, 24, 24].tolist() == [255, 255, 255]
    assert follow(env, TO_3)[-1] == 0
    assert env.sequence.tolist() == [[1, 2, 3, 0, 0, 0, 0]]


def test_one_wrong_pad_ruins_an_episode_of_the_port() -> None:
    target: dict[str, Any] = {"variant": "port", "targets": ["12"]}
    env = PinPad("three", **target)
    oracle = Oracle(env)
    env.reset(draw([at(10, 2)]))
    follow(env, "3")  # onto pad 3
    assert env.sequence[0, 0].item() == 3
    assert oracle.to_go[env.state].item() == -1
    env.reset(draw([at(10, 2)]))
    steps = int(oracle.to_go[env.state])
    paid = [env.advance(oracle.act(env), draw([0])).item() for _ in range(steps + 3)]
    assert paid == [0] * (steps - 1) + [1] * 4


def test_the_port_shows_the_last_seven_pads_and_keeps_the_whole_list() -> None:
    touched = "1212121212"
    env = PinPad("three", variant="port", targets=[touched])
    env.reset(draw([at(5, 4)]))
    paid = follow(env, "4")
    for n in range(2, 11):
        paid += follow(env, "3" + "1" * 5 + "3" if n % 2 == 0 else "4" + "2" * 5 + "4")
        shown = [int(pad) for pad in touched[:n][-7:]]
        assert env.sequence.tolist() == [shown + [0] * (7 - len(shown))]
        hud = env.cells[0, 14].tolist()
        assert hud[1:14:2] == env.sequence[0].tolist()
        assert hud[0::2] == [0] * 8 and hud[15] == 0
    assert paid == [0] * (len(paid) - 1) + [1]


def test_the_limit_of_a_port_is_its_wrappers() -> None:
    env = PinPad("three", variant="port", time_limit=3)
    env.reset(draw([0]))
    follow(env, "000")
    assert env.is_last


# ----------------------------------------------------------------------------- state and settings


@pytest.mark.parametrize("how", [{}, PORT])
def test_a_state_that_is_put_back_goes_on_the_same_way(how: dict[str, Any]) -> None:
    actions, u = random_steps(120, 16)
    env = PinPad("four", batch=16, time_limit=50, **how)
    transcript(env, actions[:70], u[:70])
    held = env.state_dict()
    assert all(isinstance(value, (int, Tensor)) for value in held.values())
    events = {name: event.clone() for name, event in env.events.items()}
    ahead = transcript(env, actions[70:], u[70:])

    again = env.like(batch=16)
    again.load_state_dict(held)
    assert all(torch.equal(again.events[name], event) for name, event in events.items())
    for then, now in zip(ahead, transcript(again, actions[70:], u[70:]), strict=True):
        assert torch.equal(then, now)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (PinPad("three", batch=2), r"state of another batch"),
        (PinPad("four"), r"other settings than .*'layout': 'three'"),
        (PinPad("three", time_limit=7), r"other settings than .*'time_limit': 10000"),
    ],
)
def test_the_state_of_another_environment_is_refused(other: PinPad, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PinPad("three").load_state_dict(other.state_dict())


def test_a_state_with_a_part_missing_is_refused() -> None:
    state = PinPad("three").state_dict()
    del state["steps"]
    with pytest.raises(ValueError, match=r"has the keys game, .*steps"):
        PinPad("three").load_state_dict(state)


def test_like_is_the_same_environment_with_another_batch() -> None:
    env = PinPad("three", batch=4, time_limit=9, variant="port", targets=["12"])
    assert env.like(batch=3).settings == {**env.settings, "batch": 3}
    assert env.settings == {
        "name": "pinpad",
        "layout": "three",
        "batch": 4,
        "time_limit": 9,
        "variant": "port",
        "targets": ["12"],
    }


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"layout": "nine"}, "layout 'nine' is none of three, four, five, six, seven, eight"),
        ({"variant": "original"}, "variant 'original' is neither 'reference' nor 'port'"),
        ({"batch": 0}, "batch must be 1 or more, not 0"),
        ({"time_limit": 0}, "time_limit must be 1 or more, or None, not 0"),
        ({"targets": ["123"]}, "targets are of the variant 'port'"),
        ({"variant": "port", "targets": "123"}, r"not '123', but \['123'\]"),
        ({"variant": "port", "targets": [()]}, "a target of no pads"),
        ({"variant": "port", "targets": [(1, 4)]}, r"\[1, 4\] names a pad that is not there"),
        ({"variant": "port", "targets": ["1a"]}, r"'1a' names a pad that is not there: .* 1 to 3"),
        ({"variant": "port", "targets": ["122"]}, "'122' can't be met: no pad is touched twice"),
    ],
)
def test_settings_that_cannot_be_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PinPad(**{"layout": "three", **how})


@pytest.mark.parametrize(
    ("action", "u", "message"),
    [
        (torch.zeros(3), draw([0, 0, 0]), r"action must be \(3,\) torch.int64, not \(3,\) torch.f"),
        (torch.zeros(3, 5).long(), draw([0, 0, 0]), r"action must be .*, not \(3, 5\)"),
        (torch.tensor([0, 1]), draw([0, 0, 0]), r"action must be \(3,\) .*, not \(2,\)"),
        (torch.tensor([0, 1, 5]), draw([0, 0, 0]), r"an action is 0 to 4 .*: not 0 to 5 and"),
        (torch.tensor([0, -1, 2]), draw([0, 0, 0]), r"an action is 0 to 4 .*: not -1 to 2 and"),
        (torch.tensor([0, 1, 2]), draw([0]), r"u must be \(3,\) torch.float64, not \(1,\)"),
        (torch.tensor([0, 1, 2]), torch.zeros(3), "u must be .* not .* torch.float32"),
        (
            torch.tensor([0, 1, 2]),
            draw([0, 0, 168]),
            r"u in \[0, 1\): not .* and 0.0029\d* to 1.00298",
        ),
        (torch.tensor([0, 1, 2]), draw([0, 0, float("nan")]), r"u in \[0, 1\): .* nan"),
    ],
)
def test_actions_and_draws_that_cannot_be_are_refused(
    action: Tensor, u: Tensor, message: str
) -> None:
    env = PinPad("three", batch=3)
    held = env.state_dict()
    with pytest.raises(ValueError, match=message):
        env.step(action, u)
    with pytest.raises(ValueError):
        env.reset(torch.ones(3, dtype=torch.float64))
    kept = env.state_dict()
    assert all(torch.equal(torch.as_tensor(held[k]), torch.as_tensor(kept[k])) for k in held)
