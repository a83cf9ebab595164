"""Which kings can be taken, for many positions at once."""

from typing import Final

import numpy as np
import numpy.typing as npt

from expc_runtime.data.shogi.board import KING, REACH, THEIRS, line

__all__ = ["king_hangs"]

_RAYS: Final = ((0, -1), (1, 0), (-1, 0), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
_OFF: Final = 81  # a square that stays empty, for rays that end early
_ROWS: Final = 4_096  # looked at together: what is gathered stays in the cache


def _squares() -> npt.NDArray[np.intp]:
    """[king] -> squares on the 8 rays from it, nearest first: (81, 8, 8)."""
    squares = np.full((81, 8, 8), _OFF, dtype=np.intp)
    for sq in range(81):
        for ray, (dx, dy) in enumerate(_RAYS):
            found = list(line(sq, dx, dy))
            squares[sq, ray, : len(found)] = found
    return squares


def _leaps() -> npt.NDArray[np.intp]:
    """[king] -> where the mover's knights would take it: (81, 2)."""
    leaps = np.full((81, 2), _OFF, dtype=np.intp)
    for sq in range(81):
        for side, dx in enumerate((-1, 1)):
            leaps[sq, side] = next(line(sq, dx, 2), _OFF)
    return leaps


_SQUARES: Final = _squares()
_LEAPS: Final = _leaps()
_KNIGHT: Final = 3


def king_hangs(squares: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Can the mover take the opponent's king? ``squares`` (N, 81), mover's view, by `9x + y`."""
    found = [_hangs(squares[start : start + _ROWS]) for start in range(0, len(squares), _ROWS)]
    return np.concatenate(found) if found else np.zeros(0, dtype=bool)


def _hangs(squares: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    rows = np.arange(len(squares))
    theirs = squares == KING + THEIRS
    king = theirs.argmax(axis=1)
    padded = np.pad(squares, ((0, 0), (0, 1)))
    seen = padded[rows[:, None, None], _SQUARES[king]]  # (N, rays, steps)
    nearest = (seen != 0).argmax(axis=2)[:, :, None]
    piece = np.take_along_axis(seen, nearest, axis=2)
    source = np.take_along_axis(_SQUARES[king], nearest, axis=2)
    mine = (piece > 0) & (piece <= THEIRS)
    taken = REACH[np.where(mine, piece, 0), np.minimum(source, 80), king[:, None, None]].any((1, 2))
    leaps = (padded[rows[:, None], _LEAPS[king]] == _KNIGHT).any(axis=1)
    hangs: npt.NDArray[np.bool_] = theirs.any(axis=1) & (taken | leaps)
    return hangs
