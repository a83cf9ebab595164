"""One stage with its values: built, handed its weights, driven through one batch. Nothing has data."""

import contextlib
import io
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from expc_runtime.checkpoint import clean_keys
from expc_runtime.dry.headers import header_of, tensors_of
from expc_runtime.dry.memory import Kept, Sizes, state_bytes, storage_bytes
from expc_runtime.flags import Run, parse
from expc_runtime.generated import imported, only
from expc_runtime.module import Batch, Module
from expc_runtime.precision import HALF
from expc_runtime.records import Records
from expc_runtime.training.guards import untrained

__all__ = ["Fault", "Look", "Seen"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fault:
    """Something that would fail. ``line`` is of the generated module; ``at`` is the user's own line, if it was at work.

    ``what``: import, values, build, hand_off, drives, untrained, update, measure, act. ``part`` names what is
    to blame, where that is known better than by the line; ``batch`` is the batch's rows, if not a whole one's.
    ``shapes`` are those that heads gave and columns have.
    """

    what: str
    message: str
    line: int = 0
    at: str = ""
    part: str = ""
    batch: int = 0
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass
class Seen:
    """What one look found. ``state`` is the shape of every tensor of the module's state."""

    faults: list[Fault] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    sizes: Sizes | None = None
    state: dict[str, Shape] | None = None
    parts: tuple[str, ...] = ()


class Misfit(Exception):
    """What a part gives is not what it promised; ``part`` names it."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part


class _Stop(Exception):
    """A fault is noted, and nothing after it can be looked at."""


class Terms(Records):
    """Records that take scalars alone, at once."""

    def add(self, rows: float, scalars: dict[str, Tensor]) -> None:
        for name, value in scalars.items():
            if not isinstance(value, Tensor):
                raise Misfit(name, f"it gives {_a(value)}, where one number as a tensor is wanted")
            if value.ndim:
                raise Misfit(name, f"it gives a {_shape(value)} tensor, where one number is wanted")


# A value was asked of a tensor that has none: not a fault, but the end of what can be seen.
_BLIND: tuple[type[BaseException], ...] = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
    NotImplementedError,
)


def _is_blind(error: BaseException) -> bool:
    return isinstance(error, _BLIND) or "meta tensor" in str(error).lower()


class Look:
    """A build, asked about with JSON.

    ``asked``: ``module`` (file name), ``flags`` (words), ``columns`` (name, shape of a row or None, dtype),
    ``source`` (target and params of a source whose file has a header), ``feed`` (batch, val, test,
    drop_last, rows), ``parts`` and ``heads`` (attributes), ``starts`` (slot, part, parent, file, other,
    missing, extra), ``chosen`` (the spec says what is trained), ``actions`` and ``frame`` (of a module that acts). A number may
    be ``{"flag": FIELD}``. ``before`` are the looks at earlier builds, which ``parent`` numbers.
    """

    def __init__(
        self, asked: Mapping[str, Any], *, root: Path, folder: Path, before: Sequence[Seen]
    ) -> None:
        self.asked = asked
        self.root = root
        self.path = folder / asked["module"]
        self.before = before
        self.found = Seen()
        self.gave: dict[str, Sequence[int]] = {}  # shapes of the newest answers of heads
        self.rows = 0  # of the batch that is being tried, where it is not a whole one

    def seen(self) -> Seen:
        """Look; never raises for what the stage's code does."""
        with contextlib.suppress(_Stop):
            with self._noting("import"):
                python = imported(self.path)
                build, config = only(python, Module), only(python, Run)
            cfg = self._values(config)
            with self._noting("build"), torch.device("meta"):
                module = build(cfg)
            with FakeTensorMode(allow_non_fake_inputs=True):
                self._look(_faked(module), cfg)
        return self.found

    def _look(self, module: Module, cfg: Run) -> None:
        self.found.state = {name: tuple(t.shape) for name, t in module.state_dict().items()}
        self.found.parts = tuple(name for name, _ in module.named_modules() if name)
        self._hand_off(module)
        with self._noting("drives"):
            module.start("32", total_updates=1, updates_per_epoch=1)
        if not self.asked["chosen"] and (lost := untrained(module)):
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            self._note("untrained", f"no optimizer trains `{lost[0]}`{more}")
        drives = {name: module.drive(name) for name in module.drive_names()}
        batch = self._batch(cfg)
        if batch is None:
            self.found.sizes = Sizes.of(module, drives, self._stateful(module))
            return
        kept = self._train(module, batch)
        state = sum(state_bytes(drive.optimizer) for drive in drives.values())
        self.found.sizes = replace(
            Sizes.of(module, drives, state), batch=storage_bytes(batch), kept=kept
        )
        self._measure(module, batch)
        self._act(module)
        self._short_batch(module, cfg)

    # Values and batches.

    def _values(self, config: type[Run]) -> Run:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                return parse(config, self.asked["flags"])
        except SystemExit:
            told = said.getvalue().strip().splitlines() or ["a value is not of its type"]
            self._note("values", told[0].partition(": ")[2] or told[0])
            raise _Stop from None

    def _batch(self, cfg: Run, rows: int | None = None) -> Batch | None:
        """A batch of the feed's columns; None where a shape is not known without reading data."""
        columns = self._columns(cfg)
        if unknown := [name for name, column in columns.items() if column is None]:
            named = ", ".join(f"`{name}`" for name in unknown)
            self._blind(f"forward, losses and metrics: the shape of {named} is not declared")
            return None
        rows = rows or self._number(self.asked["feed"]["batch"], cfg)
        known = [column for column in columns.values() if column is not None]
        return tuple(torch.zeros(rows, *shape, dtype=dtype) for shape, dtype in known)

    def _columns(self, cfg: Run) -> dict[str, tuple[Shape, torch.dtype] | None]:
        held = self._header()
        found: dict[str, tuple[Shape, torch.dtype] | None] = {}
        for column in self.asked["columns"]:
            name, shape = column["name"], column["shape"]
            if shape is None:
                found[name] = held.get(name)
            else:
                sizes = tuple(self._number(size, cfg) for size in shape)
                found[name] = (sizes, getattr(torch, column["dtype"]))
        return found

    def _header(self) -> Mapping[str, tuple[Shape, torch.dtype]]:
        source = self.asked.get("source")
        if source is None:
            return {}
        try:
            header = header_of(source["target"], source["params"], self.root)
        except ValueError as error:
            self._note("data", str(error))
            raise _Stop from None
        if header is None:
            return {}
        self._held_rows = header.rows
        return header.columns

    _held_rows: int | None = None

    @staticmethod
    def _number(value: Any, cfg: Run) -> Any:
        return getattr(cfg, value["flag"]) if isinstance(value, Mapping) else value

    # Weights from elsewhere.

    def _hand_off(self, module: Module) -> None:
        for start in self.asked["starts"]:
            part: str = start["part"]
            try:
                mine = _under(self.found.state or {}, part)
                given = self._given(start)
            except (ValueError, OSError) as error:
                self._note("hand_off", str(error), part=part, slot=start["slot"])
                continue
            if given is not None and (wrong := _misfit(mine, given, start)):
                self._note("hand_off", wrong, part=part, slot=start["slot"])
        held = [start["part"] for start in self.asked["starts"] if start["slot"] == "frozen"]
        module.hold(*(module.get_submodule(part) for part in held if part in self.found.parts))

    def _given(self, start: Mapping[str, Any]) -> dict[str, Shape] | None:
        """Shapes of what a part starts from; None where it cannot be known yet."""
        other = start["other"] or start["part"]
        if start["parent"] is not None:
            parent = self.before[start["parent"]]
            if parent.state is None:
                return None  # its own fault is told
            given = _under(parent.state, other)
            if not given and other not in parent.parts:
                have = ", ".join(p for p in parent.parts if "." not in p)
                raise ValueError(f"there is no part `{other}` there; it has {have}")
            return given
        path = self.root / start["file"]
        if path.suffix != ".safetensors":
            self._blind(f"what {start['file']} holds: only its reader knows")
            return None
        held = clean_keys({name: shape for name, (shape, _) in tensors_of(path).items()})
        return _under(held, other) or ({} if start["other"] else held)

    # One batch.

    def _train(self, module: Module, batch: Batch) -> dict[str, int]:
        """An update, and one more under autocast; the bytes that each precision keeps for backward."""
        whole = self._update(module, batch, step=True)
        half = self._update(module, batch, half=torch.bfloat16)  # float16 is as wide
        return {p: whole if dtype is None else half for p, dtype in HALF.items()}

    def _update(
        self,
        module: Module,
        batch: Batch,
        *,
        half: torch.dtype | None = None,
        step: bool = False,
    ) -> int:
        """Drive one update; with ``step`` the optimizers move, which makes their state."""
        count = Kept([*module.parameters(), *module.buffers(), *batch])

        def take(named: tuple[str, Tensor]) -> None:
            name, total = named
            drive = module.drive(name.removeprefix("total_"))
            if not total.requires_grad:
                raise ValueError("the loss depends on nothing that is trained")
            count.restart()
            if half is not None:
                return  # gradients were looked at without it
            total.backward()  # type: ignore[no-untyped-call]
            grads = [
                p for g in drive.optimizer.param_groups for p in g["params"] if p.grad is not None
            ]
            if not grads:
                raise ValueError("the loss reaches none of the parameters that are trained")
            if step:
                drive.optimizer.step()
            drive.drop()

        autocast = torch.autocast("cpu", half) if half is not None else nullcontext()
        module.train()
        with self._noting("update"), ExitStack() as held:
            held.enter_context(self._watching(module, batch))
            held.enter_context(module.rehearsal(half=False, totals=take))
            module._live.records = Terms()
            held.enter_context(count)
            held.enter_context(autocast)
            module.update(batch)
        module.zero_grad(set_to_none=True)
        return count.most

    def _stateful(self, module: Module) -> int | None:
        """Bytes of the optimizers' state where no batch can be made: every parameter is given a gradient."""
        for p in module.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None
        try:
            for name in module.drive_names():
                module.drive(name).optimizer.step()
        except Exception as error:  # noqa: BLE001 -- an optimizer of the user's own can raise anything
            self._blind(f"the optimizer's state: {_said(error)}")
            return None
        return sum(state_bytes(module.drive(name).optimizer) for name in module.drive_names())

    def _measure(self, module: Module, batch: Batch) -> None:
        if type(module).measure is Module.measure:
            return
        module.eval()
        with torch.no_grad(), self._noting("measure"), module.rehearsal(half=False):
            module._live.records = Terms()
            module.measure(batch)
            for name, metric in module.metrics().items():
                value = metric.compute()
                if not isinstance(value, Tensor) or value.ndim:
                    given = f"a {_shape(value)} tensor" if isinstance(value, Tensor) else _a(value)
                    raise Misfit(name, f"it gives {given}, where one number is wanted")

    def _act(self, module: Module) -> None:
        if "actions" not in self.asked:
            return
        actions, frame = self.asked["actions"], self.asked["frame"]
        module.eval()
        with torch.no_grad(), self._noting("act"):
            image, action = torch.zeros(2, *frame), torch.zeros(2, actions)
            first = torch.zeros(2, dtype=torch.bool)
            policy, _ = module.act(image, action, first, module.initial(2))
            if tuple(policy.shape) != (2, actions):
                raise Misfit("actor", f"it gives {_shape(policy)} for (2, {actions})")

    def _short_batch(self, module: Module, cfg: Run) -> None:
        """The last batch of an epoch, where it is known to be a short one."""
        feed = {name: self._number(value, cfg) for name, value in self.asked["feed"].items()}
        n = feed.get("rows") or self._held_rows
        if n is None or feed.get("drop_last"):
            return
        n -= sum(round(n * (feed.get(share) or 0.0)) for share in ("val", "test"))
        self.rows = n % feed["batch"]
        if n > 0 and self.rows:
            batch = self._batch(cfg, self.rows)
            if batch is not None:
                self._update(module, batch)

    @contextmanager
    def _watching(self, module: Module, batch: Batch) -> Iterator[None]:
        """Parts of the model must give what their ``out_features`` says; answers of heads are noted."""
        self.gave = {}
        handles = [
            *(
                module.get_submodule(part).register_forward_hook(_promised(part))
                for part in self.asked["parts"]
            ),
            *(
                module.get_submodule(head).register_forward_hook(self._gave(head))
                for head in self.asked["heads"]
            ),
            *(
                part.register_forward_pre_hook(_multiplies)
                for part in module.modules()
                if isinstance(part, nn.Linear)
            ),
        ]
        columns = [column["name"] for column in self.asked["columns"]]
        self.gave |= {
            f"data.{name}": tuple(t.shape) for name, t in zip(columns, batch, strict=True)
        }
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _gave(self, head: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.gave[head] = tuple(output.shape)

        return hook

    # Words.

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """What is raised inside becomes a fault, and the end of this look."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- whatever a user's own code raises
            if not _is_blind(error):
                self._accuse(what, error)
                raise _Stop from None
            where = self._own(error) or f"{self.path.name}:{self._line(error)}"
            self._blind(f"{what}: {where} reads a value, and here tensors have shapes alone")
            raise _Stop from None

    def _accuse(self, what: str, error: Exception) -> None:
        self._note(
            what,
            _said(error),
            line=self._line(error),
            at=self._own(error),
            part=error.part if isinstance(error, Misfit) else "",
            batch=self.rows,
            shapes=self.gave,
        )

    def _note(self, what: str, message: str, slot: str = "", part: str = "", **more: Any) -> None:
        named = f"{slot}.{part}" if slot else part
        self.found.faults.append(Fault(what, message, part=named, **more))

    def _blind(self, what: str) -> None:
        if what not in self.found.unchecked:
            self.found.unchecked.append(what)

    def _line(self, error: BaseException) -> int:
        """The deepest line of the generated module."""
        lines = [
            line
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_filename == str(self.path)
        ]
        return lines[-1] if lines else 0

    def _own(self, error: BaseException) -> str:
        """The deepest line of the project's own code: ``mylab/models.py:12``."""
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            path = Path(frame.f_code.co_filename)
            mine = path.is_relative_to(self.root) and path != self.path
            if mine and not _NOT_OWN & set(path.parts):
                return f"{path.relative_to(self.root).as_posix()}:{line}"
        return ""


_NOT_OWN = frozenset({"site-packages", "dist-packages", "expc_runtime"})


def _faked(module: Module) -> Module:
    """Its tensors, from the meta device to fake ones: the same, but they say that they are on the CPU.

    It is built on meta because torch leaves out there what only fills in values.
    """
    module.to_empty(device="cpu")
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor) and value.is_meta:
                setattr(part, name, torch.empty_like(value, device="cpu"))
    return module


def _multiplies(part: nn.Module, given: tuple[Any, ...]) -> None:
    """Without values torch multiplies whole numbers with floats; with them it refuses."""
    if isinstance(given[0], Tensor) and not given[0].is_floating_point():
        kind = str(given[0].dtype).removeprefix("torch.")
        raise ValueError(f"a Linear multiplies float32, and is given {kind}")


def _promised(part: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, given: Any, output: Any) -> None:
        width = getattr(module, "out_features", None)
        if not isinstance(width, int):
            return
        if not isinstance(output, Tensor):
            raise Misfit(part, f"it gives {_a(output)}, where a tensor of features is wanted")
        if output.ndim < 2 or output.shape[-1] != width:
            raise Misfit(part, f"it gives {_shape(output)}, but its out_features is {width}")
        rows = next((len(t) for t in given if isinstance(t, Tensor) and t.ndim), len(output))
        if len(output) != rows:
            raise Misfit(part, f"it gives {len(output)} rows of features for {rows} rows")

    return hook


def _under(state: Mapping[str, Shape], part: str) -> dict[str, Shape]:
    prefix = f"{part}."
    return {k.removeprefix(prefix): s for k, s in state.items() if k.startswith(prefix)}


def _misfit(mine: Mapping[str, Shape], given: Mapping[str, Shape], start: Mapping[str, Any]) -> str:
    """Why a state does not fit, in one line; empty if it does."""
    differ = [name for name in mine if name in given and given[name] != mine[name]]
    if differ:
        name = differ[0]
        more = f", and {len(differ) - 1} more differ" if len(differ) > 1 else ""
        return f"`{name}` is {_dims(given[name])} there and {_dims(mine[name])} here{more}"
    lacking = [name for name in mine if name not in given and name not in start["missing"]]
    if lacking:
        return f"{_some(lacking)} {'is' if len(lacking) == 1 else 'are'} not there"
    unknown = [name for name in start["missing"] if name not in mine]
    if unknown:
        return f"{_some(unknown)}, named under `missing`, is no tensor of this part"
    left = [name for name in given if name not in mine and name not in start["extra"]]
    return f"{_some(left)} {'has' if len(left) == 1 else 'have'} no place here" if left else ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return (
        " and ".join(f"`{n}`" for n in names[:2])
        if not more
        else f"`{names[0]}`, `{names[1]}`{more}"
    )


def _dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _a(value: object) -> str:
    kind = "None" if value is None else type(value).__name__
    return kind if value is None else f"a{'n' if kind[0] in 'aeiou' else ''} {kind}"


def _said(error: BaseException) -> str:
    """An exception in one line, as a person would put it."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    if isinstance(error, Misfit | ValueError) and text:
        return text
    if isinstance(error, RuntimeError) and type(error) is RuntimeError and text:
        return text
    return f"{name}: {text}" if text else name
