"""What makes two stage instances the same, and what their folders are called."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expc_runtime.errors import BadValue
from expc_runtime.state.records import read_result, read_status

__all__ = [
    "SMOKE",
    "counted",
    "identity",
    "parent_key",
    "planned",
    "resolve",
    "run_name",
    "sibling",
]

SMOKE = ".smoke"  # ends the name of a folder in which smoke runs work

# Where a run is kept and what computes it do not change what it is.
_NOT_IDENTITY = frozenset({"out", "device", "planned"})
_UNTOUCHED = {"microbatch": 1.0}  # settings that do nothing at this value: as good as not there
_NAME_BYTES = 200  # of 255 that a file system takes; ".was-<key>" and a number may follow


def identity(program: str, config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """The key of a stage instance, 16 hex digits.

    Args:
        program: the module's ``PROGRAM``.
        config: every field of its ``Config`` (``out`` and ``device`` do not count). Settings that
            a retry changed count as they were ``planned``: it is another try at the same instance.
            A whole batch at once, ``microbatch`` of 1, counts as if the module had no such field:
            a spec in which a retry may halve it keeps its results.
        parents: key of each stage whose product it takes, by stage name.
    """
    values = {name: _canonical(value) for name, value in counted(config).items()}
    text = json.dumps([program, values, dict(parents)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def counted(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a ``Config`` that tell instances apart, as the plan has them."""
    whole = {**config, **planned(config)}
    return {
        name: value
        for name, value in whole.items()
        if name not in _NOT_IDENTITY and not (name in _UNTOUCHED and value == _UNTOUCHED[name])
    }


def planned(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a retry changed, by name, as the plan has them.

    Raises:
        BadValue: ``planned`` is no JSON object of this config's fields.
    """
    text = config.get("planned") or "{}"
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not values.keys() <= config.keys():
        raise BadValue(f"--planned takes a JSON object of settings of this stage, not {text}")
    return values


def _canonical(value: Any) -> Any:
    """Equal numbers look equal: a default written ``1`` and a flag read as ``1.0``."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return value


def run_name(condition: str, seed: str) -> str:
    """Folder name of one run: readable, free of ``/``, at most 200 bytes.

    Characters that a folder name cannot hold are written as in a URL; a name that is too long ends
    in a hash of the whole.
    """
    whole = f"{condition},seed={seed}" if condition else f"seed={seed}"
    safe = "".join(f"%{ord(c):02X}" if c in "/%" or ord(c) < 32 else c for c in whole)
    safe = safe if not safe.startswith(".") else f"%2E{safe[1:]}"
    if len(safe.encode()) <= _NAME_BYTES:
        return safe
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return safe.encode()[: _NAME_BYTES - 9].decode(errors="ignore") + f"~{digest}"


def resolve(folder: Path) -> Path:
    """The stage folder that holds the product of ``folder``: itself, or the one it is the same as."""
    status = read_status(folder)
    if status is None or not status.same_as:
        return folder
    return folder.parent.parent / status.same_as


def sibling(out: Path, stage: str) -> Path:
    """The folder with the product of stage ``stage`` of the same run as ``out``.

    A smoke run beside real ones takes another smoke run's where there is no real one.
    """
    real, smoke = out.with_name(stage), out.with_name(f"{stage}{SMOKE}")
    return resolve(smoke if out.name.endswith(SMOKE) and not real.is_dir() else real)


def parent_key(out: Path, stage: str) -> str:
    """Key of the finished stage ``stage`` of the same run as ``out``; empty if it has no result."""
    result = read_result(sibling(out, stage))
    return result.key if result else ""
