"""The board: SFEN, moves in USI notation, which moves a piece can make, the mover's view.

Squares are numbered ``sq = 9 * x + y`` with x = file - 1 and y = rank - 1: file by file, 1a first.
In the mover's view of a position White's is turned by 180 degrees and colours are "mine" and
"theirs", so that forward is always towards smaller y and the promotion zone is y <= 2.

A position is 95 bytes: the 81 squares, then Black's hand and White's (pawn, lance, knight, silver,
gold, bishop, rook). On a square 0 is empty, 1..14 are `KINDS` of Black, 15..28 those of White.

A move is one number: destination, from << 7, promotes << 14. Drops are "from" 81 + kind - 1.
"""

import functools
from collections.abc import Iterator
from typing import Final, Self

import numpy as np
import numpy.typing as npt

__all__ = [
    "CODES",
    "DROPPED",
    "KINDS",
    "KING",
    "REACH",
    "START",
    "THEIRS",
    "USI",
    "Position",
    "encode",
    "line",
    "stuck",
    "view",
]

Bytes = npt.NDArray[np.uint8]

KINDS: Final = (
    *("pawn", "lance", "knight", "silver", "gold", "bishop", "rook", "king"),
    *("promoted pawn", "promoted lance", "promoted knight", "promoted silver", "horse", "dragon"),
)  # fmt: skip
DROPPED: Final = 7  # the first seven can be held in hand
THEIRS: Final = 14  # added to a kind when the piece is White's, or not the mover's

START: Final = "lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b - 1"

PAWN, LANCE, KNIGHT, SILVER, GOLD, BISHOP, ROOK, KING = range(1, 9)
_IN_ALL: Final = (18, 4, 4, 4, 4, 2, 2)  # pieces of a kind that one hand can hold
_PROMOTED: Final = {PAWN: 9, LANCE: 10, KNIGHT: 11, SILVER: 12, BISHOP: 13, ROOK: 14}
_LETTERS: Final = "PLNSGBRK"

_FORWARD: Final = ((0, -1),)
_DIAGONAL: Final = ((1, -1), (-1, -1), (1, 1), (-1, 1))
_STRAIGHT: Final = ((0, -1), (1, 0), (-1, 0), (0, 1))
_GOLD: Final = (*_STRAIGHT, (1, -1), (-1, -1))
_STEPS: Final[dict[int, tuple[tuple[int, int], ...]]] = {
    PAWN: _FORWARD,
    KNIGHT: ((1, -2), (-1, -2)),
    SILVER: (*_FORWARD, *_DIAGONAL),
    **dict.fromkeys((GOLD, 9, 10, 11, 12), _GOLD),
    KING: (*_STRAIGHT, *_DIAGONAL),
    13: _STRAIGHT,
    14: _DIAGONAL,
}
_SLIDES: Final = {
    LANCE: _FORWARD,
    BISHOP: _DIAGONAL,
    ROOK: _STRAIGHT,
    13: _DIAGONAL,
    14: _STRAIGHT,
}


def line(sq: int, dx: int, dy: int) -> Iterator[int]:
    """Squares from ``sq`` (not included) to the edge, in steps of (dx, dy)."""
    x, y = sq // 9 + dx, sq % 9 + dy
    while 0 <= x < 9 and 0 <= y < 9:
        yield 9 * x + y
        x, y = x + dx, y + dy


def _reach() -> npt.NDArray[np.bool_]:
    """[kind, from, to]: may the mover's piece go there on an empty board? (15, 81, 81)."""
    may = np.zeros((15, 81, 81), dtype=bool)
    for sq in range(81):
        for kind, steps in _STEPS.items():
            for dx, dy in steps:
                may[kind, sq, list(line(sq, dx, dy))[:1]] = True
        for kind, slides in _SLIDES.items():
            for dx, dy in slides:
                may[kind, sq, list(line(sq, dx, dy))] = True
    return may


def stuck(kind: int) -> int:
    """Number of the farthest ranks from which the kind, unpromoted, has no move at all."""
    return {PAWN: 1, LANCE: 1, KNIGHT: 2}.get(kind, 0)


def _moves() -> tuple[bytes, ...]:
    """[piece][move]: can this piece, on its side's rules, make this move if nothing is in its way?"""
    rank = np.arange(81) % 9
    zone = (rank <= 2)[:, None] | (rank <= 2)
    may = np.zeros((29, 2, 128, 128), dtype=bool)  # piece, promotes, from, to
    for kind in range(1, 15):
        held = rank >= stuck(kind)
        may[kind, 0, :81, :81] = REACH[kind] & held
        if kind in _PROMOTED:
            may[kind, 1, :81, :81] = REACH[kind] & zone
        if kind <= DROPPED:
            may[kind, 0, 80 + kind, :81] = held
        turned = may[kind, :, :81, :81][:, ::-1, ::-1]
        may[kind + THEIRS, :, :81, :81] = turned
        may[kind + THEIRS, :, 81:, :81] = may[kind, :, 81:, :81][:, :, ::-1]
    return tuple(piece.tobytes() for piece in may)


def _between() -> tuple[tuple[int, ...], ...]:
    """[from << 7 | to]: the squares that a slide passes."""
    passed: list[tuple[int, ...]] = [()] * (128 * 128)
    for sq in range(81):
        for dx, dy in (*_STRAIGHT, *_DIAGONAL):
            squares = list(line(sq, dx, dy))
            for k, to in enumerate(squares):
                passed[sq << 7 | to] = tuple(squares[:k])
    return tuple(passed)


REACH: Final = _reach()
_MAY: Final = _moves()
_BETWEEN: Final = _between()
# Of each colour: its own pieces, and what may not be taken (its own and any king).
_MINE: Final = tuple(
    bytes(0 < piece - THEIRS * turn <= THEIRS for piece in range(29)) for turn in (0, 1)
)
_BARRED: Final = tuple(
    bytes(mine[piece] or piece in (KING, KING + THEIRS) for piece in range(29)) for mine in _MINE
)
_PROMOTES: Final = bytes(
    _PROMOTED.get(kind, kind) + colour
    for colour, kind in ((0, 0), *((c, k) for c in (0, THEIRS) for k in range(1, 15)))
)


def _captured(piece: int) -> int:
    """Where in the 95 bytes a piece is counted that was taken; 0 for what is never taken."""
    kind = (piece - 1) % THEIRS + 1
    plain = {promoted: kind for kind, promoted in _PROMOTED.items()}.get(kind, kind)
    if piece == 0 or plain > DROPPED:
        return 0
    return 81 + plain - 1 + (0 if piece > THEIRS else DROPPED)


_HAND_OF: Final = bytes(map(_captured, range(29)))


def name(sq: int) -> str:
    """A square as USI has it: 0 is 1a, 80 is 9i."""
    return f"{sq // 9 + 1}{'abcdefghi'[sq % 9]}"


def _codes() -> Iterator[tuple[str, int]]:
    for to in range(81):
        for kind in range(1, DROPPED + 1):
            yield f"{_LETTERS[kind - 1]}*{name(to)}", (80 + kind) << 7 | to
        for sq in range(81):
            if sq != to:
                yield name(sq) + name(to), sq << 7 | to
                yield f"{name(sq)}{name(to)}+", 1 << 14 | sq << 7 | to


CODES: Final = dict(_codes())
"""Everything that reads as a move in USI notation -> its number."""
USI: Final = {code: usi for usi, code in CODES.items()}


class Position:
    """A position that moves are made on. ``state``: the 95 bytes; ``turn``: 0 Black, 1 White."""

    __slots__ = ("state", "turn")

    def __init__(self, state: bytearray, turn: int) -> None:
        self.state = state
        self.turn = turn

    @classmethod
    def read(cls, sfen: str) -> Self:
        """From SFEN; the move number may be left out. Raises ValueError for what is not SFEN."""
        state, turn = _read(sfen)
        return cls(bytearray(state), turn)

    def breach(self, code: int) -> str:
        """Why the move cannot be made; empty if it can.

        What is left out: a king left in check, and mate by a dropped pawn.
        """
        state, turn = self.state, self.turn
        to, source = code & 127, code >> 7 & 127
        if source < 81:
            piece = state[source]
            if _MINE[turn][piece] and _MAY[piece][code] and not _BARRED[turn][state[to]]:
                for sq in _BETWEEN[code & 16383]:
                    if state[sq]:
                        break
                else:
                    return ""
        else:
            piece = source - 80 + THEIRS * turn
            if (
                state[source + DROPPED * turn]
                and not state[to]
                and _MAY[piece][code]
                and (source > 81 or piece not in state[to - to % 9 : to - to % 9 + 9])
            ):
                return ""
        return self._why(code)

    def _why(self, code: int) -> str:
        state, turn = self.state, self.turn
        to, source = code & 127, code >> 7 & 127
        mover = ("Black", "White")[turn]
        if source >= 81:
            kind = KINDS[source - 81]
            if not state[source + DROPPED * turn]:
                return f"{mover} has no {kind} in hand"
            if state[to]:
                return f"{name(to)} is not empty"
            if not _MAY[source - 80 + THEIRS * turn][code]:
                return f"a {kind} could never move from {name(to)}"
            return f"{mover} has a pawn in file {to // 9 + 1} already"
        if not _MINE[turn][state[source]]:
            return f"{mover} is to move and has no piece on {name(source)}"
        kind = KINDS[(state[source] - 1) % THEIRS]
        if not _MAY[state[source]][code]:
            other = code ^ 1 << 14
            if _MAY[state[source]][other]:
                return f"the {kind} {'cannot' if code > other else 'must'} promote there"
            return f"a {kind} does not move so"
        if _MINE[turn][state[to]]:
            return f"{mover}'s own piece is on {name(to)}"
        if state[to] in (KING, KING + THEIRS):
            return "it takes the king"
        return f"the {kind}'s way is not free"

    def push(self, code: int) -> None:
        """Make a move; one that `breach` finds fault with leaves no meaningful position."""
        state = self.state
        to, source = code & 127, code >> 7 & 127
        if source < 81:
            piece, taken = state[source], state[to]
            if taken:
                state[_HAND_OF[taken]] += 1
            state[source] = 0
            state[to] = _PROMOTES[piece] if code >> 14 else piece
        else:
            state[source + DROPPED * self.turn] -= 1
            state[to] = source - 80 + THEIRS * self.turn
        self.turn ^= 1


@functools.lru_cache(maxsize=1024)
def _read(sfen: str) -> tuple[bytes, int]:
    fields = sfen.split()
    if fields[:1] == ["sfen"]:
        fields = fields[1:]
    if len(fields) not in (3, 4) or fields[1] not in ("b", "w"):
        raise ValueError(f"not SFEN: {sfen!r}; a board, b or w, hands and a move number are read")
    try:
        return _squares(fields[0]) + _hands(fields[2]), int(fields[1] == "w")
    except (KeyError, ValueError) as error:
        raise ValueError(f"not SFEN: {sfen!r}: {error.args[0]}") from None


def _squares(text: str) -> bytes:
    ranks = text.split("/")
    if len(ranks) != 9:
        raise ValueError(f"{len(ranks)} ranks, not 9")
    squares = bytearray(81)
    for y, rank in enumerate(ranks):
        x = 9
        promoted = False
        for letter in rank:
            if letter in "123456789" and not promoted:
                x -= int(letter)
            elif letter == "+" and not promoted:
                promoted = True
            else:
                x -= 1
                if x >= 0:
                    squares[9 * x + y] = _piece(letter, promoted)
                promoted = False
        if x != 0 or promoted:
            raise ValueError(f"rank {y + 1}, {rank!r}, is not 9 squares")
    return bytes(squares)


def _piece(letter: str, promoted: bool) -> int:
    kind = _LETTERS.find(letter.upper()) + 1
    if not kind or (promoted and kind not in _PROMOTED):
        raise ValueError(f"no piece {'+' * promoted}{letter}")
    return (_PROMOTED[kind] if promoted else kind) + THEIRS * letter.islower()


def _hands(text: str) -> bytes:
    hands = bytearray(14)
    count = ""
    for letter in "" if text == "-" else text:
        if letter in "0123456789":
            count += letter
            continue
        kind = _LETTERS.find(letter.upper())
        held = kind + DROPPED * letter.islower()
        more = int(count or 1)
        if not 0 <= kind < DROPPED or not 1 <= more <= _IN_ALL[kind] - hands[held]:
            raise ValueError(f"hands {text!r}")
        hands[held] += more
        count = ""
    if count or not text:
        raise ValueError(f"hands {text!r}")
    return bytes(hands)


_SWAP: Final = np.array([0, *range(15, 29), *range(1, 15)], dtype=np.uint8)


def view(states: Bytes, turn: npt.NDArray[np.integer]) -> tuple[Bytes, Bytes]:
    """The mover's view of positions: states (N, 95), turn (N,) -> board (N, 9, 9), hand (N, 14).

    ``board[n, y, x]`` holds 0, a kind of the mover (1..14) or of the opponent (15..28); row y is
    rank y + 1, column x file x + 1. ``hand``: the mover's seven counts, then the opponent's.
    """
    white = np.flatnonzero(turn)
    squares, hand = states[:, :81].copy(), states[:, 81:].copy()
    squares[white] = _SWAP[squares[white, ::-1]]
    hand[white] = np.roll(hand[white], DROPPED, axis=1)
    board = squares.reshape(-1, 9, 9).transpose(0, 2, 1)
    return np.ascontiguousarray(board), hand


def encode(sfen: str) -> tuple[Bytes, Bytes]:
    """A position in the mover's view: board uint8 (9, 9), hand uint8 (14,), as `view` has them.

    Raises ValueError for what is not SFEN.
    """
    state, turn = _read(sfen)
    board, hand = view(np.frombuffer(state, dtype=np.uint8)[None], np.array([turn]))
    return board[0], hand[0]
