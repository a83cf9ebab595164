"""Who made the NaN, and does the model answer the same to everything?"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from expc_runtime.errors import Diverged
from expc_runtime.optim import NonFinite

if TYPE_CHECKING:
    from expc_runtime.module import Batch, Module

__all__ = ["Spread", "blame", "untrained"]


def blame(
    module: "Module", batch: "Batch", hit: NonFinite, update: int, origin: str = ""
) -> Diverged:
    """Run ``update`` again on ``batch``, weights untouched, and name what is first not finite.

    In order: a column of the batch, a parameter, the output of a module, a recorded scalar, the
    gradient at the output of a module. The message says the update (from 0), what entered there (dtype, min, max,
    mean) and whether the batch is finite in float32 as well.
    """
    what = "a gradient is not finite" if math.isfinite(hit.loss) else f"the loss is {hit.loss:g}"
    where = f"update {update} of optimizer `{hit.drive}`: {what}"
    guilty = _column(batch) or _parameter(module) or _rerun(module, batch)
    lines = [where, f"  {guilty or 'run again, the same batch is finite: dropout or a race'}"]
    half = module.half_dtype
    if half is not None and guilty is not None:
        again = _rerun(module, batch, half=False)
        name = str(half).removeprefix("torch.")
        lines.append(
            f"  in float32 too: it is not {name}"
            if again
            else f"  in float32 the same batch is finite: {name} is the cause"
        )
    if origin:
        lines.append(f"  {origin}")
    error = Diverged("\n".join(lines))
    error.found = guilty is not None
    return error


def _column(batch: "Batch") -> str | None:
    for index, column in enumerate(batch):
        bad = _bad_rows(column)
        if bad:
            named = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            return f"input {index + 1} of the batch is not finite in {len(bad)} rows ({named})"
    return None


def _bad_rows(column: Tensor) -> list[int]:
    if not column.is_floating_point():
        return []
    bad = (~column.isfinite()).reshape(len(column), -1).any(dim=1)
    rows: list[int] = bad.nonzero().flatten().tolist()
    return rows


def _parameter(module: nn.Module) -> str | None:
    # Buffers not: batch norm has seen the bad batch by now.
    for name, value in module.named_parameters():
        if not bool(value.isfinite().all()):
            return f"`{name}` itself is not finite: an earlier step or a loaded file did that"
    return None


@dataclass
class _Trail:
    """The first non-finite value of a forward pass, and of the backward pass after it."""

    forward: str | None = None
    backward: str | None = None


def _rerun(module: "Module", batch: "Batch", half: bool = True) -> str | None:
    """What is first not finite when the batch is run again; None if all of it is finite."""
    trail = _Trail()
    totals: list[tuple[str, Tensor]] = []
    # Batch norm counts what it sees; a slow copy follows at the end of an update.
    moved = [*module.buffers(), *(p for p in module.parameters() if not p.requires_grad)]
    before = [(value, value.clone()) for value in moved]
    try:
        with (
            module.eager(),
            _listening(module, trail),
            module.rehearsal(half, totals.append) as records,
        ):
            module.update(batch)
        if trail.forward is None:
            trail.forward = _scalar(records.kept()) or _scalar(totals)
        if trail.forward is None:
            trail.backward = _gradients(module, trail, totals)
    finally:
        with torch.no_grad():
            for value, was in before:
                value.copy_(was)
    return trail.forward or trail.backward


def _scalar(scalars: list[tuple[str, Tensor]]) -> str | None:
    for name, value in scalars:
        if not bool(value.isfinite().all()):
            return f"the outputs of all modules are finite, but `{name}` is {float(value):g}"
    return None


def _gradients(module: "Module", trail: _Trail, totals: list[tuple[str, Tensor]]) -> str | None:
    grads = [(p, p.grad) for p in module.parameters()]
    try:
        for _, total in totals:
            total.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        if trail.backward is not None:
            return trail.backward
        for name, p in module.named_parameters():
            if p.grad is not None and not bool(p.grad.isfinite().all()):
                return f"the gradient of `{name}` is not finite"
    finally:
        for p, grad in grads:
            p.grad = grad
    return None


@contextmanager
def _listening(module: nn.Module, trail: _Trail) -> Iterator[None]:
    """Hooks on every module without children; torchmetrics are no part of the net."""
    inside_metrics = {
        id(m) for child in module.modules() if isinstance(child, Metric) for m in child.modules()
    }
    leaves = [
        (name, m)
        for name, m in module.named_modules()
        if id(m) not in inside_metrics and not any(True for _ in m.children())
    ]
    handles = [leaf.register_forward_hook(_listener(name, trail)) for name, leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _listener(name: str, trail: _Trail) -> Callable[[nn.Module, Any, Any], None]:
    def heard(leaf: nn.Module, given: Any, made: Any) -> None:
        where = f"`{name}` ({type(leaf).__name__})"
        for tensor in _tensors(made):
            if trail.forward is None and not bool(tensor.isfinite().all()):
                trail.forward = f"{where} gave {_kinds(tensor)}; {_entered(given, leaf)}"
            if tensor.requires_grad:
                tensor.register_hook(lambda grad: came_back(where, grad))  # type: ignore[no-untyped-call]

    def came_back(where: str, grad: Tensor) -> None:
        if trail.backward is None and not bool(grad.isfinite().all()):
            trail.backward = (
                f"forward is finite; going back, the gradient that reaches the output of "
                f"{where} is {_kinds(grad)}"
            )

    return heard


def _entered(given: Any, leaf: nn.Module) -> str:
    told = [_summary("its input", tensor) for tensor in _tensors(given)]
    told += [_summary(f"its {name}", p) for name, p in leaf.named_parameters(recurse=False)]
    return "; ".join(told) or "it took no tensor"


def _summary(what: str, tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if not tensor.numel():
        return f"{what} is empty"
    values = tensor.detach().double()
    low, high = (float(end) for end in values.aminmax())
    mean = float(values.mean())
    return f"{what} is {name}, {low:.4g} to {high:.4g}, mean {mean:.4g}"


def _kinds(tensor: Tensor) -> str:
    """How many values are NaN and how many infinite."""
    name = str(tensor.dtype).removeprefix("torch.")
    nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    told = [f"{count} {kind}" for count, kind in ((nan, "NaN"), (inf, "infinite")) if count]
    return f"{' and '.join(told) or 'no bad'} of {tensor.numel()} values ({name})"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


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
        for head, answer in enumerate(_tensors(made)):
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
