"""Which operation a value that is not finite came from: a re-run, watched op by op.

Below autograd and autocast, where every op has the dtype it is computed in. Slow, and meant for the
one update that went wrong.
"""

import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from expc_runtime.provenance import project_root
from expc_runtime.trace import source_at

__all__ = ["Call", "Ops", "Origin", "kinds", "place", "summary", "tensors"]

_FILLERS = frozenset(
    ("full", "full_like", "new_full", "fill", "masked_fill", "scalar_tensor", "lift_fresh")
)
"""Ops that put in a value that somebody wrote: an attention mask's -inf is no accident."""

_NAMES = {
    "_to_copy": "cast",
    "native_batch_norm": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "addmm": "linear",
    "nll_loss_forward": "nll_loss",
}

_Frame = tuple[str, int]
_Key = tuple[int, int, torch.Size, tuple[int, ...]]


@dataclass(eq=False)
class Call:
    """A module's forward that is being run, and what entered it."""

    name: str
    module: nn.Module
    given: Any

    def __str__(self) -> str:
        return f"`{self.name}` ({type(self.module).__name__})"


@dataclass
class Origin:
    """An op that gave NaN or infinity while everything that entered was finite."""

    name: str  # as people call it: "log"
    overload: str  # "aten.log.default"
    node: str  # of autograd, where it ran in a backward pass: "LogBackward0"
    gave: str
    entered: str
    place: str  # where it was called, for people; empty if nobody knows
    source: str  # the line of the spec that this is of
    rows: tuple[int, ...]  # of the batch, where the op's own rows are those
    written: bool  # a value that somebody wrote, as a mask
    within: Call | None  # the innermost module that was being run
    then: list[str] = field(default_factory=list)  # ops that made NaN of its infinity

    def __str__(self) -> str:
        op = f"`{self.name}` ({self.overload})"
        if self.node:
            op = f"in the backward pass of `{_plain(self.node)}` ({self.node}), {op}"
        text = f"the op: {op} gave {self.gave}"
        if self.place:
            source = f", from {self.source}" if self.source else ""
            text += f"\n    called at {self.place}{source}"
        if self.entered:
            text += f"\n    of {self.entered}"
        if self.then:
            text += f"\n    of its infinity `{self.then[0]}` made NaN"
        return text


@dataclass
class _Bad:
    """A tensor that is not finite, kept so that its memory is no other's, and where that began."""

    tensor: Tensor
    nan: Origin | None
    infinite: Origin | None


class Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, the origin of every value that is not finite is kept; ``rows`` are those of the batch.

    Backward passes name the line of the forward pass: `torch.autograd.set_detect_anomaly` is on, for
    the traces alone.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self._bad: dict[_Key, _Bad] = {}
        self.born: list[Origin] = []
        self.running: list[Call] = []  # from the outermost in, kept by whoever has hooks on modules
        self._anomaly: Any = None

    def __enter__(self) -> Self:
        self._anomaly = torch.autograd.set_detect_anomaly(True, check_nan=False)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._anomaly.__exit__(kind, error, trace)

    def origin(self, tensor: Tensor) -> Origin | None:
        """Where the bad values of ``tensor``, made inside, began; None if that is not known."""
        bad = self._bad.get(_key(tensor))
        return None if bad is None else bad.nan or bad.infinite

    def accident(self, tensor: Tensor) -> bool:
        """Whether it has NaN, or an infinity that nobody wrote.

        One whose beginning is not known, as of a mask in a buffer, is held to be written if it is
        negative.
        """
        nan, inf = _state(tensor)
        if nan or not inf:
            return nan
        bad = self._bad.get(_key(tensor))
        if bad is not None and bad.infinite is not None:
            return not bad.infinite.written
        return bool(tensor.isposinf().any())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name.startswith(("empty", "new_empty")):
            return func(*args, **kwargs)  # memory that nobody has written yet
        # Before the op: it may be one that writes in place.
        given = [_state(tensor) for tensor in tensors((args, kwargs))]
        known = [self._bad.get(_key(t)) for t in tensors((args, kwargs))]
        told = _entered(func, args, kwargs) if func._schema.is_mutable else None
        made = func(*args, **kwargs)
        for tensor in tensors(made):
            nan, inf = _state(tensor)
            if nan or inf:
                self._note(func, tensor, nan, given, known, told or _entered(func, args, kwargs))
            else:
                self._bad.pop(_key(tensor), None)
        return made

    def _note(
        self,
        func: Any,
        tensor: Tensor,
        nan: bool,
        given: list[tuple[bool, bool]],
        known: list[_Bad | None],
        entered: str,
    ) -> None:
        nans = [bad.nan for bad in known if bad is not None and bad.nan is not None]
        infinities = [bad.infinite for bad in known if bad is not None and bad.infinite is not None]
        accidents = [origin for origin in infinities if not origin.written]
        own: Origin | None = None
        if nan and not any(was for was, _ in given):
            if accidents:
                accidents[0].then.append(_name(func))
                nans = [accidents[0]]
            else:
                own = self._born(func, tensor, entered)
                nans = [own]
        if not nan and not any(was for _, was in given):
            own = self._born(func, tensor, entered)
            infinities = [own]
        infinite = next(iter(accidents or infinities), None)
        self._bad[_key(tensor)] = _Bad(tensor, nans[0] if nan and nans else None, infinite)

    def _born(self, func: Any, tensor: Tensor, entered: str) -> Origin:
        node: Any = torch._C._current_autograd_node()
        backward = node is not None
        frames = _frames_of(node.metadata) if backward else _frames_here()
        where, source = place(frames)
        origin = Origin(
            name=_name(func),
            overload=str(func),
            node=node.name() if backward else "",
            gave=kinds(tensor),
            entered=entered,
            place=where,
            source=source,
            rows=self._bad_rows(tensor),
            written=not backward and func.overloadpacket.__name__.rstrip("_") in _FILLERS,
            within=self.running[-1] if self.running else None,
        )
        self.born.append(origin)
        return origin

    def _bad_rows(self, tensor: Tensor) -> tuple[int, ...]:
        if tensor.ndim == 0 or len(tensor) != self.rows:
            return ()
        bad = (~tensor.isfinite()).reshape(len(tensor), -1).any(dim=1)
        return tuple(bad.nonzero().flatten().tolist())


def tensors(value: Any) -> Iterator[Tensor]:
    """Tensors of floating point at any depth of dicts, lists and tuples, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors(inner)


def summary(what: str, tensor: Tensor) -> str:
    """``its input is float32, -1 to 2, mean 0.5``."""
    name = str(tensor.dtype).removeprefix("torch.")
    if not tensor.numel():
        return f"{what} is empty"
    values = tensor.detach().double()
    low, high = (float(end) for end in values.aminmax())
    mean = float(values.mean())
    return f"{what} is {name}, {low:.4g} to {high:.4g}, mean {mean:.4g}"


def kinds(tensor: Tensor) -> str:
    """How many values are NaN and how many infinite."""
    name = str(tensor.dtype).removeprefix("torch.")
    nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    told = [f"{count} {kind}" for count, kind in ((nan, "NaN"), (inf, "infinite")) if count]
    return f"{' and '.join(told) or 'no bad'} of {tensor.numel()} values ({name})"


def _state(tensor: Tensor) -> tuple[bool, bool]:
    """Whether it has NaN, and whether it has infinities."""
    if tensor.is_meta or tensor.layout is not torch.strided or bool(tensor.isfinite().all()):
        return False, False
    return bool(tensor.isnan().any()), bool(tensor.isinf().any())


def _key(tensor: Tensor) -> _Key:
    """Names the values that a tensor shows: a detached or saved one is another object, not another."""
    return (
        tensor.untyped_storage().data_ptr(),
        int(tensor.storage_offset()),
        tensor.shape,
        tensor.stride(),
    )


def _name(func: Any) -> str:
    name: str = func.overloadpacket.__name__
    return _NAMES.get(name, name.strip("_"))


def _plain(node: str) -> str:
    """``LogSoftmaxBackward0`` as the op is called: log_softmax."""
    stem = re.sub(r"Backward\d*$", "", node.rpartition("::")[2])
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", stem).lower()
    return _NAMES.get(name, {"to_copy": "cast"}.get(name, name))


def _entered(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    named = zip((argument.name for argument in func._schema.arguments), args, strict=False)
    told = []
    for name, value in [*named, *kwargs.items()]:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                told.append(summary(name, value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            told.append(f"{name} is {value:g}")
        elif isinstance(value, list | tuple):
            told += [summary(f"{name}[{k}]", t) for k, t in enumerate(tensors(value))]
        elif isinstance(value, torch.dtype):
            told.append(f"{name} is {str(value).removeprefix('torch.')}")
    return "; ".join(told)


# Places.

_HERE = Path(__file__).resolve().parents[1]  # the runtime
_BELOW = tuple(str(Path(m.__file__ or "").parent) for m in (torch, pytorch_lightning))
_MACHINERY = {
    str(_HERE / name)
    for name in (
        "diagnosis/ops.py",
        "diagnosis/blame.py",
        "microbatch.py",
        "module.py",
        "optim.py",
        "records.py",
    )
}
_FILE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def _frames_here() -> Iterator[_Frame]:
    """From the innermost out."""
    frame: FrameType | None = sys._getframe(1)
    for each, line in traceback.walk_stack(frame):
        yield each.f_code.co_filename, line


def _frames_of(metadata: Any) -> list[_Frame]:
    """Of the forward call of a node of autograd, which anomaly mode keeps; from the innermost out."""
    lines = reversed(metadata.get("traceback_", []))
    return [(m["file"], int(m["line"])) for line in lines if (m := _FILE.search(line))]


def place(frames: Iterable[_Frame]) -> tuple[str, str]:
    """The innermost line that is neither torch's nor this machinery's, and the spec's, for people.

    One in a component of ours is followed by the line that called it. The spec's line is that of the
    innermost generated code, empty if there is none.
    """
    ours = somebodys = ""
    for file, line in frames:
        if file.startswith(("<", *_BELOW)) or file in _MACHINERY:
            continue
        path = Path(file)
        if path.is_relative_to(_HERE):
            ours = ours or f"{path.relative_to(_HERE.parent)}:{line}"
            continue
        if not somebodys:
            own = f"{_short(path)}:{line}"
            somebodys = f"{ours}, by {own}" if ours else own
        if source := source_at(path, line):
            return somebodys, source
    return somebodys or ours, ""


def _short(path: Path) -> str:
    root = project_root(path)
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
