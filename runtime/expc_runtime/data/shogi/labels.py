"""Moves as 1496 classes, and classes as moves.

A class is (direction, promotes, destination) or (dropped kind, destination), in the mover's view;
which piece moves, and how far, follows from the board. Classes of a category are numbered by
ascending square of the destinations that some square of the board leads to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from expc_runtime.data.shogi.board import CODES, DROPPED, KINDS, USI, Position, line, stuck

__all__ = ["CATEGORIES", "LABELS", "TABLE", "Category", "label_move", "move_label"]

_DIRECTIONS: Final = {  # left is towards larger x: the mover looks towards smaller y
    "up": (0, -1),
    "up_left": (1, -1),
    "up_right": (-1, -1),
    "left": (1, 0),
    "right": (-1, 0),
    "down": (0, 1),
    "down_left": (1, 1),
    "down_right": (-1, 1),
    "knight_left": (1, -2),
    "knight_right": (-1, -2),
}


@dataclass(frozen=True, slots=True)
class Category:
    """Classes ``offset`` and on, one for each of ``destinations``; their moves, square by square.

    ``moves`` are numbers as in `board`, in the mover's view; those of one class come from different
    squares, nearest first.
    """

    name: str
    offset: int
    moves: dict[int, tuple[int, ...]]

    @property
    def destinations(self) -> tuple[int, ...]:
        return tuple(self.moves)


def _sources(to: int, name: str) -> list[int]:
    dx, dy = _DIRECTIONS[name]
    squares = list(line(to, -dx, -dy))
    return squares[:1] if name.startswith("knight") else squares


def _steps(name: str, promotes: bool) -> dict[int, tuple[int, ...]]:
    """To each destination the moves that lead there; without one, it is none."""
    moves: dict[int, tuple[int, ...]] = {}
    for to in range(81):
        if not promotes and name.startswith("knight") and to % 9 < stuck(3):
            continue
        found = tuple(
            promotes << 14 | source << 7 | to
            for source in _sources(to, name)
            if not promotes or min(source % 9, to % 9) <= 2
        )
        if found:
            moves[to] = found
    return moves


def _categories() -> Iterator[Category]:
    kinds = {name: _steps(name, False) for name in _DIRECTIONS}
    kinds |= {f"{name}+": _steps(name, True) for name in _DIRECTIONS}
    for kind in range(1, DROPPED + 1):
        ranks = range(stuck(kind), 9)
        kinds[f"{KINDS[kind - 1]}*"] = {
            to: ((80 + kind) << 7 | to,) for to in range(81) if to % 9 in ranks
        }
    offset = 0
    for name, moves in kinds.items():
        yield Category(name, offset, moves)
        offset += len(moves)


CATEGORIES: Final = tuple(_categories())
LABELS: Final = CATEGORIES[-1].offset + len(CATEGORIES[-1].moves)


def _turned(code: int) -> int:
    """The same move seen from the other side."""
    to, source = code & 127, code >> 7 & 127
    return code >> 14 << 14 | (80 - source if source < 81 else source) << 7 | 80 - to


_MOVES: Final = tuple(moves for category in CATEGORIES for moves in category.moves.values())


def _table() -> npt.NDArray[np.int16]:
    table = np.full((2, 1 << 15), -1, dtype=np.int16)
    for label, codes in enumerate(_MOVES):
        for code in codes:
            table[0, code] = table[1, _turned(code)] = label
    return table


TABLE: Final = _table()
"""[turn, move] -> label; -1 for what no piece can do. (2, 32768) int16."""
_LABEL: Final = tuple(row.tolist() for row in TABLE)


def move_label(sfen: str, usi: str) -> int:
    """The class, 0..1495, of a move in USI notation.

    Raises ValueError for what is not SFEN, and "illegal move ..." where no piece of the side to
    move can go so (a king left in check is not asked about).
    """
    position = Position.read(sfen)
    code = CODES.get(usi, -1)
    if code < 0:
        raise ValueError(f"illegal move {usi!r}: not a move in USI notation")
    why = position.breach(code)
    if why:
        raise ValueError(f"illegal move {usi}: {why}")
    return int(_LABEL[position.turn][code])


def label_move(sfen: str, label: int) -> str:
    """The move in USI notation that a class means on a board: the piece is found that can make it.

    Raises ValueError "illegal move ..." if there is none.
    """
    if not 0 <= label < LABELS:
        raise ValueError(f"illegal move class {label}: there are {LABELS}, from 0")
    position = Position.read(sfen)
    for code in _MOVES[label]:
        there = _turned(code) if position.turn else code
        if not position.breach(there):
            return USI[there]
    raise ValueError(f"illegal move class {label}: no piece can make it in {sfen}")
