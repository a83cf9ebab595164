"""A `TrainingFeed` that plays: what the module does is recorded, and sampled windows are trained on."""

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from expc_runtime.clocks import EnvSteps, Updates
from expc_runtime.data.feed import CHUNK
from expc_runtime.errors import BadValue
from expc_runtime.evals.episodes import HELD_OUT
from expc_runtime.feeds import Work
from expc_runtime.module import Batch
from expc_runtime.replay.draws import Draws, generator
from expc_runtime.replay.environment import Environment
from expc_runtime.replay.episodes import Episodes, Windows
from expc_runtime.replay.evaluation import Evaluate, Evaluation
from expc_runtime.replay.games import LAST, TERMINAL, Games, frame_of
from expc_runtime.replay.log import FrameLog
from expc_runtime.replay.schedule import Schedule

__all__ = ["COLUMNS", "Replay"]

COLUMNS = ("image", "action", "reward", "is_first", "is_last", "is_terminal", "cont")


class Replay:
    """Windows of ``length`` frames from what ``env`` showed, ``batch`` of them in a batch.

    Args:
        env: the environments that are played, all at once.
        columns: names, in the order in which a batch holds them, (batch, length, ...) each:
            image float32 from 0 to 1; action one-hot float32, the one that led to the frame, zeros
            for a first one; reward; is_first, true also where a window or another episode in it
            begins; is_last, is_terminal; cont = 1 - is_terminal.
        capacity: frames kept; the oldest episodes go.
        train_ratio: replayed frames for each env step.
        prefill: env steps of a uniform random policy before the first update.
        pretrain: updates at once after it.
        evaluate: when and how episodes are played to be measured; an epoch ends there.

    An env step is one call of one environment: prefill, and the call that resets it, count too.
    Draws follow from the seed of the run and the number of the row or update, so a checkpoint holds
    the environments, what the module remembers of them, and how long the log is, no generator.
    Raises ValueError for numbers that fit no training.
    """

    mode: Literal["eval", "train"] = "train"  # see Evaluation
    nothing = "chance"
    chance = "a uniform random policy"
    part = "round"  # the steps up to an evaluation, and that

    def __init__(
        self,
        env: Environment,
        *,
        columns: Sequence[str],
        batch: int,
        length: int,
        train_ratio: float,
        prefill: EnvSteps,
        evaluate: Evaluate,
        capacity: int = 1_000_000,
        pretrain: Updates | None = None,
    ) -> None:
        if unknown := [name for name in columns if name not in COLUMNS]:
            raise ValueError(f"a replay has {', '.join(COLUMNS)}, but no {', '.join(unknown)}")
        if batch < 1 or length < 1:
            raise ValueError(f"batch={batch}, length={length}: at least one frame is trained on")
        if capacity < prefill.count:
            raise ValueError(f"capacity={capacity}: the prefill alone is {prefill}")
        self.names = tuple(columns)
        self.batch = batch
        self.length = length
        self.capacity = capacity
        self._env = env
        self._evaluate = evaluate
        self._plan = Schedule(
            envs=env.batch,
            frames=batch * length,
            ratio=Fraction(train_ratio),
            prefill=prefill.count,
            pretrain=pretrain.count if pretrain else 0,
            every=evaluate.every.count,
        )

    # Beginning.

    def setup(self, device: torch.device, seed: int) -> None:
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device={device}: environments are played on cpu or cuda")
        env = self._env = self._env.to(device)
        self._device, self._seed = device, seed
        self._games = Games(env)
        self._draws = Draws(seed, "play", env.batch, device)
        self._every_env = np.arange(env.batch)
        self._row = 0  # rows played
        self._landing = Landing(device)
        self._finished: list[tuple[float, float]] = []  # return and env steps, not yet told
        self._origins: deque[tuple[int, Windows]] = deque(maxlen=3)
        self._answers = torch.eye(env.actions + 1, env.actions, device=device)

    def attach(self, work: Work) -> None:
        if work.ranks.size > 1:
            raise BadValue(
                f"{work.ranks.size} devices for one run: what is learned from a replay is trained by "
                "one process, which also acts; leave run.devices of this stage at 1"
            )
        env = self._env
        self._work = work
        if work.smoke:
            self._plan = self._plan.brief(1 + self._landing.lag + min(self.length, 64))
        self._require_prefill()
        self._log = FrameLog(work.folder / "replay", frame_of(env), env.batch)
        self._episodes = Episodes(env.batch, self.capacity)
        self._indexed = 0  # rows that episodes are made of
        self._needed: deque[int] = deque(maxlen=work.keep + 1)  # first rows of the newest saves
        self._evaluation = Evaluation(env, self._evaluate, self._seed, smoke=work.smoke)
        if not env.can_pay:
            work.warn(f"{env.settings['name']} never pays as it is set: every return will be 0")

    def _require_prefill(self) -> None:
        least = (2 + self._landing.lag) * self._env.batch
        if self._plan.prefill < least:
            raise ValueError(
                f"a prefill of {EnvSteps(self._plan.prefill)}: windows are first drawn from "
                f"{least} or more"
            )

    # Clocks.

    @property
    def updates_per_epoch(self) -> int:
        return self._plan.updates_per_epoch

    def updates_after(self, epochs: int) -> int:
        return self._plan.updates_by(self._plan.rows_after(epochs))

    def updates_at(self, env_steps: int) -> int:
        return self._plan.updates_at(env_steps)

    def counts(self) -> dict[str, int]:
        return {"env_steps": self._row * self._env.batch}

    # Playing.

    def _play_to(self, row: int) -> None:
        """Play until there are ``row`` rows."""
        games, module = self._games, self._work.module
        prefill, alive, envs = self._plan.prefill_rows, self._work.alive, self._env.batch
        while self._row < row:
            alive(f"env step {self._row * envs}")
            u, v = self._draws.row(self._row)
            action = games.guess(v) if self._row < prefill else games.choose(module, v)
            self._keep(self._landing.push(games.record(games.advance(action, u))))
            if self._row == prefill:
                self._require_reward()

    def _keep(self, landed: list[NDArray[np.uint8]]) -> None:
        self._row += 1
        for frames in landed:
            self._log.append(frames)
        self._index()

    def _index(self) -> None:
        # Not what has landed, which depends on when the training saved.
        while self._indexed < self._row - self._landing.lag:
            row = np.full_like(self._every_env, self._indexed)
            flags = self._log.gather(row, self._every_env)["flags"]
            self._episodes.add(self._indexed, flags)
            self._indexed += 1
            if self._indexed > self._plan.prefill_rows and (flags & LAST).any():
                self._finish(self._every_env[flags & LAST > 0])

    def _finish(self, envs: NDArray[np.int64]) -> None:
        for env in envs.tolist():
            first, length = self._episodes.span(env)
            rows = np.arange(first, first + length)
            reward = self._log.gather(rows, np.full_like(rows, env))["reward"]
            self._finished.append((float(reward.sum()), length - 1.0))

    def _require_reward(self) -> None:
        """Without one, the reward head and the actor have nothing to learn from yet."""
        if self._work.smoke or not self._env.can_pay:
            return
        row, env = np.divmod(np.arange(self._log.rows * self._env.batch), self._env.batch)
        if not self._log.gather(row, env)["reward"].any():
            self._work.warn(f"no reward in the {EnvSteps(self._plan.prefill)} of prefill")

    # Batches.

    def chunks(self, epoch: int, start: int, stop: int | None) -> Iterator["ReplayChunk"]:
        first, whole = self.updates_after(epoch), self.updates_after(epoch + 1)
        end = whole if stop is None else min(whole, first + stop)
        for update in range(first + start, end, CHUNK):
            yield ReplayChunk(self, range(update, min(update + CHUNK, end)))

    def batch_of(self, update: int) -> Batch:
        """Play up to ``update`` and sample its batch."""
        self._play_to(self._plan.rows_before(update))
        draws = generator(self._seed, "windows", update)
        windows = self._episodes.windows(draws, self.batch, self.length)
        self._origins.append((update, windows))
        return self._gathered(windows)

    def _gathered(self, windows: Windows) -> Batch:
        frames = self._log.gather(windows.row, windows.env)
        return tuple(self._column(name, frames, windows) for name in self.names)

    def _column(self, name: str, frames: NDArray[np.void], windows: Windows) -> Tensor:
        flags = frames["flags"]
        match name:
            case "image":
                return self._env.paint_unit(self._moved(frames["cells"]))
            case "action":
                led = self._moved(np.minimum(frames["action"], self._env.actions))
                return F.embedding(led.int(), self._answers)
            case "reward":
                return self._moved(frames["reward"])
            case "is_first":
                return self._moved(windows.is_first)
            case "is_last":
                return self._moved(flags & LAST > 0)
            case "is_terminal":
                return self._moved(flags & TERMINAL > 0)
            case _:
                return self._moved((flags & TERMINAL == 0).astype(np.float32))

    def _moved(self, values: NDArray[Any]) -> Tensor:
        here = torch.from_numpy(np.ascontiguousarray(values))
        return here.to(self._device, non_blocking=True)

    def complete(self, updates: int) -> None:
        """Play what an epoch, or a budget in env steps, has after its last update."""
        plan, budget = self._plan, self._work.until.budget
        epoch = self._work.module.epoch + 1
        ends = []
        if updates == self.updates_after(epoch):
            ends.append(plan.rows_after(epoch))
        if isinstance(budget, EnvSteps) and updates == self.updates_at(budget.count):
            ends.append(budget.count // plan.envs)
        if ends:
            self._play_to(min(ends))

    # Figures.

    def splits(self) -> list[str]:
        return ["eval"]

    def measured(self, split: str) -> dict[str, float]:
        return self._evaluation.measured(self._work)

    def sample(self, split: str, rows: int) -> Iterator[Batch]:
        """Windows of what was played so far, ``rows`` frames of it or less: only ``train`` has any."""
        if split != "train":
            raise BadValue(f"a replay has no rows of {split}: episodes are played for it")
        batches = max(1, min(rows, self._episodes.frames) // (self.batch * self.length))
        return map(self._sampled, range(1 if self._work.smoke else batches))

    def _sampled(self, number: int) -> Batch:
        draws = generator(self._seed, f"sample {self._work.module.updates}", number)
        return self._gathered(self._episodes.windows(draws, self.batch, self.length))

    def floors(self) -> dict[str, float]:
        return self._evaluation.floors()

    def rises(self, figure: str) -> bool:
        return True

    def told(self) -> dict[str, float]:
        """Means over the episodes that ended since the last time."""
        if not self._finished:
            return {}
        gained, steps = np.mean(self._finished, axis=0).tolist()
        self._finished.clear()
        return {"train/return": gained, "train/length": steps}

    def facts(self) -> dict[str, Any]:
        held = [f"{HELD_OUT}/{number}.npz" for number in range(self._evaluate.episodes)]
        replayed = {"frames": self._episodes.frames, "episodes": len(self._episodes)}
        return {"env": self._env.settings, "replay": replayed, "held_out": held}

    def origin(self, update: int, rows: Sequence[int] = ()) -> str:
        for number, windows in self._origins:
            if number == update:
                pieces = enumerate(windows.pieces)
                told = [_told(k, each) for k, each in pieces if k in rows or not rows]
                shown = "; ".join(told[:6]) + ("; ..." if len(told) > 6 else "")
                return f"its windows: {shown}"
        return ""

    # State.

    def state_dict(self) -> dict[str, Any]:
        if not self._row:
            self._log.restart()  # of what an earlier run may have left
        for frames in self._landing.drained():
            self._log.append(frames)
        self._log.flush()
        self._needed.append(self._episodes.first_row)
        self._log.retire(min(self._needed))
        return {
            "row": self._row,
            "indexed": self._indexed,
            "log": {"rows": self._log.rows, "crc": self._log.crc, "first": self._needed[-1]},
            "needed": list(self._needed),
            "games": self._games.state_dict(),
            "episodes": self._episodes.state_dict(),
            "finished": [list(pair) for pair in self._finished],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._log.load(**state["log"])
        self._row, self._indexed = state["row"], state["indexed"]
        self._needed.extend(state["needed"])
        self._games.load_state_dict(state["games"])
        self._episodes.load_state_dict(state["episodes"])
        self._finished = [(gained, steps) for gained, steps in state["finished"]]


class ReplayChunk:
    """A few updates in a row; the module acts between them."""

    def __init__(self, replay: Replay, updates: range) -> None:
        self._replay = replay
        self._updates = updates

    def __len__(self) -> int:
        return len(self._updates)

    def __iter__(self) -> Iterator[Batch]:
        for update in self._updates:
            yield self._replay.batch_of(update)


class Landing:
    """Frames on their way from the device, which nobody waits for: they land ``lag`` rows late."""

    def __init__(self, device: torch.device) -> None:
        self._direct = device.type == "cpu"
        self.lag = 0 if self._direct else 4
        self._flying: deque[tuple[Tensor, Any]] = deque()

    def push(self, frames: Tensor) -> list[NDArray[np.uint8]]:
        """Take a row; gives those that have landed."""
        if self._direct:
            return [frames.numpy()]
        host = torch.empty_like(frames, device="cpu", pin_memory=True)
        host.copy_(frames, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._flying.append((host, event))
        return [self._landed() for _ in range(len(self._flying) - self.lag)]

    def drained(self) -> list[NDArray[np.uint8]]:
        """All that is left, waited for."""
        return [self._landed() for _ in range(len(self._flying))]

    def _landed(self) -> NDArray[np.uint8]:
        host, event = self._flying.popleft()
        event.synchronize()
        return host.numpy()


def _told(window: int, pieces: list[tuple[int, int, int]]) -> str:
    of = [f"game {env}, episode at row {first} from frame {start}" for env, first, start in pieces]
    return f"{window}: {' then '.join(of)}"
