"""Parts that a module takes over: from a file, or from what another stage of the same run made.

What a stage leaves is declared: the last weights and the best of each monitor. Its result.json names
the file of each with its SHA-256, and a stage that takes from it accepts that very file and no other.
One project took the newest file of a name, and trained on from a stranger's.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expc_runtime.checkpoint import LAST, Store, clean_keys, load_weights, sha256
from expc_runtime.errors import MissingInput, MissingOutput
from expc_runtime.state import parent_key, read_result, sibling

__all__ = ["From", "Origin", "fingerprint", "fingerprints", "load_parts", "outputs", "parents"]

STAGE = "stage:"
SHOWN = 4  # keys that a message names of many

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class From:
    """Where a part comes from, and the tensors that may be there too much or too little.

    ``missing`` are keys of the part that keep the values they begin with if ``source`` has none;
    ``extra`` are keys of the source that nothing here takes.
    """

    source: str
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


Origin = str | From


@dataclass(frozen=True)
class _Found:
    """Weights at their origin, and what is known of the file that holds them."""

    weights: Weights
    about: Mapping[str, Any]
    words: str  # the origin for people


def parents(taken: Iterable[Mapping[str, Origin]], out: Path) -> dict[str, str]:
    """Keys of the stages that parts are taken from, by name.

    Raises MissingInput for one without a result.
    """
    sources = [_from(origin).source for parts in taken for origin in parts.values()]
    keys = {}
    for name in sorted({_stage(source)[0] for source in sources if _is_stage(source)}):
        keys[name] = parent_key(out, name)
        if not keys[name]:
            raise MissingInput(f"stage {name} of this run has no result: {out.parent / name}")
    return keys


def load_parts(
    module: nn.Module, taken: Mapping[str, Origin], *, out: Path, root: Path
) -> dict[str, dict[str, Any]]:
    """Load parts of ``module`` from a file, or from ``stage:NAME[/best_MONITOR][#PART]``.

    A file (.safetensors, .pt) holds the part alone, or a whole module with the part under its own
    name; ``#PART`` takes a part of another name from a whole module. Every tensor of the part must be there and fit, and
    none may be left over, but for those that `From` names. Of a stage, the file must be the one that
    its result.json declares, and the part have the shapes that it says.

    Returns what was handed over by part: where from, the file's hash, the part's fingerprint.
    Raises MissingInput for what cannot be taken; then nothing of that part was loaded.
    """
    return {part: _load(module, part, _from(o), out, root) for part, o in taken.items()}


def _load(module: nn.Module, part: str, origin: From, out: Path, root: Path) -> dict[str, Any]:
    source, _, other = origin.source.partition("#")
    of_stage = _is_stage(source)
    found = _of_stage(source, other or part, out) if of_stage else _of_file(root / source)
    try:
        into = module.get_submodule(part)
    except AttributeError as error:
        raise MissingInput(f"{part} cannot start from {found.words}: {error}") from error
    there = _under(found.weights, other or part, or_all=not of_stage and not other)
    own: dict[str, Tensor] = clean_keys(dict(into.state_dict()))
    lacks, left = sorted(own.keys() - there.keys()), sorted(there.keys() - own.keys())
    faults = [
        *_listed("not there", [key for key in lacks if key not in origin.missing]),
        *_listed("left over", [key for key in left if key not in origin.extra]),
        *_listed("of another shape or type", _unlike(own, there, exactly=of_stage)),
        *_listed(
            "named as `missing`, but no tensor of this part", sorted({*origin.missing} - {*own})
        ),
    ]
    if faults:
        raise MissingInput(
            "\n  ".join([f"{part} cannot start from {found.words}", *faults, *_help(lacks, left)])
        )
    load_weights(into, {key: there.get(key, value) for key, value in own.items()})
    return {
        **found.about,
        "fingerprint": fingerprint(own),
        "tensors": len(own) - len(lacks),
        "missing": lacks,
        "extra": left,
    }


def _listed(what: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return [f"{len(keys)} {what}: {', '.join(keys[:SHOWN])}{more}"]


def _help(lacks: list[str], left: list[str]) -> list[str]:
    keys = [f"`{name}`" for name, found in (("missing", lacks), ("extra", left)) if found]
    return [f"what is meant to be so is named under {' and '.join(keys)}"] if keys else []


def _unlike(own: Weights, there: Weights, *, exactly: bool) -> list[str]:
    """Tensors of both whose shape differs, or whose type where that matters."""
    return [
        f"{key} is {_kind(there[key])} there and {_kind(own[key])} here"
        for key in sorted(own.keys() & there.keys())
        if own[key].shape != there[key].shape or (exactly and own[key].dtype != there[key].dtype)
    ]


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def fingerprint(weights: Weights) -> str:
    """Of an architecture: SHA-256 over key, shape and dtype of its tensors, sorted; 16 hex digits."""
    lines = "\n".join(f"{key} {_kind(weights[key])}" for key in sorted(weights))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def fingerprints(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Fingerprint and number of tensors of each part of ``module`` that has any."""
    states = {name: clean_keys(dict(part.state_dict())) for name, part in module.named_children()}
    return {
        name: {"fingerprint": fingerprint(state), "tensors": len(state)}
        for name, state in states.items()
        if state
    }


# What a stage leaves.


def outputs(
    store: Store, monitors: Iterable[str], why: Callable[[str], str]
) -> dict[str, dict[str, Any]]:
    """The declared series, each verified and read back: file, step and SHA-256 by name.

    Raises MissingOutput for one that is not there or not whole; ``why`` says what may be the cause.
    """
    found = {}
    for series in (LAST, *monitors):
        try:
            sealed = store.seal(series)
        except MissingInput as error:
            raise MissingOutput(f"{error}\n  {why(series)}") from error
        if sealed is None:
            raise MissingOutput(f"no {series} checkpoint in {store.folder}\n  {why(series)}")
        found[series] = {"file": sealed.file, "step": sealed.step, "sha256": sealed.sha256}
    return found


# Origins.


def _from(origin: Origin) -> From:
    return From(origin) if isinstance(origin, str) else origin


def _is_stage(source: str) -> bool:
    return source.startswith(STAGE)


def _stage(source: str) -> tuple[str, str]:
    """Name of the stage, and of the monitor whose best weights are meant; empty for the last."""
    name, _, tag = source.removeprefix(STAGE).partition("#")[0].partition("/")
    return name, tag.removeprefix("best_")


def _of_stage(source: str, part: str, out: Path) -> _Found:
    """What the stage declared; its file is held against the hash that it left."""
    name, tag = _stage(source)
    series, home = tag or LAST, sibling(out, name)
    store, result = Store(home / "checkpoints"), read_result(home)
    loaded = store.load(series)
    if loaded is None and result is not None and result.state == "smoke":
        # After two updates a figure may be no number yet, and nothing best.
        series, loaded = LAST, store.load()
    if loaded is None:
        raise MissingInput(
            f"no {series} checkpoint in {store.folder}, which stage {name} left there\n"
            f"  remove {home} to run stage {name} again"
        )
    state, manifest = loaded
    path = store.folder / manifest.file
    words = f"{source}: {series} at step {manifest.step}, {path}"
    declared = result.extra.get("artifacts", {}).get(series) if result else None
    digest = sha256(path)
    if declared is not None and declared["sha256"] != digest:
        raise MissingInput(
            f"{words}\n  is not the file that stage {name} ended with: that is {declared['file']} "
            f"of SHA-256 {declared['sha256'][:16]}..., this one has {digest[:16]}...\n"
            f"  remove {home} to run stage {name} again"
        )
    weights: Weights = state["model"]
    known = result.extra.get("parts", {}).get(part) if result else None
    if known is not None and known["fingerprint"] != fingerprint(_under(weights, part)):
        raise MissingInput(
            f"{words}\n  holds another {part} than stage {name} said that it trained: other tensors"
        )
    about = {
        "stage": name,
        "series": series,
        "step": manifest.step,
        "key": result.key if result else "",
        "file": manifest.file,
        "sha256": digest,
    }
    return _Found(weights, about, words)


def _of_file(path: Path) -> _Found:
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            held = _tensors_of(load_file(path))
        else:
            held = _tensors_of(torch.load(path, map_location="cpu", weights_only=True))
    except MemoryError:
        raise
    except Exception as error:  # each format has exceptions of its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise MissingInput(f"{path} cannot be read: {reason}") from error
    return _Found(held, {"file": path.name, "sha256": sha256(path)}, str(path))


def _tensors_of(held: Any) -> Weights:
    """The tensors of a file by name, without what `torch.compile` put into the names.

    Raises ValueError if there is none.
    """
    named = clean_keys(dict(held)) if isinstance(held, Mapping) else {}
    tensors = {str(key): value for key, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        other = f", but {', '.join(map(str, [*named][:SHOWN]))}" if named else ""
        raise ValueError(f"it holds no tensors by name{other}")
    return tensors


def _under(held: Weights, part: str, *, or_all: bool = False) -> dict[str, Tensor]:
    prefix = f"{part}."
    inside = {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}
    return inside or (dict(held) if or_all else {})
