"""What a replay asks of an environment."""

from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor

__all__ = ["Environment"]


class Environment(Protocol):
    """``batch`` games on one device, to which every random draw is handed.

    The first step of a new one, and each step after ``is_last``, is a reset: its action is ignored
    and its reward 0.
    """

    batch: int
    is_first: Tensor  # (B,) bool, as the two after it
    is_last: Tensor
    is_terminal: Tensor

    @property
    def actions(self) -> int: ...

    @property
    def can_pay(self) -> bool:
        """Whether any policy is ever paid."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """For the record; ``time_limit`` is None where episodes need not end."""
        ...

    @property
    def cells(self) -> Tensor:
        """(B, ...) uint8: the frame, unpainted."""
        ...

    @property
    def events(self) -> dict[str, Tensor]:
        """What happened in the last step, (B,) bool by name."""
        ...

    def advance(self, action: Tensor, u: Tensor) -> Tensor:
        """One step: action (B,) int64, u (B,) float64 in [0, 1) -> reward (B,) float32."""
        ...

    def paint(self, cells: Tensor) -> Tensor:
        """(..., H, W, C) uint8 of any cells."""
        ...

    def paint_unit(self, cells: Tensor) -> Tensor:
        """The same from 0 to 1, float32."""
        ...

    def like(self, *, batch: int) -> Self:
        """A new one with the same settings."""
        ...

    def to(self, device: torch.device | str) -> Self: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
