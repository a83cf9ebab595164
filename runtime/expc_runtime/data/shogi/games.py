"""Positions of recorded games, with the move that was played and who won.

One game a line, tab-separated, xz-compressed (or plain) UTF-8:
``id  result  ending  black  white  moves``; the moves in USI notation, separated by blanks, from the
initial position.
"""

import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch

from expc_runtime.data.packed import Bits, Column, Rows
from expc_runtime.data.shogi.board import CODES, START, Position, view
from expc_runtime.data.shogi.kings import king_hangs
from expc_runtime.data.shogi.labels import LABELS, TABLE
from expc_runtime.data.shogi.legal import legal_bits
from expc_runtime.errors import MissingInput

__all__ = ["Game", "Games", "Result", "read_games"]

_FIELDS: Final = ("id", "result", "ending", "black", "white", "moves")
_STATE: Final = 95


class Result(Enum):
    """Who won. Letters, as the files have them: numbers have meant two things elsewhere."""

    BLACK = "B"
    WHITE = "W"
    DRAW = "D"

    @property
    def values(self) -> tuple[float, float]:
        """What the game is worth to Black and to White: 1, 0.5 or 0."""
        return {Result.BLACK: (1.0, 0.0), Result.WHITE: (0.0, 1.0), Result.DRAW: (0.5, 0.5)}[self]


@dataclass(frozen=True, slots=True)
class Game:
    """A game as it stands in a file; ``where`` names file, line and game."""

    where: str
    result: Result
    moves: tuple[str, ...]


class Games:
    """The positions of games, each before its move.

    Args:
        file: one file or several, of the form above.
        min_plies: shorter games are left out.
        unique: keep only the first occurrence of each position (mover's board and hands).

    Columns, N positions in the order of the files: ``board`` (N, 9, 9) uint8 and ``hand`` (N, 14)
    uint8, as `encode` gives them; ``move`` (N,) int64, the class of the move played; ``policy``
    (N, 1496), its one-hot row, kept sparse; ``legal`` (N, 1496), 1 for classes of legal moves, kept as
    bits; ``value`` (N,) float32, 1, 0.5 or 0 for the side to move; ``game`` (N,) int64, the number of
    the game, from 0: what a split must not cut.
    """

    columns: ClassVar[dict[str, str]] = {
        "board": "features",
        "hand": "features",
        "move": "class",
        "policy": "class_probs",
        "legal": "prob",
        "value": "prob",
    }
    groups: ClassVar[tuple[str, ...]] = ("game",)

    def __init__(
        self, file: str | Sequence[str], min_plies: int = 20, unique: bool = False
    ) -> None:
        self.file = file
        self.min_plies = min_plies
        self.unique = unique

    def tensors(self) -> Mapping[str, Column]:
        """Read and check the games. A column is made when it is first asked for.

        Raises MissingInput for a file that is not there or not of this form, and for a move that is
        not legal; mate by a dropped pawn is seen only with ``legal``, which alone needs cshogi.
        """
        files = [self.file] if isinstance(self.file, str) else list(self.file)
        games = [game for game in read_games(files) if len(game.moves) >= self.min_plies]
        if not any(game.moves for game in games):
            raise MissingInput(f"{', '.join(files)}: no game of {self.min_plies} plies or more")
        return _Columns(_Replay(games, self.unique))


def read_games(files: Sequence[str]) -> Iterator[Game]:
    """The games of files, in order. Raises MissingInput, naming file and line."""
    seen: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            fields = line.split("\t")
            if len(fields) != len(_FIELDS):
                raise MissingInput(
                    f"{where}: {len(fields)} tab-separated fields, not {len(_FIELDS)} "
                    f"({', '.join(_FIELDS)})"
                )
            name, result, moves = fields[0], fields[1], fields[5]
            if name in seen:
                raise MissingInput(f"{where}: game {name} stands at {seen[name]} already")
            seen[name] = where
            yield Game(f"{where}, game {name}", _result(result, where), tuple(moves.split()))


def _lines(file: str) -> list[str]:
    path = Path(file)
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    try:
        text = path.read_bytes()
        if path.suffix == ".xz":
            text = lzma.decompress(text)
        return text.decode("utf-8-sig").split("\n")
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise MissingInput(f"{path}: {error}") from error


def _result(text: str, where: str) -> Result:
    try:
        return Result(text)
    except ValueError:
        raise MissingInput(
            f"{where}: result {text!r}; it is B (Black won), W (White won) or D (draw)"
        ) from None


class _Replay:
    """Games played out: what every column is made from."""

    def __init__(self, games: Sequence[Game], unique: bool) -> None:
        self.games = games
        self.plies = np.array([len(game.moves) for game in games])
        self.first = np.cumsum(self.plies) - self.plies
        states, codes = _played(games)
        ends = np.cumsum(self.plies + 1) - 1  # a game has one position more than moves
        turn = _ply(self.plies + 1) % 2
        board, hand = view(states, turn)
        self._check_kings(
            board, np.delete(np.arange(len(board)), self.first + np.arange(len(games)))
        )
        self.board, self.hand = np.delete(board, ends, axis=0), np.delete(hand, ends, axis=0)
        self.turn = np.delete(turn, ends)
        self.move = TABLE[self.turn, codes]
        self.rows = self._first_of_each() if unique else np.arange(len(codes))

    def _check_kings(self, board: npt.NDArray[np.uint8], after: npt.NDArray[np.intp]) -> None:
        squares = board.transpose(0, 2, 1).reshape(-1, 81)
        hangs = np.flatnonzero(king_hangs(squares[after]))
        if len(hangs):
            raise self.illegal(int(hangs[0]), "the mover's king is left in check")

    def illegal(self, row: int, why: str) -> MissingInput:
        """What to say of the move of a row."""
        game = int(np.searchsorted(self.first, row, side="right")) - 1
        return _illegal(self.games[game], row - int(self.first[game]), why)

    def _first_of_each(self) -> npt.NDArray[np.intp]:
        whole = np.concatenate([self.board.reshape(-1, 81), self.hand], axis=1)
        keys = whole.view(np.dtype((np.void, _STATE))).ravel()
        return np.sort(np.unique(keys, return_index=True)[1])

    @cached_property
    def legal(self) -> npt.NDArray[np.uint8]:
        wanted = np.zeros(len(self.move), dtype=bool)
        wanted[self.rows] = True
        bits = legal_bits((game.moves for game in self.games), wanted)
        move = self.move[self.rows]
        played = bits[np.arange(len(move)), move >> 3] >> (move & 7) & 1
        if not played.all():
            row = int(self.rows[np.flatnonzero(played == 0)[0]])
            raise self.illegal(row, "it is not among the legal moves")
        return bits


def _played(games: Sequence[Game]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """States before each move and after the last, game by game, (plies + games, 95); the moves."""
    start = Position.read(START).state
    states, codes = bytearray(), []
    for game in games:
        position = Position(bytearray(start), 0)
        states += start
        for ply, usi in enumerate(game.moves):
            code = CODES.get(usi, -1)
            if code < 0:
                raise _illegal(game, ply, "not a move in USI notation")
            why = position.breach(code)
            if why:
                raise _illegal(game, ply, why)
            position.push(code)
            states += position.state
            codes.append(code)
    return np.frombuffer(states, dtype=np.uint8).reshape(-1, _STATE), np.array(codes)


def _illegal(game: Game, ply: int, why: str) -> MissingInput:
    return MissingInput(f"{game.where}, ply {ply + 1}: illegal move {game.moves[ply]!r}: {why}")


def _ply(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, 2, ... in each of runs of these lengths."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _board(replay: _Replay) -> Column:
    return torch.from_numpy(replay.board[replay.rows])


def _hand(replay: _Replay) -> Column:
    return torch.from_numpy(replay.hand[replay.rows])


def _move(replay: _Replay) -> torch.Tensor:
    return torch.from_numpy(replay.move[replay.rows].astype(np.int64))


def _policy(replay: _Replay) -> Column:
    return Rows(_move(replay), None, None, LABELS)


def _legal(replay: _Replay) -> Column:
    return Bits(torch.from_numpy(replay.legal), LABELS)


def _value(replay: _Replay) -> Column:
    values = np.array([game.result.values for game in replay.games], dtype=np.float32)
    value = values[np.repeat(np.arange(len(values)), replay.plies), replay.turn]
    return torch.from_numpy(value[replay.rows])


def _game(replay: _Replay) -> Column:
    number = np.repeat(np.arange(len(replay.games)), replay.plies)
    return torch.from_numpy(number[replay.rows])


_MADE: Final[dict[str, Callable[[_Replay], Column]]] = {
    "board": _board,
    "hand": _hand,
    "move": _move,
    "policy": _policy,
    "legal": _legal,
    "value": _value,
    "game": _game,
}


class _Columns(Mapping[str, Column]):
    """Columns that are made when they are asked for, once."""

    def __init__(self, replay: _Replay) -> None:
        self._replay = replay
        self._made: dict[str, Column] = {}

    def __getitem__(self, name: str) -> Column:
        if name not in self._made:
            self._made[name] = _MADE[name](self._replay)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in _MADE

    def __iter__(self) -> Iterator[str]:
        return iter(_MADE)

    def __len__(self) -> int:
        return len(_MADE)
