"""Faults on order, for tests of what happens when a stage that trains fails.

``EXPC_FAULTS`` names them, separated by ``;``. Each is ``GLOB=KIND@UPDATE[#ATTEMPT]``: GLOB is matched
against the run's ``out`` as `fnmatch` does, UPDATE counts from 0, ATTEMPT from 1 (every attempt, if
there is none). The kinds:

    nan:MODULE    the output of that module of the net is NaN from this update on
    oom           the update asks for more memory than there is
    leak:BYTES    from this update on, a forward hook keeps so many bytes of every update in a list
    hang          nothing happens any more, and signals are not answered
    exit:CODE     the process ends at once with that code
    kill          SIGKILL
    raise         an exception that nobody foresaw
    slow:SECONDS  from this update on, each one takes so much longer

    EXPC_FAULTS='runs/digits/*seed=1/*=nan:backbone@30#1;*seed=2/*=kill@12' ./sweep.sh

Where the variable is not set, nothing of this is imported.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from expc_runtime.errors import BadValue
from expc_runtime.module import Batch, Module

__all__ = ["VARIABLE", "Fault", "arm", "parsed"]

VARIABLE = "EXPC_FAULTS"


@dataclass(frozen=True)
class Fault:
    """One of them."""

    glob: str
    kind: str
    argument: str
    update: int
    attempt: int | None

    def meets(self, out: str, attempt: int) -> bool:
        return fnmatchcase(out, self.glob) and self.attempt in (None, attempt)


def parsed(text: str) -> list[Fault]:
    """The faults that a text names. Raises BadValue for one that cannot be read."""
    return [_fault(part.strip()) for part in text.split(";") if part.strip()]


def _fault(text: str) -> Fault:
    glob, _, what = text.rpartition("=")  # names of runs have = in them, kinds have not
    what, _, attempt = what.partition("#")
    what, _, update = what.partition("@")
    kind, _, argument = what.partition(":")
    try:
        if not glob or kind not in _KINDS:
            raise ValueError(kind)
        return Fault(glob, kind, argument, int(update), int(attempt) if attempt else None)
    except ValueError:
        raise BadValue(
            f"{VARIABLE}: {text!r} is not GLOB=KIND@UPDATE[#ATTEMPT] with a kind of "
            f"{', '.join(_KINDS)}"
        ) from None


def arm(module: Module, out: str, attempt: int) -> None:
    """Give ``module`` the faults that the environment orders for this run and attempt."""
    faults = [f for f in parsed(os.environ.get(VARIABLE, "")) if f.meets(out, attempt)]
    for fault in faults:
        _KINDS[fault.kind](module, fault)


Strike = Callable[[], object]


def _before(module: Module, due: Callable[[int], bool], strike: Strike) -> None:
    """Do it before each update that is due; not when an update is only rehearsed."""
    update = module.update

    def struck(batch: Batch) -> None:
        if due(module.updates) and not module.rehearses:
            strike()
        update(batch)

    module.update = struck  # type: ignore[method-assign]


def _at(strike: Callable[[Fault], object]) -> Callable[[Module, Fault], None]:
    def armed(module: Module, fault: Fault) -> None:
        _before(module, lambda update: update == fault.update, lambda: strike(fault))

    return armed


def _from(strike: Callable[[Fault], object]) -> Callable[[Module, Fault], None]:
    def armed(module: Module, fault: Fault) -> None:
        _before(module, lambda update: update >= fault.update, lambda: strike(fault))

    return armed


def _nan(module: Module, fault: Fault) -> None:
    def spoil(part: nn.Module, given: object, made: object) -> object:
        if module.updates < fault.update:
            return made
        return tree_map_only(Tensor, lambda t: t * torch.nan, made)

    try:
        module.get_submodule(fault.argument).register_forward_hook(spoil)
    except AttributeError as error:
        raise BadValue(f"{VARIABLE}: {error}") from error


def _leak(module: Module, fault: Fault) -> None:
    leaked: list[Tensor] = []
    values = int(fault.argument)
    device = next(module.parameters()).device

    def keep(part: nn.Module, given: object) -> None:
        if module.updates >= fault.update and module.training:
            leaked.append(torch.ones(values, dtype=torch.uint8, device=device))

    first = next(part for part in module.modules() if part is not module)
    first.register_forward_pre_hook(keep)


def _oom(fault: Fault) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory. A fault that was ordered, no real one")


def _hang(fault: Fault) -> None:
    while True:
        time.sleep(60.0)


def _kill(fault: Fault) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit(fault: Fault) -> None:
    os._exit(int(fault.argument))


def _raise(fault: Fault) -> NoReturn:
    raise RuntimeError("a fault that was ordered")


def _slow(fault: Fault) -> None:
    time.sleep(float(fault.argument or 0.1))


_KINDS: dict[str, Callable[[Module, Fault], None]] = {
    "nan": _nan,
    "oom": _at(_oom),
    "leak": _leak,
    "hang": _at(_hang),
    "exit": _at(_exit),
    "kill": _at(_kill),
    "raise": _at(_raise),
    "slow": _from(_slow),
}
