"""Legal moves as labels. They come from cshogi, which only they need: `pip install 'expc[shogi]'`."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from expc_runtime.data.shogi.board import DROPPED, Position
from expc_runtime.data.shogi.labels import LABELS, TABLE
from expc_runtime.errors import MissingInput

__all__ = ["legal_bits", "legal_labels"]

# cshogi numbers pieces in hand pawn, lance, knight, silver, bishop, rook, gold.
_HAND: Final = (0, 1, 2, 3, 5, 6, 4)


def _library() -> Any:
    try:
        import cshogi
    except ImportError as error:
        raise MissingInput(
            f"legal moves come from cshogi, which is not installed here ({error}); "
            "pip install 'expc[shogi]'"
        ) from error
    return cshogi


def _table() -> npt.NDArray[np.int16]:
    """[turn, cshogi's move & 0x7fff] -> label: its numbers are ours but for the order of the hand."""
    table = TABLE.reshape(2, 2, 128, 128).copy()
    table[:, :, 81 : 81 + DROPPED] = table[:, :, [81 + kind for kind in _HAND]]
    return table.reshape(2, -1)


_TABLE: Final = _table()


def legal_labels(sfen: str) -> list[int]:
    """The classes of all legal moves, ascending.

    Raises ValueError for what is not SFEN, MissingInput where cshogi is not installed.
    """
    library = _library()
    position = Position.read(sfen)  # cshogi takes some text that is no SFEN
    board = library.Board(sfen.removeprefix("sfen").strip())
    moves = np.fromiter(board.legal_moves, dtype=np.int64)
    labels: list[int] = np.sort(_TABLE[position.turn][moves & 0x7FFF]).tolist()
    return labels


def legal_bits(
    games: Iterable[Sequence[str]], wanted: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """Bits of the legal classes before each move of games that start from the initial position.

    Args:
        games: moves in USI notation, each legal but perhaps for mate by a dropped pawn.
        wanted: (plies of all games,) which positions to give.

    Returns:
        (wanted, 187) uint8; class j is bit j % 8 of byte j // 8, the lowest bit first.
    """
    board = _library().Board()
    packed = []
    ask = iter(wanted.tolist())
    moves, counts, turns = array("i"), array("i"), bytearray()
    for game in games:
        board.reset()
        for usi in game:
            if next(ask):
                before = len(moves)
                moves.extend(board.legal_moves)
                counts.append(len(moves) - before)
                turns.append(board.turn)
            board.push_usi(usi)
        if len(counts) >= _ROWS:
            packed.append(_packed(moves, counts, turns))
            moves, counts, turns = array("i"), array("i"), bytearray()
    packed.append(_packed(moves, counts, turns))
    return np.concatenate(packed)


_ROWS: Final = 2_048  # dense at a time


def _packed(moves: "array[int]", counts: "array[int]", turns: bytearray) -> npt.NDArray[np.uint8]:
    row = np.repeat(np.arange(len(counts)), np.asarray(counts))
    turn = np.frombuffer(turns, dtype=np.uint8)[row]
    labels = _TABLE[turn, np.asarray(moves) & 0x7FFF]
    dense = np.zeros((len(counts), LABELS), dtype=bool)
    dense[row, labels] = True
    return np.packbits(dense, axis=1, bitorder="little")
