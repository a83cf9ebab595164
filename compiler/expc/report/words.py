"""How names, amounts and moments are written in a report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from markupsafe import Markup, escape

__all__ = ["GLYPHS", "MARKS", "breakable", "counted", "in_bytes", "listed", "on_day"]


GLYPHS = {
    "pending": "○", "running": "▶", "done": "●", "smoke": "◌", "failed": "✕", "blocked": "◆",
    "skipped": "–", "undefined": "?", "interrupted": "‖",
}  # fmt: skip
MARKS = {"yes": "✓", "no": "✕", "open": "…"}
_BREAKS = str.maketrans({c: f"{c}\0" for c in ",/._"})


def breakable(text: str) -> Markup:
    """A long name that may be broken after its separators."""
    return Markup("<wbr>").join(escape(part) for part in text.translate(_BREAKS).split("\0"))


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first few, and how many there are beyond."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def counted(count: int, what: str) -> str:
    """``1 picture``, ``12 pictures``."""
    return f"1 {what}" if count == 1 else f"{count:,} {what}s"


def in_bytes(size: float) -> str:
    """An amount of memory, three digits of it."""
    power = min(4, int(math.log10(max(size, 1))) // 3)
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def on_day(moment: float) -> str:
    """Seconds since the epoch, as a date and a time of this machine."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
