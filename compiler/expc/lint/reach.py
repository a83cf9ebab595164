"""How far a threshold lies from what a constant answer reaches."""

from __future__ import annotations

MARGIN = 0.1
"""Share of the way from the constant's score to a perfect one that a threshold must be beyond."""


def rises(word: str) -> bool:
    """Whether a bound is met from below."""
    return word in ("at_least", "above")


def too_near(word: str, bound: float, floor: float) -> str:
    """What a constant answer with that score does to a gate, in words; empty where the bound lies well beyond it.

    Nothing lies beyond a constant that is perfect: a gate on perfection is as good as can be.
    """
    higher = rises(word)
    if bound == floor == (1 if higher else 0):
        return ""
    if (bound <= floor) if higher else (bound >= floor):
        return "passes the gate"
    reach = floor + MARGIN * (1 - floor) if higher else floor * (1 - MARGIN)
    near = (bound < reach) if higher else (bound > reach)
    return "is nearly enough for the gate" if near else ""


def further(word: str, floor: float, *, instead: str = "f1") -> str:
    """What to do about it; `instead` is a metric that a constant answer does worse on."""
    if rises(word):
        said = f"set it well above {floor:.3f}, such as {floor + 0.5 * (1 - floor):.2f}"
        return f"{said}, or gate on `{instead}`" if instead else said
    return f"set it well below {floor:.3f}, such as {0.5 * floor:.2f}"
