"""Two interleaved half circles: rows that a straight line can't tell apart."""

from typing import ClassVar

import torch
from torch import Tensor


class Moons:
    """Points of two half circles with noise. `columns` says what each column means."""

    columns: ClassVar[dict[str, str]] = {"point": "features", "upper": "prob"}

    def __init__(self, rows: int = 2000, noise: float = 0.2, seed: int = 0) -> None:
        self.rows = rows
        self.noise = noise
        self.seed = seed

    def tensors(self) -> dict[str, Tensor]:
        """point (N, 2) float32, upper (N,) float32 in {0, 1}."""
        draw = torch.Generator().manual_seed(self.seed)
        angle = torch.rand(self.rows, generator=draw) * torch.pi
        upper = (torch.rand(self.rows, generator=draw) < 0.5).float()
        side = 2 * upper - 1
        point = torch.stack(
            [angle.cos() * side + (1 - upper), angle.sin() * side + (1 - upper) / 2], 1
        )
        return {
            "point": point + self.noise * torch.randn(self.rows, 2, generator=draw),
            "upper": upper,
        }
