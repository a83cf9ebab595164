"""What a module records: scalars that stay on the device until somebody asks for a mean."""

from typing import Any

import torch
from torch import Tensor

from expc_runtime.ranks import ALONE, Ranks

__all__ = ["Records"]


class Records:
    """Means of scalars, weighted by rows. Scalars stay where they are until a mean is wanted."""

    FOLD = 256  # entries kept before they are summed, so that a long split stays small

    def __init__(self) -> None:
        self._kept: list[tuple[float, dict[str, Tensor]]] = []
        self._sums: dict[str, float] = {}
        self._rows: dict[str, float] = {}

    def add(self, rows: float, scalars: dict[str, Tensor]) -> None:
        """Keep 0-dim tensors for a mean weighted by ``rows``; nothing waits for the device."""
        self._kept.append((rows, {name: value.detach() for name, value in scalars.items()}))
        if len(self._kept) >= self.FOLD:
            self._fold()

    def means(self, ranks: Ranks = ALONE) -> dict[str, float]:
        """The mean of every name since the last `clear`, over the rows of all ``ranks``."""
        self._fold()
        whole = Records()
        for state in ranks.gather(self.state_dict()):
            whole.include(state)
        return {name: total / whole._rows[name] for name, total in whole._sums.items()}

    def include(self, state: dict[str, Any]) -> None:
        """Add what other records, by their `state_dict`, have seen."""
        for name, total in state["sums"].items():
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._rows[name] = self._rows.get(name, 0) + state["rows"][name]

    def kept(self) -> list[tuple[str, Tensor]]:
        """Scalars that no mean has been asked of yet, oldest first."""
        return [(name, value) for _, scalars in self._kept for name, value in scalars.items()]

    def clear(self) -> None:
        self._kept.clear()
        self._sums.clear()
        self._rows.clear()

    def state_dict(self) -> dict[str, Any]:
        self._fold()
        return {"sums": dict(self._sums), "rows": dict(self._rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        self.include(state)

    def _fold(self) -> None:
        """One stacked transfer of all that is kept."""
        kept = [(n, rows, v) for rows, scalars in self._kept for n, v in scalars.items()]
        self._kept.clear()
        if not kept:
            return
        for name, _, value in kept:
            if value.ndim:
                raise ValueError(f"record({name}=...): a scalar, not a {tuple(value.shape)} tensor")
        values = torch.stack([value.float() for _, _, value in kept]).tolist()
        for (name, rows, _), value in zip(kept, values, strict=True):
            self._sums[name] = self._sums.get(name, 0.0) + rows * value
            self._rows[name] = self._rows.get(name, 0) + rows
