"""Weights that a module starts from: a file, or what another stage of the same run made."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from expc_runtime.checkpoint import Store, load_weights
from expc_runtime.errors import MissingInput
from expc_runtime.state import parent_key, sibling

__all__ = ["load_parts", "parents"]

STAGE = "stage:"


def parents(init: Mapping[str, str], out: Path) -> dict[str, str]:
    """Keys of the stages that ``init`` takes weights from, by name.

    Raises MissingInput for one without a result.
    """
    keys = {}
    for name in sorted({_stage(origin)[0] for origin in init.values() if _is_stage(origin)}):
        keys[name] = parent_key(out, name)
        if not keys[name]:
            raise MissingInput(f"stage {name} of this run has no result: {out.parent / name}")
    return keys


def load_parts(module: nn.Module, init: Mapping[str, str], *, out: Path, root: Path) -> None:
    """Load ``init`` (part of the module -> file, or ``stage:NAME[/best_MONITOR][#PART]``) into ``module``.

    A file (.safetensors, .pt) holds the part alone, or a whole module with the part under its own
    name; ``#PART`` takes a part of another name. Every tensor of the part must be there and fit.

    Raises MissingInput otherwise.
    """
    for part, origin in init.items():
        source, _, other = origin.partition("#")
        held = _of_stage(source, out) if _is_stage(source) else _of_file(root / source)
        try:
            load_weights(module.get_submodule(part), _under(held, other or part))
        except (RuntimeError, AttributeError) as error:
            raise MissingInput(f"{part} cannot start from {origin}: {error}") from error


def _is_stage(origin: str) -> bool:
    return origin.startswith(STAGE)


def _stage(origin: str) -> tuple[str, str]:
    """Name of the stage, and of the monitor whose best weights are meant; empty for the last."""
    name, _, tag = origin.removeprefix(STAGE).partition("#")[0].partition("/")
    return name, tag.removeprefix("best_")


def _of_stage(origin: str, out: Path) -> Mapping[str, Tensor]:
    name, tag = _stage(origin)
    folder = sibling(out, name) / "checkpoints"
    loaded = Store(folder).load(tag or None)
    if loaded is None:
        raise MissingInput(f"no {tag or 'last'} checkpoint in {folder}")
    weights: Mapping[str, Tensor] = loaded[0]["model"]
    return weights


def _of_file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        held: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # each format has exceptions of its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise MissingInput(f"{path} cannot be read: {reason}") from error
    return held


def _under(held: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    inside = {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}
    return inside or dict(held)
