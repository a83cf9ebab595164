"""Who made the NaN: the update that met one is run again, watched by hooks and op by op."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric

from expc_runtime.diagnosis.incident import Incident
from expc_runtime.diagnosis.ops import Call, Ops, Origin, kinds, summary, tensors
from expc_runtime.errors import Diverged, exhausted
from expc_runtime.module import Batch, Module
from expc_runtime.norms import aside

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
    masked: bool = False  # a module gave an infinity that somebody wrote
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
            origin = ops.origin(value)
            if origin is not None and origin.within is not None:  # in no tensor that it gave
                fault = _own_op(origin.within, f"`{name}`, which is {float(value):g}")
            else:
                but = ", masks aside, but" if sight.masked else ", but"
                fault = f"the outputs of all modules are finite{but} `{name}` is {float(value):g}"
            _accuse(sight, fault, origin)
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
    """Hooks on every module below this one; torchmetrics are no part of the net."""
    inside_metrics = {
        id(m) for child in module.modules() if isinstance(child, Metric) for m in child.modules()
    }
    listener = _Listener(sight, ops)
    handles: list[RemovableHandle] = []
    try:
        for name, m in module.named_modules():
            if name and id(m) not in inside_metrics:
                handles += listener.listen(name, m)
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Listener:
    """Keeps what modules give, those without children, and accuses whoever made a bad value first.

    That is told by the op: a module that has children may have ops of its own, and what it hands
    to them is seen only in what they give.
    """

    def __init__(self, sight: Sight, ops: Ops) -> None:
        self.sight = sight
        self.ops = ops
        self.awaited: dict[int, Tensor] = {}  # by id; a module may give what its last child gave

    def listen(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        def begins(part: nn.Module, args: Any, kwargs: Any) -> None:
            self.ops.running.append(Call(name, part, (args, kwargs)))

        def ends(part: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
            if not self.sight.fault:
                self._heard(self.ops.running[-1], made)
            self.ops.running.pop()

        yield module.register_forward_pre_hook(begins, with_kwargs=True)
        # Called too where forward raises, for code that goes on after that.
        yield module.register_forward_hook(ends, with_kwargs=True, always_call=True)

    def _heard(self, call: Call, made: Any) -> None:
        leaf = not any(True for _ in call.module.children())
        for tensor in tensors(made):
            bad = self.ops.accident(tensor)
            if leaf or bad:
                kind = type(call.module).__name__
                self.sight.seen.append(Seen(call.name, kind, tensor.detach()))
            if bad:
                origin = self.ops.origin(tensor)
                fault = self._told(call, origin, tensor)
                _accuse(self.sight, fault, origin, _own_rows(tensor, self.ops))
                return
            self.sight.masked |= not bool(tensor.isfinite().all())
            if tensor.requires_grad and (leaf or id(tensor) not in self.awaited):
                self.awaited[id(tensor)] = tensor
                self._await(call, tensor, leaf)

    def _told(self, call: Call, origin: Origin | None, tensor: Tensor) -> str:
        gave = f"gave {kinds(tensor)}"
        maker = self._maker(call) if origin is None else origin.within
        if maker is call:
            return f"{call} {gave}; {_entered(call)}"
        return _own_op(maker, f"{call}, which {gave}")

    def _maker(self, call: Call) -> Call | None:
        """Of a value that no op is known to have made."""
        if any(self.ops.accident(tensor) for tensor in tensors(call.given)):
            return self.ops.running[-2] if len(self.ops.running) > 1 else None
        return call

    def _await(self, call: Call, tensor: Tensor, leaf: bool) -> None:
        where = str(call)
        name = call.name

        def came_back(grad: Tensor) -> None:
            if self.sight.fault:
                return
            bad = not bool(grad.isfinite().all())
            if leaf or bad:
                self.sight.seen.append(Seen(name, "gradient", grad.detach()))
            if bad:
                fault = (
                    f"forward is finite; going back, the gradient that reaches the output of "
                    f"{where} is {kinds(grad)}"
                )
                _accuse(self.sight, fault, self.ops.origin(grad), _own_rows(grad, self.ops))

        tensor.register_hook(came_back)  # type: ignore[no-untyped-call]


def _own_op(maker: Call | None, towards: str) -> str:
    """That it was made by code of this module, or of none, and not in a module that this one runs."""
    if maker is None:
        return f"made in no module's forward, on the way to {towards}"
    return f"{maker} made it in an op of its own, on the way to {towards}; {_entered(maker)}"


def _own_rows(tensor: Tensor, ops: Ops) -> tuple[int, ...]:
    return _bad_rows(tensor) if tensor.ndim and len(tensor) == ops.rows else ()


def _entered(call: Call) -> str:
    entered = [summary("its input", tensor) for tensor in tensors(call.given)]
    own = call.module.named_parameters(recurse=False)
    entered += [summary(f"its {name}", p) for name, p in own]
    return "; ".join(entered) or "it took no tensor"
