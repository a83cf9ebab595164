"""Does the model answer the same to everything, and does something train all of it?"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expc_runtime.diagnosis.ops import tensors

if TYPE_CHECKING:
    from expc_runtime.module import Module

__all__ = ["Spread", "untrained"]


class Spread:
    """How far a module's answers differ between rows; listens to `forward` while it is open.

    Sums stay on the device; `constant` is the one transfer.
    """

    SAME = 1e-4  # deviation over rows, as a share of 1 + the size of the answer

    def __init__(self, module: nn.Module) -> None:
        self._sums: dict[int, list[Tensor]] = {}
        self._rows: dict[int, int] = {}
        self._handle = module.register_forward_hook(self._hear)

    def close(self) -> None:
        self._handle.remove()

    def _hear(self, module: nn.Module, given: Any, made: Any) -> None:
        for head, answer in enumerate(tensors(made)):
            answer = (
                answer.detach().float().flatten(1) if answer.ndim > 1 else answer[:, None].float()
            )
            first = self._sums.setdefault(head, [answer[0].clone()])[0]
            away = answer - first  # from the first row: no cancellation
            moments = [away.sum(0), away.square().sum(0)]
            if len(self._sums[head]) == 1:
                self._sums[head] += moments
                self._rows[head] = len(answer)
            else:
                self._sums[head][1].add_(moments[0])
                self._sums[head][2].add_(moments[1])
                self._rows[head] += len(answer)

    def widths(self) -> list[tuple[int, float, float]]:
        """For each head, from 0, of more than one row: its largest deviation over rows, as a share
        of 1 + the size of the answer, and as it is. One transfer."""
        heads, widths = [], []
        for head, (first, total, squares) in self._sums.items():
            rows = self._rows[head]
            if rows < 2:
                continue
            deviation = (squares / rows - (total / rows).square()).clamp(min=0).sqrt()
            size = 1 + (first + total / rows).abs()
            heads.append(head)
            widths.append(torch.stack([(deviation / size).max(), deviation.max()]))
        if not heads:
            return []
        told = torch.stack(widths).tolist()
        return [(head, share, width) for head, (share, width) in zip(heads, told, strict=True)]

    def constant(self) -> list[int]:
        """Heads, from 0, whose answer is the same for every row seen (two rows at least)."""
        return [head for head, share, _ in self.widths() if share < self.SAME]


def untrained(module: "Module") -> list[str]:
    """Parameters that ask for a gradient and that no optimizer holds, by name."""
    driven = {
        id(p)
        for name in module.drive_names()
        for group in module.drive(name).optimizer.param_groups
        for p in group["params"]
    }
    return [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in driven]
