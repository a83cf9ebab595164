"""What it takes to run an update again: its batch, and the random numbers that it drew."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expc_runtime.microbatch import Batch
from expc_runtime.optim import NonFinite

__all__ = ["Draws", "Incident", "Trail"]

Draws = tuple[tuple[torch.Generator, Tensor], ...]  # generators, each with a state


@dataclass(frozen=True)
class Incident:
    """An update that met something not finite, and what it takes to run it again."""

    batch: Batch
    draws: Draws  # before it
    update: int  # from 0
    drive: str
    loss: float


class Trail:
    """The newest two updates, for a flag may be read one step late."""

    __slots__ = ("_before", "_draw", "_drawn_before", "_suspect", "batch", "drawn")

    def __init__(self, device: torch.device | None = None) -> None:
        self._draw: Callable[[], Draws] = _draws_of(device) if device is not None else lambda: ()
        self.batch: Batch | None = None
        self.drawn: Draws = ()  # the state of what it draws from, before the batch
        self._before: Batch | None = None
        self._drawn_before: Draws = ()
        self._suspect: tuple[Batch, Draws, int] | None = None

    def begin(self, batch: Batch) -> None:
        """An update; in the hot loop."""
        self._before, self.batch = self.batch, batch
        self._drawn_before, self.drawn = self.drawn, self._draw()

    def suspect(self, update: int) -> None:
        """Remember the newest batch until the ranks come to speak of it; the first one counts."""
        if self._suspect is None and self.batch is not None:
            self._suspect = self.batch, self.drawn, update

    def incident(self, hit: NonFinite, update: int) -> Incident:
        """The update that ``hit`` is about, which is ``update`` unless another one is suspect."""
        batch, draws = self.batch, self.drawn
        if hit.late:
            batch, draws = self._before, self._drawn_before
        if self._suspect is not None:
            batch, draws, update = self._suspect
        return Incident(batch or (), draws, update, hit.drive, hit.loss)

    def take_back(self) -> None:
        """Give the generators the states that they had before the newest update."""
        for generator, state in self.drawn:
            generator.set_state(state)


def _draws_of(device: torch.device) -> Callable[[], Draws]:
    """Gives the states of torch's generators; cheap enough to be asked before every update."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    return lambda: tuple([(generator, generator.get_state()) for generator in generators])
