"""A batch that goes through the net in parts, each optimizer stepping once for all of it."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from expc_runtime.errors import BadValue

__all__ = ["Batch", "Parts"]

Batch = tuple[Tensor, ...]
"""Columns; a row of all of them is a sample."""


class Parts:
    """How batches are parted; while one is under way, how far it is.

    Raises ValueError for a ``microbatch`` that is no share of a batch.
    """

    def __init__(self, microbatch: float, *, drives: int) -> None:
        if not 0.0 < microbatch <= 1.0:
            raise ValueError(
                f"microbatch={microbatch}: it is a share of a batch, above 0, at most 1"
            )
        self.count = math.ceil(1 / microbatch - 1e-9)  # 1 / 0.1 is ten, whatever is left of it
        self.share = 1.0  # of the batch that goes through the net now
        self.gathered: list[str] = []  # drives that the parts called `step` for, in order
        self._in_order = (
            drives == 1
        )  # no module is called once a drive has stepped, as far as known

    def of(self, batch: Batch) -> list[Batch]:
        """Of equal rows but for one; as many as `count`, or as there are rows."""
        count = min(self.count, len(batch[0]))
        if count <= 1:
            return [batch]
        return list(zip(*(column.tensor_split(count) for column in batch), strict=True))

    def run(
        self, batch: Batch, update: Callable[[Batch], None], conclude: Callable[[str], None]
    ) -> None:
        """``update`` for each part, then ``conclude`` for each drive that gathered.

        Weighted by rows, the gradient of means over parts is that of the mean over the batch.
        Drives step when the last part is through, so that all parts meet the same weights.
        """
        rows = len(batch[0])
        try:
            for part in self.of(batch):
                self.share = len(part[0]) / rows
                if self._in_order:
                    update(part)
                else:
                    self._prove_order(part, update)
            for name in self.gathered:
                conclude(name)
        finally:
            self.share = 1.0
            self.gathered.clear()

    def note(self, name: str) -> None:
        """A drive has gathered."""
        if name not in self.gathered:
            self.gathered.append(name)

    def _prove_order(self, part: Batch, update: Callable[[Batch], None]) -> None:
        """The first part of all. Raises BadValue if a module is called after a drive's step.

        With the whole batch it would read the weights that this step wrote, with parts those before.
        """

        def called(module: nn.Module, given: Any) -> None:
            if self.gathered:
                raise BadValue(
                    f"microbatch: {type(module).__name__} is called after optimizer "
                    f"`{self.gathered[0]}` has stepped, so parts of a batch do not add up to "
                    "it; leave microbatch at 1"
                )

        handle = nn.modules.module.register_module_forward_pre_hook(called)
        try:
            update(part)
        finally:
            handle.remove()
        self._in_order = True
