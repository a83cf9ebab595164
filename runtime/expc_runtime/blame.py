"""Who made the NaN: the update that met one is run again, watched by hooks and op by op."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from expc_runtime.errors import Diverged, exhausted
from expc_runtime.incident import Incident
from expc_runtime.module import Batch, Module
from expc_runtime.norms import aside
from expc_runtime.ops import Ops, Origin, kinds, summary, tensors

__all__ = ["Seen", "Sight", "blame", "look", "told"]


def blame(
    module: Module,
    incident: Incident,
    origin: Callable[[int, Sequence[int]], str] = lambda update, rows: "",
    keep: Callable[[Incident], str] = lambda incident: "",
) -> Diverged:
    """Run the update again, weights untouched, and name what is first not finite.

    In order: a column of the batch, a parameter, the output of a module, a recorded scalar, the
    gradient at the output of a module. The message says the update (from 0), what entered there
    (dtype, min, max, mean), the op that made it and its line, which rows of the batch are bad, and
    whether the update is finite in float32 as well. It ends with what ``keep`` says of it.
    """
    what = (
        "a gradient is not finite"
        if math.isfinite(incident.loss)
        else f"the loss is {incident.loss:g}"
    )
    lines = [f"update {incident.update} of optimizer `{incident.drive}`: {what}"]
    sight = _before_any_op(module, incident.batch) or _again(module, incident)
    lines += told(sight)
    gathered = module.drive(incident.drive).accumulate
    if gathered > 1 and not sight.fault:
        lines.append(f"  its step gathers {gathered} batches: an earlier one may have been bad")
    half = module.half_dtype
    if half is not None and sight.fault and not sight.known and not sight.failed:
        again = _again(module, incident, half=False)
        name = str(half).removeprefix("torch.")
        if again.failed:
            lines.append(f"  in float32: {again.fault}")
        elif again.fault:
            lines.append(f"  in float32 too: it is not {name}")
        else:
            lines.append(f"  in float32 the same batch is finite: {name} is the cause")
    if where := origin(incident.update, sight.rows):
        lines.append(f"  {where}")
    guilty = bool(sight.fault) and not sight.failed
    if (guilty or module.ranks.size == 1) and (end := keep(incident)):
        lines.append(f"  {end}")
    error = Diverged("\n".join(lines))
    error.found = guilty
    error.source = sight.origin.source if sight.origin else ""
    return error


@dataclass
class Seen:
    """What a module gave, or, going back, the gradient that reached its output."""

    name: str
    kind: str  # class of the module; or "gradient"
    value: Tensor


@dataclass
class Sight:
    """What an update looked like up to the first value that is not finite."""

    fault: str = ""  # for people; empty if all is finite
    origin: Origin | None = None
    rows: tuple[int, ...] = ()  # of the batch, that are bad, where they can be told
    known: bool = False  # before anything was computed
    failed: bool = False  # it could not be run again; the fault says why
    seen: list[Seen] = field(default_factory=list)


def told(sight: Sight) -> list[str]:
    """Its fault for people, a few lines."""
    if not sight.fault:
        return ["  run again, the same batch is finite: a race, or what was drawn elsewhere"]
    lines = [f"  {sight.fault}"]
    if sight.origin is not None:
        lines += [f"  {line}" for line in str(sight.origin).splitlines()]
    if sight.rows and not sight.known:
        lines.append(f"  bad rows of the batch: {_some(sight.rows)}")
    return lines


def _some(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:8])) + ", ..." * (len(rows) > 8)


def _before_any_op(module: nn.Module, batch: Batch) -> Sight | None:
    for index, column in enumerate(batch):
        if bad := _bad_rows(column):
            fault = (
                f"input {index + 1} of the batch is not finite in {len(bad)} rows ({_some(bad)})"
            )
            return Sight(fault, rows=bad, known=True)
    # Buffers not: batch norm has seen the bad batch by now.
    for name, value in module.named_parameters():
        if not bool(value.isfinite().all()):
            fault = f"`{name}` itself is not finite: an earlier step or a loaded file did that"
            return Sight(fault, known=True)
    return None


def _bad_rows(column: Tensor) -> tuple[int, ...]:
    if not column.is_floating_point():
        return ()
    bad = (~column.isfinite()).reshape(len(column), -1).any(dim=1)
    return tuple(bad.nonzero().flatten().tolist())


def _again(module: Module, incident: Incident, *, half: bool = True) -> Sight:
    """`look`; what stops it is told, and is no reason to forget what it was about."""
    try:
        return look(module, incident, half=half)
    except Exception as error:  # noqa: BLE001  somebody's code, run a second time
        why = exhausted(error) or f"{type(error).__name__}: {error}"
    return Sight(f"it could not be run again: {why}", failed=True)


def look(module: Module, incident: Incident, *, half: bool = True) -> Sight:
    """Run an update again up to the first value that is not finite; nothing of it stays.

    With the numbers that it drew, in this run's precision or, with ``half`` false, in float32.
    """
    sight, first = Sight(), 0
    with aside(module), module.eager():
        for generator, state in incident.draws:
            generator.set_state(state)
        for piece in module.pieces(incident.batch):
            _look_at(module, piece, half, sight)
            if sight.fault:
                every = len(sight.rows) == len(piece[0])
                sight.rows = () if every else tuple(first + row for row in sight.rows)
                break
            first += len(piece[0])
    return sight


def _look_at(module: Module, batch: Batch, half: bool, sight: Sight) -> None:
    totals: list[tuple[str, Tensor]] = []
    ops = Ops(len(batch[0]))
    with torch.enable_grad(), ops:
        with _listening(module, sight, ops), module.rehearsal(half, totals.append) as records:
            module.rows_of(batch)
            module.update(batch)
        if not sight.fault:
            _blame_scalars([*records.kept(), *totals], sight, ops)
        if not sight.fault:
            _blame_gradients(module, totals, sight, ops)


def _blame_scalars(scalars: list[tuple[str, Tensor]], sight: Sight, ops: Ops) -> None:
    for name, value in scalars:
        if not bool(value.isfinite().all()):
            _accuse(
                sight,
                f"the outputs of all modules are finite, but `{name}` is {float(value):g}",
                ops.origin(value),
            )
            return


def _blame_gradients(
    module: Module, totals: list[tuple[str, Tensor]], sight: Sight, ops: Ops
) -> None:
    grads = [(p, p.grad) for p in module.parameters()]
    forward = len(ops.born)
    for p, _ in grads:
        p.grad = None
    try:
        for _, total in totals:
            total.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        for name, p in module.named_parameters():
            if not sight.fault and p.grad is not None and not bool(p.grad.isfinite().all()):
                _accuse(sight, f"the gradient of `{name}` is not finite", ops.origin(p.grad))
    finally:
        for p, grad in grads:
            p.grad = grad
    if sight.fault and sight.origin is None:
        sight.origin = next(iter(ops.born[forward:]), None)
        sight.rows = sight.origin.rows if sight.origin else ()


def _accuse(sight: Sight, fault: str, origin: Origin | None, rows: tuple[int, ...] = ()) -> None:
    sight.fault, sight.origin = fault, origin
    sight.rows = origin.rows if origin is not None and origin.rows else rows


@contextmanager
def _listening(module: nn.Module, sight: Sight, ops: Ops) -> Iterator[None]:
    """Hooks on every module without children; torchmetrics are no part of the net."""
    inside_metrics = {
        id(m) for child in module.modules() if isinstance(child, Metric) for m in child.modules()
    }
    leaves = [
        (name, m)
        for name, m in module.named_modules()
        if id(m) not in inside_metrics and not any(True for _ in m.children())
    ]
    handles = [leaf.register_forward_hook(_listener(name, sight, ops)) for name, leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _listener(name: str, sight: Sight, ops: Ops) -> Callable[[nn.Module, Any, Any], None]:
    def heard(leaf: nn.Module, given: Any, made: Any) -> None:
        if sight.fault:
            return
        kind = type(leaf).__name__
        for tensor in tensors(made):
            sight.seen.append(Seen(name, kind, tensor.detach()))
            if not bool(tensor.isfinite().all()):
                fault = f"`{name}` ({kind}) gave {kinds(tensor)}; {_entered(given, leaf)}"
                _accuse(sight, fault, ops.origin(tensor), _own_rows(tensor, ops))
                return
            if tensor.requires_grad:
                tensor.register_hook(lambda grad: came_back(kind, grad))  # type: ignore[no-untyped-call]

    def came_back(kind: str, grad: Tensor) -> None:
        if sight.fault:
            return
        sight.seen.append(Seen(name, "gradient", grad.detach()))
        if not bool(grad.isfinite().all()):
            fault = (
                f"forward is finite; going back, the gradient that reaches the output of "
                f"`{name}` ({kind}) is {kinds(grad)}"
            )
            _accuse(sight, fault, ops.origin(grad), _own_rows(grad, ops))

    return heard


def _own_rows(tensor: Tensor, ops: Ops) -> tuple[int, ...]:
    return _bad_rows(tensor) if tensor.ndim and len(tensor) == ops.rows else ()


def _entered(given: Any, leaf: nn.Module) -> str:
    entered = [summary("its input", tensor) for tensor in tensors(given)]
    entered += [summary(f"its {name}", p) for name, p in leaf.named_parameters(recurse=False)]
    return "; ".join(entered) or "it took no tensor"
