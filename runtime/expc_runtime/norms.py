"""Running statistics, as batch norm keeps them: averaged anew over the rows that are trained on.

In train mode such a layer reads its batch, in eval mode what it remembers of earlier ones, weights
long changed among them. The two can be far apart: a net that was 0.99 right in train mode was 0.86
right in eval mode, and one averaging pass put it at 0.995.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expc_runtime.module import Batch, Module

__all__ = ["AVERAGED", "aside", "drops", "reestimate", "running", "statistics", "young"]

AVERAGED = 65_536
"""Rows of the train split that one averaging pass reads at most."""


def running(module: Module) -> list[nn.Module]:
    """The layers with running statistics that move: those of frozen parts do not."""
    still = {id(inner) for part in module.held for inner in part.modules()}
    return [m for m in module.modules() if _keeps(m) and id(m) not in still]


def statistics(module: Module) -> list[Tensor]:
    """What those layers keep, in their order."""
    return [buffer for layer in running(module) for buffer in layer.buffers(recurse=False)]


def _keeps(layer: nn.Module) -> bool:
    tracks = getattr(layer, "track_running_stats", False)
    return bool(tracks) and isinstance(getattr(layer, "running_mean", None), Tensor)


def young(module: Module) -> bool:
    """Whether running statistics still hold more than 1 % of what they began with."""
    momenta = [m.momentum for m in running(module) if isinstance(m.momentum, float)]
    return any((1 - momentum) ** module.updates > 0.01 for momentum in momenta)


def drops(module: nn.Module) -> bool:
    """Whether it has dropout, which makes train mode worse than eval mode for a reason of its own."""
    kinds = nn.modules.dropout._DropoutNd
    return any(isinstance(m, kinds) and m.p > 0 and m.training for m in module.modules())


def reestimate(module: Module, batches: Iterable[Batch]) -> None:
    """Replace running statistics by their plain mean over ``batches``, all batches alike.

    The layers that keep them read the batch, as in training; all else is in eval mode, dropout off,
    as the statistics will be used. No gradients; weights, frozen parts, other buffers, modes and
    generators are as before.
    """
    layers: list[Any] = running(module)
    if not layers:
        return
    modes = [(part, part.training) for part in module.modules()]
    momenta = [layer.momentum for layer in layers]
    statistics = {id(buffer) for layer in layers for buffer in layer.buffers(recurse=False)}
    module.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for a cumulative mean
            layer.train()
        with aside(module, but=statistics), module.eager(), torch.no_grad():
            module.rehearse(batches)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for part, training in modes:
            part.training = training


@contextmanager
def aside(module: Module, *, but: Iterable[int] = ()) -> Iterator[None]:
    """After it, torch's generators and what no optimizer moves are as before.

    That is buffers and parameters without a gradient, a slow copy for one. Frozen parts, which
    nothing moves, are not copied. ``but`` are the ids of those that stay as they became.
    """
    still = (value for part in module.held for value in (*part.parameters(), *part.buffers()))
    spared = {*but, *map(id, still)}
    moved = [*module.buffers(), *(p for p in module.parameters() if not p.requires_grad)]
    before = [(value, value.clone()) for value in moved if id(value) not in spared]
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for value, was in before:
                    value.copy_(was)
