"""Intervals and budgets, each with the clock it is counted on."""

from dataclasses import dataclass

__all__ = ["EnvSteps", "Epochs", "Minutes", "Updates"]


@dataclass(frozen=True)
class Epochs:
    """Passes over the train split, or spans between two evaluations of a replay.

    Raises ValueError unless positive, as all of these do.
    """

    count: int

    def __post_init__(self) -> None:
        _positive("Epochs", self.count)

    def __str__(self) -> str:
        return _plural(self.count, "epoch")


@dataclass(frozen=True)
class Updates:
    """Calls of `update`, one batch each; with accumulation a step takes several of them."""

    count: int

    def __post_init__(self) -> None:
        _positive("Updates", self.count)

    def __str__(self) -> str:
        return _plural(self.count, "update")


@dataclass(frozen=True)
class EnvSteps:
    """Calls of an environment, of every one in a batch; those that reset and prefill included."""

    count: int

    def __post_init__(self) -> None:
        _positive("EnvSteps", self.count)

    def __str__(self) -> str:
        return _plural(self.count, "env step")


@dataclass(frozen=True)
class Minutes:
    """Wall-clock minutes of training, summed over resumed attempts."""

    count: float

    def __post_init__(self) -> None:
        _positive("Minutes", self.count)

    @property
    def seconds(self) -> float:
        return 60.0 * self.count

    def __str__(self) -> str:
        return _plural(self.count, "minute")


def _positive(name: str, count: float) -> None:
    if not count > 0:
        raise ValueError(f"{name}({count}): must be above 0")


def _plural(count: float, unit: str) -> str:
    return f"{count:g} {unit}" if count == 1 else f"{count:g} {unit}s"
