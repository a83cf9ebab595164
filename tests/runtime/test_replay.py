"""Playing, replaying and going on: schedule, windows, batches, evaluations, bitwise resumption.

The environment is the real one; where no world model is needed, a module of a few weights plays it.
"""

import importlib.util
import json
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from expc_runtime import fit as fit_module
from expc_runtime.checkpoint import Checkpoint, Store
from expc_runtime.clocks import EnvSteps, Epochs, Updates
from expc_runtime.envs.pinpad import PinPad, paint_unit
from expc_runtime.errors import BadValue
from expc_runtime.export import load
from expc_runtime.feeds import TrainingFeed, Work
from expc_runtime.fit import fit
from expc_runtime.flags import Run
from expc_runtime.gates import Gate, Until
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive
from expc_runtime.ports import Latent
from expc_runtime.replay import Evaluate, Replay
from expc_runtime.replay import feed as feed_module
from expc_runtime.replay import log as log_module
from expc_runtime.replay.draws import Draws
from expc_runtime.replay.episodes import Episodes
from expc_runtime.replay.feed import Landing
from expc_runtime.replay.games import FIRST, Games
from expc_runtime.replay.schedule import Schedule
from expc_runtime.state import read_result, read_status
from expc_runtime.training import pulse

torch.set_num_threads(1)

CPU = torch.device("cpu")
MODULES = Path(__file__).parent / "modules"


# When to update.


def schedule(**how: Any) -> Schedule:
    plan: dict[str, Any] = {
        "envs": 1,
        "frames": 480,
        "ratio": 320,
        "prefill": 1200,
        "pretrain": 0,
        "every": 2000,
    }
    plan |= how
    return Schedule(**{**plan, "ratio": Fraction(plan["ratio"])})


def calls(plan: Schedule, count: int) -> list[int]:
    """Updates before each row of play."""
    first = plan.prefill_rows
    done = [plan.updates_by(first + k) for k in range(count + 1)]
    return [b - a for a, b in pairwise(done)]


def test_one_and_a_half_env_steps_for_an_update() -> None:
    assert calls(schedule(), 9) == [1, 0, 1, 1, 0, 1, 1, 0, 1]
    assert calls(schedule(pretrain=10), 8) == [10, 1, 0, 1, 1, 0, 1, 1]
    assert schedule().updates_by(1200) == schedule().updates_by(0) == 0


def test_the_study_in_updates() -> None:
    """42000 env steps after the prefill, the first of them pretraining: 10 + 1 + floor(41998 / 1.5)."""
    plan = schedule(pretrain=10)
    assert plan.updates_at(43200) == 10 + 1 + 27998
    assert plan.updates_per_epoch == 1333
    assert plan.rows_after(1) == 2000
    assert plan.rows_after(21) == 42000
    with pytest.raises(ValueError, match="1200 env steps ends within the prefill of 1200"):
        plan.updates_at(1200)


def original(every: float, steps: int) -> list[int]:
    """What `Every` of the reference returns, called with step 0, 1, 2, ..."""
    last, told = None, []
    for step in range(steps):
        if last is None:
            last, count = float(step), 1
        else:
            count = int((step - last) / every)
            last += every * count
        told.append(count)
    return told


@settings(max_examples=60, deadline=None)
@given(
    envs=st.integers(1, 9),
    frames=st.integers(1, 600),
    ratio=st.sampled_from([1, 2, 7, 64, 320, 0.25, 1.5]),
    prefill=st.integers(1, 90),
    pretrain=st.sampled_from([0, 1, 10]),
)
def test_rows_and_updates_are_each_others_inverse(
    envs: int, frames: int, ratio: float, prefill: int, pretrain: int
) -> None:
    plan = schedule(
        envs=envs,
        frames=frames,
        ratio=ratio,
        prefill=prefill,
        pretrain=pretrain,
        every=10**6,
    )
    for update in range(60):
        rows = plan.rows_before(update)
        assert plan.updates_by(rows) <= update < plan.updates_by(rows + 1)
    if frames % 16 == 0 and not pretrain and envs == 1:  # exact in floating point
        assert calls(plan, 50) == original(frames / ratio, 50)
    ends = [plan.rows_after(epoch) for epoch in range(1, 5)]
    assert ends[0] > plan.prefill_rows
    assert all(end * envs <= 10**6 * -(-end * envs // 10**6) < end * envs + envs for end in ends)


def test_an_epoch_without_an_update_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every 1 env steps, but an update takes 1.5 of them"):
        schedule(every=1)


# What to sample.


def episodes(lengths: list[list[int]], capacity: int = 10**6) -> Episodes:
    """One list of episode lengths for each environment, all together equally long."""
    total = sum(lengths[0])
    starts = [set(np.cumsum([0, *each[:-1]]).tolist()) for each in lengths]
    made = Episodes(len(lengths), capacity)
    for row in range(total):
        made.add(row, np.array([FIRST * (row in s) for s in starts], np.uint8))
    return made


def runs(lengths: list[int]) -> list[range]:
    ends = np.cumsum(lengths).tolist()
    return [range(end - length, end) for length, end in zip(lengths, ends, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    length=st.integers(1, 20),
    seed=st.integers(0, 10**6),
)
def test_a_window_is_the_rest_of_an_episode_and_then_others_from_their_start(
    lengths: list[int], length: int, seed: int
) -> None:
    if max(lengths) < 2:
        return
    made = episodes([lengths, list(reversed(lengths))])
    held = [runs(lengths), runs(list(reversed(lengths)))]
    windows = made.windows(np.random.default_rng(seed), 4, length)
    assert windows.row.shape == (4, length)
    for rows, envs, firsts, pieces in zip(
        windows.row.tolist(),
        windows.env.tolist(),
        windows.is_first.tolist(),
        windows.pieces,
        strict=True,
    ):
        begun = [k for k in range(length) if firsts[k]]
        assert begun[0] == 0
        assert len(begun) == len(pieces)
        for number, (at, end) in enumerate(pairwise([*begun, length])):
            (episode,) = [run for run in held[envs[at]] if rows[at] in run]
            assert len(episode) > 1
            assert rows[at:end] == list(range(rows[at], rows[at] + end - at))
            assert rows[end - 1] in episode
            assert (envs[at], episode.start, rows[at] - episode.start) == pieces[number]
            if number:
                assert rows[at] == episode.start
            else:
                assert rows[at] <= episode[-2]
            if end < length:
                assert rows[end - 1] == episode[-1]


def test_episodes_are_drawn_by_their_frames_and_starts_evenly() -> None:
    made = episodes([[2, 6, 1, 4]])
    draws = np.random.default_rng(0)
    seen = Counter(made.windows(draws, 12_000, 1).row[:, 0].tolist())
    share = {0: 2 / 12, **dict.fromkeys(range(2, 7), 6 / 12 / 5)}
    share |= dict.fromkeys(range(9, 12), 4 / 12 / 3)
    assert seen.keys() == share.keys()
    for row, p in share.items():
        assert abs(seen[row] - 12_000 * p) < 5 * math.sqrt(12_000 * p * (1 - p))


def test_the_oldest_episodes_go_but_none_that_runs() -> None:
    made = episodes([[4, 4, 4, 2]], capacity=10)
    assert (made.frames, len(made), made.first_row) == (10, 3, 4)
    alone = episodes([[30]], capacity=10)
    assert (alone.frames, len(alone)) == (30, 1)
    rows = made.windows(np.random.default_rng(0), 500, 3).row
    assert rows.min() == 4


def test_episodes_go_on_as_they_were() -> None:
    made = episodes([[3] * 100, [5] * 60], capacity=120)
    again = Episodes(2, 120)
    again.load_state_dict(made.state_dict())
    for row in range(300, 320):
        for one in (made, again):
            one.add(row, np.array([FIRST * (row % 3 == 0), FIRST * (row % 5 == 0)], np.uint8))
    draws = [np.random.default_rng(3) for _ in range(2)]
    a, b = (e.windows(d, 50, 7) for e, d in zip((made, again), draws, strict=True))
    assert (a.row == b.row).all() and (a.env == b.env).all()
    assert (made.frames, len(made)) == (again.frames, len(again))


# A module of few weights: draws numbers, keeps running statistics, remembers.


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/pad/x/play"
    layout: str = "three"
    time_limit: int = 12
    envs: int = 2
    batch: int = 3
    length: int = 6
    train_ratio: float = 6.0
    prefill: int = 40
    pretrain: int = 2
    capacity: int = 1000
    every: int = 40
    episodes: int = 2
    policy: str = "sample"
    env_steps: int = 130
    precision: str = "32"


class Small(Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.memory = nn.Linear(12 + 5, 4)
        self.head = nn.Linear(4, 5)
        self.acted: int = 0

    def seen(self, image: Tensor, action: Tensor) -> Tensor:
        flat = image.reshape(*image.shape[:-3], 2, 32, 2, 32, 3).mean((-4, -2)).flatten(-3)
        normed = self.norm(flat.flatten(0, -2)).view(flat.shape)
        seen: Tensor = self.memory(torch.cat([normed, action], -1))
        return seen.tanh()

    def update(self, batch: Batch) -> None:
        image, action, *_ = batch
        noise = 0.1 * torch.randn(*action.shape[:2], 4)
        logits = self.head(self.seen(image, action) + noise)
        loss = -(logits.log_softmax(-1)[:, :-1] * action[:, 1:]).sum(-1).mean()
        self.record(guess=loss)
        self.step("play", loss)

    def initial(self, batch: int) -> Latent:
        return {"h": torch.zeros(batch, 4, device=self.device)}

    def act(
        self, image: Tensor, action: Tensor, is_first: Tensor, state: Latent
    ) -> tuple[Tensor, Latent]:
        self.acted += 1
        kept = state["h"] * ~is_first[:, None]
        h = 0.5 * kept + self.seen(image, action) + 0.1 * torch.randn_like(kept)
        return (3 * self.head(h)).softmax(-1), {"h": h}

    def drives(self) -> dict[str, Drive]:
        return {"play": Drive(torch.optim.Adam(self.parameters(), lr=0.01), clip=1.0)}


def replay(cfg: Config, **how: Any) -> Replay:
    env = PinPad(cfg.layout, time_limit=cfg.time_limit, batch=cfg.envs)
    settings: dict[str, Any] = {
        "columns": ("image", "action", "reward", "is_first", "cont"),
        "capacity": cfg.capacity,
        "batch": cfg.batch,
        "length": cfg.length,
        "train_ratio": cfg.train_ratio,
        "prefill": EnvSteps(cfg.prefill),
        "pretrain": Updates(cfg.pretrain) if cfg.pretrain else None,
        "evaluate": Evaluate(EnvSteps(cfg.every), episodes=cfg.episodes, policy=cfg.policy),
    }
    return Replay(how.pop("env", env), **{**settings, **how})


def attached(
    tmp_path: Path, cfg: Config, build: Callable[[Any], Small] = Small, **how: Any
) -> tuple[Replay, Small]:
    """A replay outside `fit`, with its module."""
    torch.manual_seed(cfg.seed)
    module = build(cfg)
    module.start("32", total_updates=None, updates_per_epoch=1)
    made = replay(cfg, **how)
    made.setup(CPU, cfg.seed)
    until = Until(EnvSteps(cfg.env_steps))
    told: list[str] = []
    made.attach(
        Work(module, tmp_path, until, keep=2, smoke=cfg.smoke, warn=told.append, alive=told.append)
    )
    return made, module


def updates(made: Replay, cfg: Config) -> Iterator[tuple[int, Batch]]:
    for update in range(made.updates_at(cfg.env_steps)):
        yield update, made.batch_of(update)


def test_a_replay_is_a_feed() -> None:
    feed: TrainingFeed = replay(Config())
    assert {"mode", "nothing", "chance"} <= set(dir(feed))


def test_a_sample_of_what_was_played_changes_nothing(tmp_path: Path) -> None:
    cfg = Config(env_steps=200, length=9)
    made, _ = attached(tmp_path, cfg)
    list(updates(made, cfg))
    before = made.state_dict()
    frames = 3 * cfg.batch * cfg.length
    first, again = (list(made.sample("train", frames)) for _ in range(2))
    assert [tuple(batch[0].shape[:2]) for batch in first] == [(cfg.batch, cfg.length)] * 3
    for one, other in zip(tree_leaves(first), tree_leaves(again), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first[0][0], first[1][0])
    after = made.state_dict() | {"needed": before["needed"]}  # grows with every save
    assert json.dumps(after, default=repr) == json.dumps(before, default=repr)
    with pytest.raises(BadValue, match="a replay has no rows of val"):
        made.sample("val", frames)


def test_batches_are_what_the_environment_shows_when_it_is_played_again(tmp_path: Path) -> None:
    cfg = Config(env_steps=200, length=9)
    made, _ = attached(tmp_path, cfg)
    seen = [(batch, made._origins[-1][1]) for _, batch in updates(made, cfg)]
    made.complete(len(seen))
    made.state_dict()
    rows = made.counts()["env_steps"] // cfg.envs
    assert rows == 100

    row, env = np.divmod(np.arange(rows * cfg.envs), cfg.envs)
    kept = made._log.gather(row, env).reshape(rows, cfg.envs)
    game, draws = PinPad("three", time_limit=12, batch=cfg.envs), Draws(0, "play", cfg.envs, CPU)
    shown = []
    for index in range(rows):
        action = torch.from_numpy(np.minimum(kept["action"][index], 4).astype(np.int64))
        obs, reward = game.step(action, draws.row(index)[0])
        shown.append({**obs, "reward": reward})
        assert (kept["action"][index] == 255).tolist() == obs["is_first"].tolist()
    for (image, action, reward, is_first, cont), windows in seen:
        assert image.shape == (3, 9, 64, 64, 3) and image.dtype == torch.float32
        assert action.shape == (3, 9, 5) and action.dtype == torch.float32
        assert (reward.dtype, is_first.dtype, cont.dtype) == (
            torch.float32,
            torch.bool,
            torch.float32,
        )
        assert bool((cont == 1).all()) and bool(is_first[:, 0].all())
        for b in range(3):
            for t in range(9):
                frame, e = shown[windows.row[b, t]], windows.env[b, t]
                torch.testing.assert_close(image[b, t], frame["image"][e] / 255)
                assert reward[b, t] == frame["reward"][e]
                led = kept["action"][windows.row[b, t], e]
                assert action[b, t].tolist() == [float(k == led) for k in range(5)]
                if frame["is_first"][e]:
                    assert is_first[b, t] and not action[b, t].any()


def test_the_module_acts_after_the_prefill_and_as_often_as_planned(tmp_path: Path) -> None:
    cfg = Config()
    made, module = attached(tmp_path, cfg)
    acted = []
    for update, _ in updates(made, cfg):
        acted.append(module.acted)
        assert made.counts()["env_steps"] == 40 + 2 * acted[-1]
        assert made.counts()["env_steps"] == 2 * made._plan.rows_before(update)
    # 18 frames a batch, 12 replayed a row: 1.5 rows an update after the two of pretraining
    assert acted[:8] == [0, 0, 1, 3, 4, 6, 7, 9]
    made.complete(len(acted))
    assert made.counts()["env_steps"] == cfg.env_steps


def test_it_acts_on_what_it_saw_before(tmp_path: Path) -> None:
    """The image of the newest frame, the action that led there, and its own memory."""
    given: list[tuple[Tensor, ...]] = []

    class Watched(Small):
        def act(self, image: Any, action: Any, is_first: Any, state: Any) -> Any:
            policy, after = super().act(image, action, is_first, state)
            given.append((image, action, is_first, state["h"], after["h"]))
            return policy, after

    cfg = Config(env_steps=120)
    made, _ = attached(tmp_path, cfg, Watched)
    made.complete(list(updates(made, cfg))[-1][0] + 1)
    env = np.arange(cfg.envs)
    for k, (image, action, is_first, before, _) in enumerate(given):
        frames = made._log.gather(np.full(cfg.envs, 19 + k), env)
        cells = torch.from_numpy(frames["cells"].copy())
        assert torch.equal(image, made._env.paint_unit(cells))
        assert is_first.tolist() == (frames["flags"] & FIRST > 0).tolist()
        led = [[float(a == n) for n in range(5)] for a in frames["action"].tolist()]
        assert action.tolist() == led
        if k:
            assert torch.equal(before, given[k - 1][-1])
    assert len(given) == 40
    assert any(bool(is_first.any()) for _, _, is_first, _, _ in given)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"columns": ("image", "depth")}, "no depth"),
        ({"batch": 0}, "batch=0"),
        ({"capacity": 3}, "the prefill alone is 40 env steps"),
        ({"train_ratio": 0.0}, "train_ratio=0: must be above 0"),
        ({"evaluate": Evaluate(EnvSteps(2))}, "an update takes 3 of them"),
        ({"prefill": EnvSteps(2)}, "drawn from 4 or more"),
        ({"env": PinPad("three", time_limit=None)}, "its episodes need not end"),
    ],
)
def test_impossible_numbers_are_refused(tmp_path: Path, how: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        attached(tmp_path, Config(), **how)
    with pytest.raises(ValueError, match="device=mps: environments are played on cpu or cuda"):
        replay(Config()).setup(torch.device("mps"), 0)
    with pytest.raises(ValueError, match="policy='best'"):
        Evaluate(EnvSteps(1), policy="best")
    with pytest.raises(ValueError, match="episodes=0"):
        Evaluate(EnvSteps(1), episodes=0)


# Evaluation.


def test_floors_are_those_of_a_random_policy(tmp_path: Path) -> None:
    """Random play of `three` meets 0.42 reward events in 1000 steps (127 in 300 000)."""
    made, _ = attached(tmp_path, Config(time_limit=1000, episodes=120))
    found = made.floors()
    assert found.keys() == {"eval/return", "eval/reward_events"}
    assert found["eval/return"] == 10 * found["eval/reward_events"]
    assert 0.42 - 4 * math.sqrt(0.42 / 120) < found["eval/reward_events"] < 0.42 + 0.25
    assert found == attached(tmp_path, Config(time_limit=1000, episodes=120, seed=7))[0].floors()


def test_a_held_out_episode_is_whole_and_true(tmp_path: Path) -> None:
    made, module = attached(tmp_path, Config(time_limit=30))
    figures = made.measured("eval")
    assert made.counts() == {"env_steps": 0}  # never in the replay
    held = [np.load(tmp_path / "held_out" / f"{n}.npz") for n in range(2)]
    assert sorted(p.name for p in (tmp_path / "held_out").iterdir()) == ["0.npz", "1.npz"]
    assert figures == {
        "eval/return": np.mean([h["reward"].sum() for h in held]),
        "eval/length": 30,
        "eval/reward_events": np.mean([(h["reward"] != 0).sum() for h in held]),
    }
    draws = Draws(0, "evaluate", 2, CPU)
    for number, episode in enumerate(held):
        game = PinPad("three", time_limit=30, batch=2)
        events = [f"event_{name}" for name in PinPad.EVENTS]
        flags = ["is_first", "is_last", "is_terminal"]
        assert set(episode) == {"image", "action", "reward", "discount", *flags, *events}
        for t in range(31):
            action = torch.from_numpy(episode["action"][t].argmax(keepdims=True)).repeat(2)
            obs, reward = game.step(action, draws.row(t)[0])
            assert (episode["image"][t] == obs["image"][number].numpy()).all()
            assert episode["reward"][t] == reward[number]
            for name in flags:
                assert episode[name][t] == obs[name][number]
            for name in PinPad.EVENTS:
                assert episode[f"event_{name}"][t] == game.events[name][number]
        assert not episode["action"][0].any() and (episode["action"][1:].sum(1) == 1).all()
        assert (episode["discount"] == 1).all()
        assert episode["image"].dtype == np.uint8 and episode["action"].dtype == np.float32
    assert module.training


def test_held_out_episodes_are_on_the_disk_before_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = attached(tmp_path, Config())
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: forced.append(os.fstat(file).st_ino))
    made.measured("eval")
    held = tmp_path / "held_out"
    assert forced == [p.stat().st_ino for p in (held / "0.npz", held / "1.npz", held)]


def test_an_evaluation_leaves_no_trace(tmp_path: Path) -> None:
    made, module = attached(tmp_path, Config())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / ".0.npz.1.tmp").write_bytes(b"torn")
    state = torch.get_rng_state()
    first = made.measured("eval")
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    image = np.load(tmp_path / "held_out" / "0.npz")["image"]
    assert len(list((tmp_path / "held_out").iterdir())) == 2
    assert made.measured("eval") == first  # nothing but the module makes a difference
    assert (np.load(tmp_path / "held_out" / "0.npz")["image"] == image).all()


class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, no operation mixes devices, and none reads a value of ``meta``, which has none."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        places = {value.device.type for value in given}
        assert len(places) < 2, f"{func} of {places}"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dynamics", ["rssm", "vta"])
def test_training_and_acting_stay_on_their_device_and_wait_for_nothing(
    world: ModuleType, dynamics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would break, or make the host wait, on a GPU; shown without one."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # knows no meta
    meta = torch.device("meta")
    module = world.Train(world.Config(dynamics=dynamics)).to(meta)
    games = Games(PinPad("three", time_limit=12, batch=2, device=meta))
    with meta:
        image, action, zero = torch.zeros(2, 4, 64, 64, 3), torch.zeros(2, 4, 5), torch.zeros(2, 4)
        u = torch.zeros(2, dtype=torch.float64)
    totals: list[tuple[str, Tensor]] = []
    paint_unit(torch.zeros(1, 16, 16, dtype=torch.uint8, device=meta))  # makes its table once
    with OneDevice():  # type: ignore[no-untyped-call]
        with module.rehearsal(totals=totals.append):
            module.update((image, action, zero, zero.bool(), zero))
        for _, total in totals:
            total.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        for policy in ("sample", "mode", "sample"):
            recorded = games.record(games.advance(games.choose(module, u, policy), u))
            games.advance(games.guess(u), u)
            assert len(games.env.events) == 4
    assert recorded.device == meta and len(totals) == 3


# Under `fit`.


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "generated").mkdir()
    return tmp_path


@pytest.fixture
def world(root: Path) -> ModuleType:
    """The hand-written world model, as a file of that project."""
    path = root / "generated" / "world_tiny.py"
    path.write_text((MODULES / "world_tiny.py").read_text())
    spec = importlib.util.spec_from_file_location("world_tiny", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["world_tiny"] = module
    spec.loader.exec_module(module)
    return module


def train(
    root: Path,
    cfg: Config | None = None,
    build: Callable[[Any], Module] = Small,
    until: Until | None = None,
    feed: dict[str, Any] | None = None,
    **how: Any,
) -> int:
    cfg = cfg or Config()
    return fit(
        build,
        cfg,
        replay(cfg, **feed or {}),
        until=until or Until(EnvSteps(cfg.env_steps)),
        precision=cfg.precision,
        file=str(root / "generated" / "play.py"),
        **{"program": "p", "monitor": {"best": "eval/return"}, **how},
    )


def lines(root: Path, split: str, cfg: Run | None = None) -> list[dict[str, Any]]:
    text = (root / (cfg or Config()).out / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["split"] == split]


def final(root: Path, cfg: Run | None = None) -> dict[str, Any]:
    loaded = Store(root / (cfg or Config()).out / "checkpoints").load()
    assert loaded is not None
    return loaded[0]


def assert_same(one: Any, two: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two


def in_child(work: Callable[[], int]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = work()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hit_by(number: int, at: int) -> Callable[[Any], Module]:
    """Modules whose process gets a signal in the middle of update ``at`` (from 0)."""

    class Hit(Small):
        def update(self, batch: Batch) -> None:
            if self.updates == at and self._live.rehearsed is None:
                os.kill(os.getpid(), number)
            super().update(batch)

    return Hit


@pytest.mark.parametrize("dynamics", ["rssm", "vta"])
def test_a_world_model_trains_is_measured_and_can_be_loaded(
    root: Path, world: ModuleType, dynamics: str
) -> None:
    cfg = world.Config(dynamics=dynamics, env_steps=90)
    assert world.main(cfg) == 0
    result, status = read_result(root / cfg.out), read_status(root / cfg.out)
    assert result is not None and status is not None
    assert (result.state, status.state) == ("done", "done")
    # 20 rows of prefill; 2 updates, then 1 + floor(23 / 1.5) of rows 22 to 45
    assert result.step == 2 + 1 + 15
    assert result.extra["env_steps"] == 90
    assert (status.step, status.steps_target) == (90, 90)
    assert [line["env_steps"] for line in lines(root, "eval", cfg)] == [80, 90]
    assert result.metrics.keys() == {"eval/return", "eval/length", "eval/reward_events"}
    assert result.floors.keys() == {"eval/return", "eval/reward_events"}
    assert result.metrics["eval/length"] == 12
    assert result.extra["held_out"] == ["held_out/0.npz", "held_out/1.npz"]
    assert result.extra["env"]["layout"] == "three"
    assert {"train/image", "train/value"} <= result.extra["train"].keys()
    module: Any = load(root / cfg.out)
    assert not module.training
    held = np.load(root / cfg.out / "held_out" / "0.npz")
    image = torch.from_numpy(held["image"]).float()[None] / 255
    first = torch.from_numpy(held["is_first"])[None]
    action = torch.from_numpy(held["action"])[None]
    post, _ = module.dynamics.observe(module.encoder(image), action, first)
    assert all(value.shape[:2] == (1, 13) for value in post.values())


def test_the_same_seed_gives_the_same_fifty_updates(root: Path, world: ModuleType) -> None:
    how: dict[str, Any] = {"dynamics": "rssm", "batch": 2, "length": 4, "prefill": 8, "depth": 1}
    how |= {"train_ratio": 16.0, "env_steps": 36}  # 4 updates a row, 14 rows after the prefill
    seeds = {"a": 1, "b": 1, "c": 2}
    a, b, c = (world.Config(out=f"runs/{n}/x/train", seed=s, **how) for n, s in seeds.items())
    for cfg in (a, b, c):
        torch.manual_seed(torch.seed() % 2**31)
        assert world.main(cfg) == 0
    one, two, other = (final(root, cfg) for cfg in (a, b, c))
    assert one["progress"]["updates"] == 2 + 1 + 12 * 4
    for state in ("model", "progress", "feed"):
        assert_same(one[state], two[state])
    assert lines(root, "train", a) == lines(root, "train", b)
    assert one["feed"]["log"]["crc"] != other["feed"]["log"]["crc"]
    assert any(not torch.equal(one["model"][k], other["model"][k]) for k in one["model"])


def test_how_often_it_is_evaluated_changes_nothing_but_the_figures(root: Path) -> None:
    often, seldom = Config(out="runs/a/x/play", every=10), Config(out="runs/b/x/play", every=1000)
    assert train(root, often) == train(root, seldom) == 0
    assert len(lines(root, "eval", often)) > len(lines(root, "eval", seldom)) == 1
    one, two = final(root, often), final(root, seldom)
    assert_same(one["model"], two["model"])
    assert_same(one["feed"]["log"]["crc"], two["feed"]["log"]["crc"])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the default run went through."""
    root = tmp_path_factory.mktemp("unbroken")
    (root / "pyproject.toml").touch()
    (root / "generated").mkdir()
    assert in_child(lambda: train(root)) == 0
    return root


@pytest.mark.parametrize("at", [0, 1, 9, 14, 15, 30])  # pretraining, inside, ends of epoch and run
def test_a_run_that_was_asked_to_stop_goes_on_bit_for_bit(
    root: Path, unbroken: Path, at: int
) -> None:
    assert in_child(lambda: train(root, build=hit_by(signal.SIGTERM, at))) == 75
    assert final(root)["progress"]["updates"] == at + 1
    assert in_child(lambda: train(root)) == 0
    assert_goes_on(unbroken, root)


def struck(envs: int, at: int) -> Callable[[Any], Module]:
    """Modules whose process is asked to stop in step ``at`` (from 1) of ``envs`` environments."""
    count = 0

    def advance(games: Games, action: Tensor, u: Tensor) -> Tensor:
        nonlocal count
        count += games.env.batch == envs
        if count == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return played(games, action, u)

    played = Games.advance
    Games.advance = advance  # type: ignore[assignment, method-assign]  # of a child
    return Small


@pytest.mark.parametrize(
    ("envs", "at", "row", "updates"),
    [(2, 5, 5, 0), (3, 4, 40, 15), (3, 2 * 13 + 4, 65, 31)],  # prefill, two of the evaluations
)
def test_long_work_beside_the_updates_is_left_at_once(
    root: Path, envs: int, at: int, row: int, updates: int
) -> None:
    """Neither the rest of a prefill nor that of an evaluation is played, and nothing is lost."""
    whole = Config(out="runs/whole/x/play", episodes=3)
    broken = replace(whole, out="runs/broken/x/play")
    assert in_child(lambda: train(root, whole)) == 0
    assert in_child(lambda: train(root, broken, struck(envs, at))) == 75
    left = final(root, broken)
    assert (left["feed"]["row"], left["progress"]["updates"]) == (row, updates)
    assert in_child(lambda: train(root, broken)) == 0
    assert_goes_on(root, root, whole, broken)


def test_long_work_beside_the_updates_says_that_it_lives(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Screen:
        def tick(self, done: float, total: float, words: str) -> None:
            told.append(words)

        def line(self, text: str) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(pulse, "PULSE", 0.0)
    monkeypatch.setattr(fit_module, "progress", lambda title: Screen())
    assert train(root) == 0
    assert told[:2] == ["round 1  env step 0", "round 1  env step 2"]
    assert told.count("round 1  evaluation") == 12  # a step each
    assert told.count("round 1  update 1") == 1


def assert_goes_on(
    one_root: Path, two_root: Path, whole: Run | None = None, broken: Run | None = None
) -> None:
    whole, broken = whole or Config(), broken or Config()
    one, two = final(one_root, whole), final(two_root, broken)
    for state in ("model", "progress", "random"):
        assert_same(one[state], two[state])
    feeds = [{k: v for k, v in state["feed"].items() if k != "needed"} for state in (one, two)]
    assert_same(*feeds)
    assert lines(one_root, "eval", whole) == lines(two_root, "eval", broken)
    for name in ("held_out/0.npz", "held_out/1.npz"):
        a, b = np.load(one_root / whole.out / name), np.load(two_root / broken.out / name)
        assert all((a[key] == b[key]).all() for key in a)


@pytest.mark.parametrize("capacity", [1000, 50])
def test_a_killed_run_goes_on_bit_for_bit_and_logs_nothing_twice(
    root: Path, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "SEGMENT", 16)  # eight rows
    whole = Config(out="runs/whole/x/play", capacity=capacity)
    broken = replace(whole, out="runs/broken/x/play")
    how: dict[str, Any] = {"checkpoint": Checkpoint(every=Epochs(1))}
    assert in_child(lambda: train(root, whole, **how)) == 0
    killed = in_child(lambda: train(root, broken, hit_by(signal.SIGKILL, 24), **how))
    assert killed == -signal.SIGKILL
    assert final(root, broken)["progress"]["updates"] == 15
    assert in_child(lambda: train(root, broken, **how)) == 0
    assert_goes_on(root, root, whole, broken)
    assert lines(root, "train", whole) == lines(root, "train", broken)
    kept = final(root, broken)["feed"]
    assert kept["episodes"]["held"][:, 2].sum() == {1000: 130, 50: 39}[capacity]  # episodes of 13
    segments = sorted(int(path.stem) for path in (root / broken.out / "replay").iterdir())
    assert segments == list(range(segments[0], 65, 8))
    assert (segments[0] > 0) is (capacity == 50)


def test_a_run_goes_on_from_the_generation_before_a_damaged_one(root: Path, unbroken: Path) -> None:
    how: dict[str, Any] = {"checkpoint": Checkpoint(every=Updates(5))}
    killed = in_child(lambda: train(root, build=hit_by(signal.SIGKILL, 27), **how))
    assert killed == -signal.SIGKILL
    newest = max((root / Config().out / "checkpoints").glob("last-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    before = final(root)["feed"]["log"]["rows"]
    assert in_child(lambda: train(root, **how)) == 0
    assert before < final(root)["feed"]["log"]["rows"] == 65
    assert_goes_on(unbroken, root)


class Late(Landing):
    """As on a GPU: rows land four rows late, or when they are waited for."""

    def __init__(self, device: Any) -> None:
        super().__init__(device)
        self.lag = 4
        self._held: list[Any] = []

    def push(self, frames: Tensor) -> list[Any]:
        self._held.append(frames.numpy())
        landed, self._held = self._held[: -self.lag], self._held[-self.lag :]
        return landed

    def drained(self) -> list[Any]:
        landed, self._held = self._held, []
        return landed


def test_rows_that_land_late_change_nothing_about_going_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "Landing", Late)
    made, _ = attached(root, Config())
    for update, _batch in updates(made, Config()):
        assert made._origins[-1][1].row.max() < made._plan.rows_before(update) - 4
    whole, broken = Config(out="runs/whole/x/play"), Config(out="runs/broken/x/play")
    assert in_child(lambda: train(root, whole)) == 0
    assert in_child(lambda: train(root, broken, hit_by(signal.SIGTERM, 9))) == 75
    assert in_child(lambda: train(root, broken)) == 0
    assert_goes_on(root, root, whole, broken)


def test_a_world_model_goes_on_bit_for_bit(root: Path, world: ModuleType) -> None:
    whole = world.Config(out="runs/whole/x/train", env_steps=60)
    broken = world.Config(out="runs/broken/x/train", env_steps=60)

    class Hit(world.Train):  # type: ignore[misc, name-defined]
        def update(self, batch: Batch) -> None:
            if self.updates == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            super().update(batch)

    def struck() -> int:
        world.Train = Hit  # type: ignore[attr-defined]
        return int(world.main(broken))

    assert in_child(lambda: int(world.main(whole))) == 0
    assert in_child(struck) == 75
    assert final(root, broken)["feed"]["games"]["latent"]  # what the module remembers
    assert in_child(lambda: int(world.main(broken))) == 0
    assert_goes_on(root, root, whole, broken)


def test_a_damaged_replay_is_a_persons_to_remove(root: Path) -> None:
    assert in_child(lambda: train(root, build=hit_by(signal.SIGTERM, 9))) == 75
    (path,) = (root / Config().out / "replay").glob("*.frames")
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    assert train(root) == 66
    status = read_status(root / Config().out)
    assert status is not None
    assert "fails its checksum" in status.reason
    assert "to begin again, remove that folder" in status.reason


def test_a_nan_names_the_module_and_the_windows(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Poisoned(Small):
        def update(self, batch: Batch) -> None:
            if self.updates == 9:
                self.memory.register_forward_hook(lambda m, i, o: o / torch.zeros(()))
            super().update(batch)

    assert train(root, build=Poisoned) == 65
    told = capsys.readouterr().out
    assert "update 9 of optimizer `play`" in told
    assert "`memory` (Linear) gave" in told
    assert "its windows: 0: game " in told and " from frame " in told
    status = read_status(root / Config().out)
    assert status is not None and status.label == "failed(diverged)"


@pytest.mark.parametrize("part", ["decoder", "reward_head", "actor", "slow_critic"])
def test_a_nan_in_any_phase_of_a_world_model_is_traced(
    root: Path, world: ModuleType, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Poisoned(world.Train):  # type: ignore[misc, name-defined]
        def update(self, batch: Batch) -> None:
            if self.updates == 3:
                layers = [m for m in self.get_submodule(part).modules() if isinstance(m, nn.Linear)]
                layers[-1].register_forward_hook(lambda m, i, o: o / torch.zeros(()))
            super().update(batch)

    world.Train = Poisoned  # type: ignore[attr-defined]
    assert world.main(world.Config(dynamics="rssm")) == 65
    told = capsys.readouterr().out
    optimizer = {"decoder": "world", "reward_head": "world", "actor": "actor"}.get(part, "critic")
    assert f"update 3 of optimizer `{optimizer}`" in told
    assert f"`{part}." in told and "(Linear) gave" in told
    assert "its windows: 0: game " in told


def test_returns_and_lengths_are_logged_as_episodes_end(root: Path) -> None:
    """Rows 20 to 64 after the prefill: resets at rows 0, 13, ..., 65, so 3 episodes of each end."""
    assert train(root) == 0
    told = [line for line in lines(root, "train") if "train/length" in line]
    assert told and all(line["train/length"] == 12 for line in told)
    assert all({"train/return", "train/guess", "env_steps"} <= line.keys() for line in told)


def test_an_epoch_ends_at_every_evaluation(root: Path) -> None:
    assert train(root, until=Until(Epochs(2))) == 0
    assert [line["env_steps"] for line in lines(root, "eval")] == [80, 120]
    result = read_result(root / Config().out)
    assert result is not None
    assert (result.epoch, result.extra["env_steps"]) == (2, 120)


def test_a_gate_may_read_the_evaluation(root: Path) -> None:
    gate = Gate("eval/length", at_least=12, otherwise="fail")
    assert train(root, until=Until(EnvSteps(500), gate)) == 0
    assert len(lines(root, "eval")) == 1


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"monitor": {"best": "train/guess"}}, "monitor best reads train/guess"),
        (
            {"until": Until(EnvSteps(130), Gate("eval/retrun", above=1))},
            "the gate reads eval/retrun",
        ),
    ],
)
def test_a_figure_that_is_not_measured_is_told_in_a_line(
    root: Path, how: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(root, **how) == 2
    said, traceback = capsys.readouterr()
    known = "what is measured is eval/length, eval/return, eval/reward_events"
    assert f"failed(bad_value): {told}, but {known}" in said
    assert "Traceback" not in said + traceback


def test_no_better_than_chance_is_said_aloud(root: Path) -> None:
    assert train(root) == 0
    result = read_result(root / Config().out)
    assert result is not None
    warned = "\n".join(result.warnings)
    assert "no reward in the 40 env steps of prefill" in warned
    assert "eval/return 0 is no better than chance: a uniform random policy gives 0" in warned
    assert "eval/length" not in warned


def test_an_environment_that_never_pays_is_said_aloud(root: Path) -> None:
    env = PinPad("three", time_limit=12, batch=2, variant="port")
    assert train(root, feed={"env": env}) == 0
    result = read_result(root / Config().out)
    assert result is not None
    assert "pinpad never pays as it is set: every return will be 0" in result.warnings


@pytest.mark.parametrize("dynamics", ["rssm", "vta"])
def test_a_smoke_run_does_everything_once(root: Path, world: ModuleType, dynamics: str) -> None:
    cfg = world.Config(smoke=True, dynamics=dynamics, time_limit=1000, prefill=1000, every=2000)
    cfg = replace(cfg, train_ratio=0.5, capacity=100_000)
    assert world.main(cfg) == 0
    out = root / f"{cfg.out}.smoke"
    result = read_result(out)
    assert result is not None
    assert (result.state, result.step) == ("smoke", 2)
    assert result.extra["env_steps"] < 40
    assert result.metrics["eval/length"] == 8
    assert np.load(out / "held_out" / "1.npz")["image"].shape == (9, 64, 64, 3)
    assert isinstance(load(out), Module)
