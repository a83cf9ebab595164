"""Bytes of a training step, counted from shapes: what stays, and what a backward pass waits for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from expc_runtime.optim import Drive

__all__ = ["Kept", "Sizes", "state_bytes", "storage_bytes"]


class Kept:
    """Counts the bytes that autograd saves for backward while it is entered.

    A storage counts once, however many views of it are saved. ``beside`` are tensors that are there
    anyway (weights, buffers, the batch) and do not count. `restart` begins anew, for a step whose
    graph is not the last one's; ``most`` is the largest count so far.
    """

    def __init__(self, beside: Iterable[Tensor]) -> None:
        self._beside = {_storage(tensor): tensor for tensor in beside}
        self._saved: dict[int, tuple[int, Tensor]] = {}
        self._hooks = saved_tensors_hooks(self._pack, lambda kept: kept)
        self.most = 0

    def _pack(self, tensor: Tensor) -> Tensor:
        place = _storage(tensor)
        if place not in self._beside:
            # With the tensor, or a later storage could be given the same place.
            self._saved[place] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    def restart(self) -> None:
        self.most = max(self.most, sum(size for size, _ in self._saved.values()))
        self._saved.clear()

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self.restart()


@dataclass(frozen=True)
class Sizes:
    """What one training step of a stage holds, in bytes but for ``parameters``.

    ``weights`` are parameters and buffers, ``gradients`` those of the largest optimizer (of all, where
    they accumulate), ``optimizer`` its state after the first step, ``kept`` what autograd saves for
    backward, by precision. Casts of weights that autocast makes are saved, so they are in ``kept``.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int | None
    batch: int | None = None
    kept: Mapping[str, int] | None = None

    def peak(self, precision: str) -> int | None:
        """weights + gradients + optimizer + kept + batch, an upper bound of what is held at once.

        It leaves out the workspace of kernels, the slack of the allocator, and the data set.
        """
        if self.kept is None or self.batch is None or self.optimizer is None:
            return None
        held = self.weights + self.gradients + self.optimizer + self.batch
        return held + self.kept[precision]

    @classmethod
    def of(cls, module: nn.Module, drives: Mapping[str, Drive], optimizer: int | None) -> "Sizes":
        """The sizes that do not depend on a batch."""
        parameters = list(module.parameters())
        by_drive = [(drive, _trained(drive.optimizer)) for drive in drives.values()]
        each = [sum(p.nbytes for p in trained) for _, trained in by_drive]
        gathers = any(drive.accumulate > 1 for drive, _ in by_drive)
        return cls(
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in parameters if p.requires_grad),
            weights=storage_bytes([*parameters, *module.buffers()]),
            gradients=(sum(each) if gathers else max(each, default=0)),
            optimizer=optimizer,
        )


def _trained(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind ``tensors``, each once."""
    sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of an optimizer's state as it is."""
    return storage_bytes(_tensors(optimizer.state.values()))


def _tensors(held: Iterable[Any]) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves([dict(each) for each in held])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    place: int = tensor.untyped_storage()._cdata
    return place
