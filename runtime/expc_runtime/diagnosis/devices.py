"""Is everything where the net is? Looked at where a stage begins, measures and ends.

A net that was moved, a teacher that was not, a tensor made once and kept as a plain attribute: torch
says that two devices met, not which tensor was on the wrong one.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from expc_runtime.errors import BadValue

__all__ = ["met", "require_batch", "require_module", "strays", "told"]

_SHOWN = 5


def require_module(module: nn.Module, device: torch.device, when: str) -> None:
    """Raises BadValue for a parameter, buffer or net that is not on ``device``.

    Nets that are no submodules, a teacher in a list, count as well: they are called with what is
    there. A plain tensor of the host may be meant so; `strays` names it once two devices have met.
    """
    found = [*_registered(module, device), *_hidden(module, device)]
    found += [line for tensor, line in _plain(module, device) if tensor.is_meta]
    if found:
        raise BadValue(_message(when, device, found))


def require_batch(
    names: Sequence[str], batch: Iterable[object], device: torch.device, when: str
) -> None:
    """Raises BadValue for a column of a batch that is not on ``device``."""
    found = [
        f"{f'column `{names[k]}`' if k < len(names) else f'input {k + 1}'} of the batch is on {c.device}"
        for k, c in enumerate(batch)
        if isinstance(c, Tensor) and not _same(c.device, device)
    ]
    if found:
        raise BadValue(_message(when, device, found))


def met(error: BaseException) -> bool:
    """Whether an error is torch's of two devices that met, or of one without data."""
    text = str(error)
    words = ("on the same device", "meta tensor", "Expected all tensors", "device type")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


@contextmanager
def told(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, torch's word that two devices met becomes a BadValue that names what is elsewhere."""
    try:
        yield
    except RuntimeError as error:
        found = strays(module, device) if met(error) else []
        if not found:
            raise
        lines = "\n  ".join((f"tensors on two devices met, on {device}:", *found))
        raise BadValue(lines) from error


def strays(module: nn.Module, device: torch.device) -> list[str]:
    """Everything of ``module`` that is elsewhere, plain tensors too, for people."""
    return [
        *_registered(module, device),
        *_hidden(module, device),
        *(line for _, line in _plain(module, device)),
    ]


def _message(when: str, device: torch.device, found: list[str]) -> str:
    more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    shown = "\n  ".join(found[:_SHOWN])
    return f"{when}, on {device}:\n  {shown}{more}"


def _same(device: torch.device, other: torch.device) -> bool:
    """``cuda`` is any of them."""
    if device.type != other.type:
        return False
    return device.index == other.index or None in (device.index, other.index)


def _registered(module: nn.Module, device: torch.device) -> Iterator[str]:
    for kind, tensors in (
        ("parameter", module.named_parameters()),
        ("buffer", module.named_buffers()),
    ):
        for name, tensor in tensors:
            if not _same(tensor.device, device):
                yield f"{kind} `{name}` is on {tensor.device}"


def _hidden(module: nn.Module, device: torch.device) -> Iterator[str]:
    """Nets that `.to(device)` does not reach, as they are in a list, a dict or an object."""
    own = {id(part) for part in module.modules()}
    for name, value in _attributes(module):
        if isinstance(value, nn.Module) and id(value) not in own:
            for line in _registered(value, device):
                yield (
                    f"{line}, of `{name}`, which is no submodule: give it to the module as an "
                    "attribute, or move it"
                )
                break


def _plain(module: nn.Module, device: torch.device) -> Iterator[tuple[Tensor, str]]:
    """Tensors that are attributes and no buffers; a number may be anywhere."""
    for name, value in _attributes(module):
        if isinstance(value, Tensor) and value.ndim and not _same(value.device, device):
            where = f"tensor `{name}` is on {value.device}"
            yield value, f"{where}: make it a buffer, and it moves with the net"


_OWN = frozenset(("_parameters", "_buffers", "_modules", "_live", "_drives", "_held", "_trainer"))


def _attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    """What the parts of a net hold beside parameters, buffers and submodules, one level deep."""
    for name, part in module.named_modules():
        if isinstance(part, Metric):
            continue
        for attribute, value in vars(part).items():
            if attribute in _OWN:
                continue
            full = f"{name}.{attribute}" if name else attribute
            yield full, value
            if isinstance(value, list | tuple):
                yield from ((f"{full}[{k}]", each) for k, each in enumerate(value[:64]))
            elif isinstance(value, dict):
                yield from ((f"{full}[{k!r}]", each) for k, each in list(value.items())[:64])
