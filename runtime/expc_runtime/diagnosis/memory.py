"""How much memory a training holds after an update, and who holds what grows.

Nothing is done at every update: a figure is read every few of them, and what hooks and containers
hold is looked at beside each evaluation. A tensor that is kept alive has a holder: a list that a
forward hook appends to, an attribute of a module, a global of somebody's file. It is the holder that
is named, for a message about bytes alone is one that nobody can act on.
"""

import functools
import gc
import inspect
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from expc_runtime.errors import Leak, OutOfMemory
from expc_runtime.module import Module

__all__ = ["Growth", "Holder", "Memory", "growth", "holders", "size"]

WINDOW = 64  # figures that a slope is fitted to
ENOUGH = 8  # of them, to speak of a slope
STEADY = 0.9  # share of pairs of figures of which the later is the larger
NOTICED = 64 * 2**20  # bytes that are worth a word, of growth over the window
SUSPECT = 2**20  # the same of one holder between two evaluations
LARGE = 0.25  # share of what is held that one holder has when there is no more


@dataclass(frozen=True)
class Growth:
    """A line through figures of memory after updates."""

    slope: float  # bytes an update, by Theil and Sen: the median over pairs
    updates: int  # it was fitted over
    steady: bool  # it grew nearly always, and by more than noise

    def __str__(self) -> str:
        return f"{size(round(self.slope))} an update over the last {self.updates:,} updates"


def growth(figures: list[tuple[int, int]]) -> Growth | None:
    """The slope through pairs of (update, bytes); None for fewer than `ENOUGH`.

    A median over all pairs: one evaluation's peak does not tilt it (Sen 1968).
    """
    if len(figures) < ENOUGH:
        return None
    update, held = np.array(figures, dtype=np.float64).T
    first, second = np.triu_indices(len(update), k=1)
    run, rise = update[second] - update[first], held[second] - held[first]
    apart = run > 0
    if not apart.any():
        return None
    slope = float(np.median(rise[apart] / run[apart]))
    span = int(update[-1] - update[0])
    grown = slope * span
    steady = float((rise[apart] > 0).mean()) >= STEADY
    return Growth(slope, span, steady and grown > max(NOTICED, 0.05 * held[0]))


@dataclass(frozen=True)
class Holder:
    """Something that is not the net, its optimizer or its data, and keeps tensors."""

    what: str  # for people, with its place
    tensors: int
    bytes: int
    graphs: bool  # they keep what it takes to go backward through them

    def __str__(self) -> str:
        graphs = ", each with the graph behind it" if self.graphs else ""
        plural = "tensor" if self.tensors == 1 else "tensors"
        return f"{self.what} holds {self.tensors} {plural} ({size(self.bytes)}){graphs}"

    def beside(self, before: "Holder | None", since: str) -> str:
        more = self.tensors - (before.tensors if before else 0)
        return f"{self}, {more} more than {since}"


def size(count: int) -> str:
    """Bytes for people, in powers of ten: ``192 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


class Memory:
    """Memory of one training. ``held`` gives the bytes that are held now; by default the device's.

    On the CPU these are the pages of the process that no file backs.
    """

    def __init__(
        self,
        module: Module,
        device: torch.device,
        root: Path,
        held: Callable[[], int] | None = None,
    ) -> None:
        self._module = module
        self._device = device
        self._root = root
        self._held = held or (lambda: _held(device))
        self._figures: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        self._looks = 0
        self._first = self._holders = self._now()
        self._hooks = _hooks(module)
        self._census: Counter[tuple[tuple[int, ...], str]] | None = None

    def sample(self) -> None:
        """Read how much is held; between two updates."""
        update = self._module.updates
        if not self._figures or self._figures[-1][0] != update:
            self._figures.append((update, self._held()))

    def growth(self) -> Growth | None:
        return growth(list(self._figures))

    def look(self) -> Iterator[tuple[str, str]]:
        """What has grown since the last evaluation: whose it is, and what to say of it."""
        self.sample()
        now, hooks = self._now(), _hooks(self._module)
        self._looks += 1
        if self._looks > 1:
            grown = [h for what, h in now.items() if _grew(h, self._holders.get(what))]
            for holder in sorted(grown, key=lambda h: -h.bytes):
                before = self._holders.get(holder.what)
                yield holder.what, holder.beside(before, "at the last evaluation")
            for name, count in hooks.items():
                if (more := count - self._hooks.get(name, 0)) > 0:
                    text = f"{name} has {count} hooks, {more} more than at the last evaluation"
                    yield f"hooks {name}", f"{text}; remove each by the handle that it came with"
            if not grown:
                yield from self._unnamed()
        self._holders, self._hooks = now, hooks

    def _unnamed(self) -> Iterator[tuple[str, str]]:
        """Growth that no holder explains; a census of all tensors, which is slow, only then."""
        found = self.growth()
        if found is None or not found.steady:
            return
        census, tensors = _census()
        before, self._census = self._census, census
        text = f"memory after each update grows by {found}"
        if before is not None and (more := census - before):
            kind, count = more.most_common(1)[0]
            shape, dtype = kind
            where = _holder_of(kind, tensors)
            name = dtype.removeprefix("torch.")
            text += f": {count} more tensors {shape} of {name}{f', in {where}' if where else ''}"
        yield "grows", text

    def peak(self) -> dict[str, int]:
        """For result.json: the most that the device has held."""
        if self._device.type != "cuda":
            return {}
        return {"device": torch.cuda.max_memory_allocated(self._device)}

    def exhausted(
        self, short: str, doing: str, data: object, *, advice: str
    ) -> Callable[[str], OutOfMemory | Leak]:
        """The verdict once there is none left, to be asked for before anything is freed.

        ``short`` is what torch said, ``doing`` where; ``data`` is what holds the data, ``advice`` what
        to do about a size. It wants the last line: what a next attempt begins with.
        """
        parts = self._parts(data)
        lines = [f"out of memory {doing}: {short}", f"  held: {_listed(parts)}"]
        since = "at the last evaluation" if self._looks else "at the start"
        now, found = self._now(), self.growth()
        grown = [h for what, h in now.items() if _grew(h, self._holders.get(what))]
        much = LARGE * self._held()
        grown += [
            h for what, h in now.items() if h.bytes > much and _grew(h, self._first.get(what))
        ]
        if grown:
            worst = max(grown, key=lambda h: h.bytes)
            lines.append(f"  a leak: {worst.beside(self._holders.get(worst.what), since)}")
            lines.append(
                "  clear it in every update, or remove the hook; a smaller batch only delays it"
            )
        elif found is not None and found.steady:
            lines.append(f"  a leak: memory after each update grew by {found}")
            lines.append("  a smaller batch only delays it: look for what is kept in a list")
        else:
            slope = "" if found is None else f" ({found})"
            lines.append(f"  a size, no leak: memory after an update did not keep growing{slope}")
            lines.append(f"  {advice}")
        leaks = bool(grown) or (found is not None and found.steady)
        kind = Leak if leaks else OutOfMemory
        return lambda saved: kind("\n".join([*lines, f"  {saved}"]))

    def _parts(self, data: object) -> dict[str, int]:
        """Bytes by category."""
        module = self._module
        optimizers = [module.drive(name).optimizer for name in module.drive_names()]
        seen: set[int] = set()
        parts = {
            "parameters": _bytes([*module.parameters(), *module.buffers()], seen),
            "gradients": _bytes([p.grad for p in module.parameters() if p.grad is not None], seen),
            "optimizer": _bytes([t for o in optimizers for t in _within(dict(o.state))], seen),
            "data": _bytes(list(_inside(data)), seen),
            "hooks and lists": sum(holder.bytes for holder in self._now().values()),
        }
        if self._device.type == "cuda":
            most = torch.cuda.max_memory_allocated(self._device)
            parts["the rest at its most"] = max(0, most - sum(parts.values()))
        return parts

    def _now(self) -> dict[str, Holder]:
        return {holder.what: holder for holder in holders(self._module, self._root)}


def _grew(now: Holder, before: Holder | None) -> bool:
    if before is None:
        return now.bytes > SUSPECT
    more = now.tensors > before.tensors
    return now.bytes - before.bytes > SUSPECT or (more and now.graphs)


def _listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)


def _held(device: torch.device) -> int:
    """Bytes held now; 0 where nobody says."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        with open("/proc/self/statm", "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except OSError:
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


# Who holds what.

_TABLES = {
    "a forward hook": "_forward_hooks",
    "a forward pre-hook": "_forward_pre_hooks",
    "a backward hook": "_backward_hooks",
    "a backward pre-hook": "_backward_pre_hooks",
}
_CONTAINERS = (list, dict, tuple, set, deque)
DEPTH = 3  # of containers in containers
PEEK = 4  # entries at either end of a container among which a tensor must be, to look at the rest


def holders(module: nn.Module, root: Path) -> Iterator[Holder]:
    """What hooks, attributes and globals keep beside parameters and buffers, each container once.

    Files below ``root``, and not below a folder of packages, are somebody's own.
    """
    found: dict[int, tuple[list[str], Any]] = {}
    for what, container in (*_of_hooks(module, root), *_of_attributes(module), *_of_globals(root)):
        found.setdefault(id(container), ([], container))[0].append(what)
    for names, container in found.values():
        tensors = list(_within(container))
        if tensors:
            more = sum(" hook" in name for name in names[1:])
            what = f"{type(container).__name__} {names[0]}{f' and {more} more' if more else ''}"
            graphs = any(t.grad_fn is not None for t in tensors)
            yield Holder(what, len(tensors), _bytes(tensors, set()), graphs)


def _of_hooks(module: nn.Module, root: Path) -> Iterator[tuple[str, Any]]:
    for name, part in module.named_modules():
        if isinstance(part, Metric):
            continue
        for kind, table in _TABLES.items():
            for hook in vars(part).get(table, {}).values():
                for held, container, place in _reached(hook, root):
                    yield f"`{held}` in {kind}{place} on `{name or type(part).__name__}`", container


def _reached(hook: Any, root: Path) -> Iterator[tuple[str, Any, str]]:
    """Containers that a callable can append to, with their names and the callable's place."""
    if isinstance(hook, functools.partial):
        given = [(f"argument {k}", v) for k, v in enumerate(hook.args)]
        for name, value in (*given, *hook.keywords.items()):
            if isinstance(value, _CONTAINERS):
                yield name, value, _place(hook.func, root)
        yield from _reached(hook.func, root)
        return
    owner: Any = None
    function: Any = hook
    if isinstance(hook, MethodType):
        owner, function = hook.__self__, hook.__func__
    elif not isinstance(hook, FunctionType):
        owner, function = hook, inspect.getattr_static(type(hook), "__call__", None)
    if not isinstance(function, FunctionType):
        return
    place, code = _place(function, root), function.__code__
    objects = [owner] if owner is not None else []
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    closed = [(name, cell.cell_contents) for name, cell in cells if _is_filled(cell)]
    defaults = zip(
        reversed(code.co_varnames[: code.co_argcount]),
        reversed(function.__defaults__ or ()),
        strict=False,
    )
    keywords = (function.__kwdefaults__ or {}).items()
    own = [(n, function.__globals__[n]) for n in code.co_names if n in function.__globals__]
    for name, value in (*closed, *defaults, *keywords, *own):
        if isinstance(value, _CONTAINERS):
            yield name, value, place
        elif not isinstance(value, type | ModuleType | FunctionType):
            objects.append(value)
    for value in objects:
        for name, inner in _attributes_named(value, code):
            yield name, inner, place


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _attributes_named(value: Any, code: CodeType) -> Iterator[tuple[str, Any]]:
    """Containers among the attributes of an object that the code speaks of."""
    held = getattr(value, "__dict__", {})
    for name in code.co_names:
        if isinstance(held.get(name), _CONTAINERS):
            yield name, held[name]


def _place(function: Any, root: Path) -> str:
    """`` (lab/models.py:31)``, where a function is defined."""
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    path = Path(code.co_filename)
    short = path.relative_to(root) if path.is_relative_to(root) else Path(*path.parts[-2:])
    return f" ({short}:{code.co_firstlineno})"


@functools.cache
def _own() -> frozenset[str]:
    """Attributes that every module has, and those of ours."""
    return frozenset((*vars(nn.Module()), *vars(Module())))


def _of_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, part in module.named_modules():
        if isinstance(part, Metric):
            continue
        for attribute, value in vars(part).items():
            if attribute in _own():
                continue
            where = f"`{name}`" if name else type(part).__name__
            if isinstance(value, _CONTAINERS):
                yield f"`{attribute}` of {where}", value
            elif not isinstance(value, nn.Module | type | FunctionType | ModuleType):
                for inner, held in getattr(value, "__dict__", {}).items():
                    if isinstance(held, _CONTAINERS):
                        yield f"`{attribute}.{inner}` of {where}", held


def _of_globals(root: Path) -> Iterator[tuple[str, Any]]:
    prefix = f"{root}{os.sep}"
    for known, module in list(sys.modules.items()):
        file = str(getattr(module, "__dict__", {}).get("__file__") or "")  # no lazy import is woken
        if not file.startswith(prefix) or "site-packages" in file or known.startswith("expc"):
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, _CONTAINERS) and not name.startswith("__"):
                yield f"`{name}` of {file.removeprefix(prefix)}", value


def _within(container: Any, depth: int = DEPTH) -> Iterator[Tensor]:
    """Tensors in nested containers; where there is none at the ends there is none."""
    if not _is_likely(container, depth):
        return
    for value in _values(container):
        if isinstance(value, Tensor):
            yield value
        elif depth and isinstance(value, _CONTAINERS):
            yield from _within(value, depth - 1)


def _values(container: Any) -> list[Any]:
    """What lies in it; a class of somebody's own may make values, or import, when it is asked."""
    if isinstance(container, dict):
        return list(dict.values(container))
    kind: Any = next(kind for kind in _CONTAINERS if isinstance(container, kind))
    return list(kind.__iter__(container))


def _is_likely(container: Any, depth: int) -> bool:
    """Whether there is a tensor near an end, at any depth."""
    values = _values(container)
    ends = values if len(values) <= 2 * PEEK else [*values[:PEEK], *values[-PEEK:]]
    return any(
        isinstance(value, Tensor)
        or (depth > 0 and isinstance(value, _CONTAINERS) and _is_likely(value, depth - 1))
        for value in ends
    )


def _inside(thing: object, depth: int = 3) -> Iterator[Tensor]:
    """Tensors among the attributes of an object, and of those of what it holds."""
    for value in getattr(thing, "__dict__", {}).values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, _CONTAINERS):
            yield from _within(value)
            if depth:
                for each in _values(value)[:64]:
                    yield from _inside(each, depth - 1)
        elif depth and not isinstance(value, nn.Module | type | ModuleType):
            yield from _inside(value, depth - 1)


def _bytes(tensors: list[Tensor], seen: set[int]) -> int:
    """Of their memory, what several share once; what is in ``seen`` not again."""
    total = 0
    for tensor in tensors:
        if tensor.layout is not torch.strided or tensor.is_meta:
            continue
        try:
            storage = tensor.untyped_storage()
            place, count = storage.data_ptr(), storage.nbytes()
        except RuntimeError:  # a wrapper, as vmap's, has no memory of its own
            continue
        if place not in seen:
            seen.add(place)
            total += count
    return total


def _hooks(module: nn.Module) -> dict[str, int]:
    """Hooks on each module that has any."""
    counts = {
        f"`{name or type(part).__name__}`": sum(
            len(vars(part).get(t, {})) for t in _TABLES.values()
        )
        for name, part in module.named_modules()
    }
    return {name: count for name, count in counts.items() if count}


# All tensors there are.


def _census() -> tuple[Counter[tuple[tuple[int, ...], str]], list[Tensor]]:
    """Tensors that Python can see, by shape and dtype."""
    tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    return Counter((tuple(t.shape), str(t.dtype)) for t in tensors), tensors


def _holder_of(kind: tuple[tuple[int, ...], str], tensors: list[Tensor]) -> str:
    """The container of most of a few of that shape and dtype; empty if nobody knows."""
    some = [t for t in tensors if (tuple(t.shape), str(t.dtype)) == kind][-8:]
    found: Counter[str] = Counter()
    for tensor in some:
        for container in gc.get_referrers(tensor):
            own = container is tensors or container is some
            if isinstance(container, list | deque | dict | set) and not own:
                found[_named(container)] += 1
    return found.most_common(1)[0][0] if found else ""


def _named(container: Any) -> str:
    kind = type(container).__name__
    for owner in gc.get_referrers(container):
        held = owner if isinstance(owner, dict) else getattr(owner, "__dict__", None)
        if not isinstance(held, dict):
            continue
        for name, value in list(held.items()):
            if value is container:
                of = held.get("__name__") or ("" if owner is held else f"a {type(owner).__name__}")
                return f"{kind} `{name}`{f' of {of}' if of else ''}"
    return f"a {kind}"
