"""When a stage is done: a budget, and a bound that a metric must meet within it."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from expc_runtime.clocks import EnvSteps, Epochs, Minutes, Updates
from expc_runtime.errors import BadValue

__all__ = ["Gate", "GateWatch", "Until"]

Otherwise = Literal["fail", "warn", "stop"]
Mode = Literal["eval", "train"]

_RISING = ("at_least", "above")
_WORDS = {"at_least": ">=", "above": ">", "at_most": "<=", "below": "<"}


@dataclass(frozen=True)
class Gate:
    """A bound on ``metric``, ``<split>/<name>``; exactly one of the four bounds is given.

    Training stops at the first epoch that meets it. ``patience`` also stops it after so many epochs
    without a better value. If it was not met: ``fail`` ends with exit code 3, ``warn`` counts as done,
    ``stop`` as done with what depends on it skipped.

    ``mode`` is the module's while the figure is taken, when the epoch is over. In ``train`` batch
    norm reads its batch, which hides what its running statistics do, and dropout is on; the figure
    of eval mode is measured beside it. A replay's ``eval`` is in train mode either way, as it acts.

    Raises ValueError unless there is one bound, a known ``otherwise`` and ``mode``, and a positive
    patience.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    patience: int | None = None
    otherwise: Otherwise = "fail"
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        given = [name for name in _WORDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"gate on {self.metric}: one of {', '.join(_WORDS)}, not {len(given)}")
        if self.otherwise not in ("fail", "warn", "stop"):
            raise ValueError(f"gate on {self.metric}: otherwise={self.otherwise!r} is not known")
        if self.mode not in ("eval", "train"):
            raise ValueError(f"gate on {self.metric}: mode={self.mode!r} is not known")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"gate on {self.metric}: patience={self.patience} is below 1")
        if self.split not in ("train", "val", "eval"):
            raise ValueError(f"gate on {self.metric}: it is train/, val/ or eval/<name>")

    @property
    def split(self) -> str:
        return self.metric.partition("/")[0]

    @property
    def bound(self) -> str:
        return next(name for name in _WORDS if getattr(self, name) is not None)

    @property
    def required(self) -> float:
        return float(getattr(self, self.bound))

    @property
    def rises(self) -> bool:
        return self.bound in _RISING

    def met(self, value: float) -> bool:
        """Whether ``value`` meets the bound; NaN meets none."""
        required = self.required
        match self.bound:
            case "at_least":
                return value >= required
            case "above":
                return value > required
            case "at_most":
                return value <= required
            case _:
                return value < required

    def better(self, value: float, than: float | None) -> bool:
        if math.isnan(value):
            return False
        return than is None or (value > than if self.rises else value < than)

    def __str__(self) -> str:
        return f"{self.metric} {_WORDS[self.bound]} {self.required:g}"


class Paced(Protocol):
    """What knows how many updates belong to the other clocks; a feed does."""

    def updates_after(self, epochs: int) -> int:
        """Updates in the first ``epochs`` epochs."""
        ...

    def updates_at(self, env_steps: int) -> int:
        """Updates by the time that so many env steps are done; ValueError without an environment."""
        ...


@dataclass(frozen=True)
class Until:
    """Train for ``budget``, or until ``gate`` is met."""

    budget: Epochs | Updates | EnvSteps | Minutes
    gate: Gate | None = None

    def updates(self, pace: Paced) -> int | None:
        """The budget in updates; None for one in minutes."""
        match self.budget:
            case Epochs(count):
                return pace.updates_after(count)
            case EnvSteps(count):
                return pace.updates_at(count)
            case Updates(count):
                return count
            case _:
                return None


class GateWatch:
    """What a gate has seen so far."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.met = False
        self.best: float | None = None
        self.seen = 0  # times it was evaluated
        self.worse = 0  # of these, in a row and last, without a better value

    def see(self, figures: dict[str, float]) -> bool:
        """Take an epoch's figures; True if training stops here.

        Raises BadValue if the metric is not among them.
        """
        gate = self.gate
        if gate.metric not in figures:
            raise BadValue(
                f"the gate reads {gate.metric}, but what is measured is "
                f"{', '.join(sorted(figures)) or 'nothing'}"
            )
        value = figures[gate.metric]
        self.seen += 1
        if gate.better(value, self.best):
            self.best, self.worse = value, 0
        else:
            self.worse += 1
        self.met = gate.met(value)
        return self.met or self.out_of_patience

    @property
    def out_of_patience(self) -> bool:
        return self.gate.patience is not None and self.worse >= self.gate.patience

    def message(self, spent: str, beside: float | None = None) -> str:
        """What to say at the end; ``spent`` is the budget that was used, as ``10 epochs``.

        ``beside`` is what eval mode makes of the newest weights, for a gate in train mode.
        """
        gate = self.gate
        sign = _WORDS[gate.bound]
        said = "" if gate.mode == "eval" else " in train mode"
        other = "" if beside is None else f"; in eval mode it is {_figure(beside)}"
        if self.met and self.best is not None:
            met = f"{_figure(self.best)} {sign} {_figure(gate.required)}"
            return f"gate met: {gate.metric} {met}{said}{other}"
        lines = [f"gate not met: {gate.metric} after {spent}{said}{other}"]
        if self.best is None:
            lines.append(f"  achieved: nothing finite   required: {sign} {_figure(gate.required)}")
        else:
            lines.append(
                f"  achieved: {_figure(self.best)}   required: {sign} {_figure(gate.required)}"
                + self._share()
            )
        if self.out_of_patience:
            lines.append(f"  no better value in {_times(self.worse)}: patience was {gate.patience}")
        lines.append(
            "  a larger budget, another learning rate, a smaller batch, or a bound that is "
            "within reach"
        )
        return "\n".join(lines)

    def _share(self) -> str:
        if not self.gate.rises or not self.gate.required > 0 or self.best is None:
            return ""
        return f"   (reached {100 * self.best / self.gate.required:.1f}% of it)"

    def state_dict(self) -> dict[str, float | int | bool | None]:
        return {"met": self.met, "best": self.best, "seen": self.seen, "worse": self.worse}

    def load_state_dict(self, state: dict[str, float | int | bool | None]) -> None:
        self.met = bool(state["met"])
        self.best = state["best"]
        self.seen, self.worse = int(state["seen"] or 0), int(state["worse"] or 0)


def _figure(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.6g}"


def _times(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"
