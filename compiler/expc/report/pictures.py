"""Pictures of evaluations, small enough to be sent along in one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expc.report.gather import Run

__all__ = ["Album", "Picture", "album"]

BUDGET = 6_000_000
"""Bytes of all pictures of a report together, before they are written as text."""

_WIDEST = 1600  # pixels
_MISSES = 8  # pictures too large for what is left of the budget, after which none is tried
_FLAT = 4096  # colours of a drawing, at most
_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True)
class Picture:
    """One picture, as an address that holds it."""

    source: str
    condition: str
    seed: str
    name: str
    width: int
    height: int


@dataclass(frozen=True)
class Album:
    """The pictures of a stage that there is room for."""

    pictures: tuple[Picture, ...]
    left_out: tuple[str, ...]  # why the others are not there
    size: int


def album(runs: Sequence[Run], root: Path, budget: int) -> Album:
    """The pictures of a stage's runs, the first seed of each condition first, as far as ``budget`` bytes go."""
    taken: list[Picture] = []
    too_many, unread, size = 0, [], 0
    for run, name in _in_turn(runs):
        if too_many >= _MISSES:
            too_many += 1
            continue
        try:
            data, kind, width, height = _small(root / run.product / name)
        except (OSError, ValueError) as error:
            unread.append(f"{run.name}/{name} can't be read: {error}")
            continue
        if size + len(data) > budget:
            too_many += 1
            continue
        size += len(data)
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        taken.append(Picture(source, run.condition, run.seed, name, width, height))
    told = [
        f"{too_many} more are left out: the pictures would take more than {budget / 1e6:.1f} MB"
    ]
    return Album(tuple(taken), (*(told if too_many else []), *unread), size)


def _in_turn(runs: Sequence[Run]) -> Iterator[tuple[Run, str]]:
    """Each picture once; all first seeds before the second ones."""
    seeds: dict[str, int] = {}
    ranked = []
    for place, run in enumerate(runs):
        turn = seeds[run.condition] = seeds.get(run.condition, -1) + 1
        if not run.same_as:
            ranked.append((turn, place, run))
    for _, _, run in sorted(ranked, key=lambda each: each[:2]):
        for name in run.pictures:
            yield run, name


def _small(path: Path) -> tuple[bytes, str, int, int]:
    """The picture's bytes, their kind, and its size in pixels; scaled where Pillow is there to do it.

    Raises OSError or ValueError for what is no picture.
    """
    data, kind = path.read_bytes(), _KINDS[path.suffix.lower()]
    try:
        from PIL import Image
    except ImportError:
        return data, kind, 0, 0
    with Image.open(io.BytesIO(data)) as opened:
        wide, tall = opened.size
        if kind != "png":
            return data, kind, wide, tall
        picture = _opaque(opened)
    written = [data] if wide <= _WIDEST else []
    drawn = picture.getcolors(_FLAT) is not None  # few colours: a palette holds it
    if wide > _WIDEST:
        wide, tall = _WIDEST, max(1, round(tall * _WIDEST / wide))
        picture = picture.resize((wide, tall), Image.Resampling.LANCZOS)
    written.append(_png(picture))
    if drawn:
        few = picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        written.append(_png(few))
    return min(written, key=len), kind, wide, tall


def _opaque(picture: Any) -> Any:
    """On white, as on the paper that it was drawn for."""
    from PIL import Image

    whole = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")


def _png(picture: Any) -> bytes:
    written = io.BytesIO()
    picture.save(written, "PNG", optimize=True)
    return written.getvalue()
