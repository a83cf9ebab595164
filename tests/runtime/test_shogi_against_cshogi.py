"""Every position of recorded games against cshogi: boards, hands, legal moves, labels, figures.

cshogi is asked for pieces and moves; what they are to the network is worked out here once more, from
the study's description. The games are those committed, and those of a tournament where
EXPC_SHOGI_GAMES names their file: the study's figures are of them.
"""

import lzma
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
cshogi = pytest.importorskip("cshogi")

from expc_runtime.data.shogi import Games, encode, label_move, legal_labels, move_label
from expc_runtime.data.shogi.kings import king_hangs

SELFPLAY = Path(__file__).parents[2] / "specs" / "data" / "selfplay.tsv.xz"
TOURNAMENT = os.environ.get("EXPC_SHOGI_GAMES", "")
EVERY = 97  # of the positions that are asked one by one


@dataclass(frozen=True)
class Seen:
    """What cshogi says, position by position; ``moves`` of all of them in a row."""

    pieces: np.ndarray  # (N, 81)
    hands: np.ndarray  # (N, 14), Black's first
    turn: np.ndarray
    check: np.ndarray
    counts: np.ndarray
    moves: np.ndarray
    played: np.ndarray
    value: np.ndarray
    game: np.ndarray
    sfens: dict[int, str]  # of some rows


def games_of(file: str) -> list[tuple[str, list[str]]]:
    """Results and moves of the games that have 20 plies or more."""
    with lzma.open(file, "rt", encoding="utf-8") as lines:
        games = [line.rstrip("\n").split("\t") for line in lines]
    return [(game[1], game[5].split()) for game in games if len(game[5].split()) >= 20]


def seen_by_cshogi(file: str) -> Seen:
    pieces, hands, turn, check = bytearray(), bytearray(), bytearray(), bytearray()
    counts, moves, played, value, game = (array(kind) for kind in "iiidi")
    sfens: dict[int, str] = {}
    for number, (result, usis) in enumerate(games_of(file)):
        board = cshogi.Board()
        for usi in usis:
            if len(turn) % EVERY == 0:
                sfens[len(turn)] = board.sfen()
            pieces += bytes(board.pieces)
            black, white = board.pieces_in_hand
            hands += bytes(black) + bytes(white)
            turn.append(board.turn)
            check.append(board.is_check())
            before = len(moves)
            moves.extend(board.legal_moves)
            counts.append(len(moves) - before)
            black_has = {"B": 1.0, "W": 0.0, "D": 0.5}[result]
            value.append(1 - black_has if board.turn else black_has)
            game.append(number)
            played.append(board.push_usi(usi))
            assert played[-1], "cshogi finds every move legal"
    return Seen(
        np.frombuffer(pieces, dtype=np.uint8).reshape(-1, 81),
        np.frombuffer(hands, dtype=np.uint8).reshape(-1, 14),
        np.frombuffer(turn, dtype=np.uint8),
        np.frombuffer(check, dtype=np.uint8).astype(bool),
        *(np.array(column) for column in (counts, moves, played, value, game)),
        sfens,
    )


@cache
def read(file: str) -> tuple[Seen, Mapping]:
    return seen_by_cshogi(file), Games(file).tensors()


def tournament() -> str:
    if not TOURNAMENT:
        pytest.skip("EXPC_SHOGI_GAMES names no file of the tournament's games")
    return TOURNAMENT


@pytest.fixture(scope="module", params=["selfplay", "tournament"])
def both(request: pytest.FixtureRequest) -> tuple[Seen, Mapping]:
    return read(str(SELFPLAY) if request.param == "selfplay" else tournament())


@pytest.fixture
def seen(both: tuple[Seen, Mapping]) -> Seen:
    return both[0]


@pytest.fixture
def held(both: tuple[Seen, Mapping]) -> Mapping:
    return both[1]


def bits(legal, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows of packed labels as booleans, unpacked by numpy."""
    rows = legal.packed[start:stop].numpy()
    return np.unpackbits(rows, axis=1, bitorder="little")[:, :1496].astype(bool)


KINDS = [0, 1, 2, 3, 4, 6, 7, 5, 8, *range(9, 15)]  # cshogi: bishop 5, rook 6, gold 7
FEATURES = np.array([*KINDS, 0, *(kind and kind + 14 for kind in KINDS), 0], dtype=np.uint8)
SWAP = np.array([0, *range(15, 29), *range(1, 15)], dtype=np.uint8)
HANDS = [0, 1, 2, 3, 6, 4, 5]  # cshogi's order: pawn, lance, knight, silver, gold, bishop, rook


def test_boards_and_hands_are_those_of_cshogi(seen: Seen, held) -> None:
    grid = FEATURES[seen.pieces].reshape(-1, 9, 9).transpose(0, 2, 1)  # by file -> by rank
    white = seen.turn[:, None, None] == 1
    board = np.where(white, SWAP[grid[:, ::-1, ::-1]], grid)
    swapped = np.concatenate([seen.hands[:, 7:], seen.hands[:, :7]], axis=1)
    hand = np.where(seen.turn[:, None] == 1, swapped, seen.hands)
    assert len(board) == len(held["board"])
    assert np.array_equal(held["board"].numpy(), board)
    assert np.array_equal(held["hand"].numpy(), hand)
    for row, sfen in seen.sfens.items():
        read = encode(sfen)
        assert np.array_equal(read[0], board[row]) and np.array_equal(read[1], hand[row])


OFFSETS = {
    "up": 0, "up_left": 72, "up_right": 136, "left": 200, "right": 272, "down": 344,
    "down_left": 416, "down_right": 480, "knight_left": 544, "knight_right": 584,
    "up+": 624, "up_left+": 651, "up_right+": 675, "left+": 699, "right+": 723, "down+": 747,
    "down_left+": 819, "down_right+": 868, "knight_left+": 917, "knight_right+": 941,
}  # fmt: skip
DROPS = {"P": (965, 1), "L": (1037, 1), "N": (1109, 2), "S": (1172, 0), "G": (1253, 0)}
DROPS |= {"B": (1334, 0), "R": (1415, 0)}


def label_by_the_book(usi: str, turn: int) -> int:
    """The class of a move in USI notation, counted off the table of the description."""
    x, y = square(usi[2:4], turn)
    if usi[1] == "*":
        offset, first = DROPS[usi[0]]
        return offset + sum(1 for to in range(9 * x + y) if to % 9 >= first)
    fx, fy = square(usi[:2], turn)
    dx, dy = x - fx, y - fy
    if dy == -2 and abs(dx) == 1:
        name = "knight_left" if dx == 1 else "knight_right"
    else:
        vertical = "up" if dy < 0 else "down" if dy > 0 else ""
        sideways = "left" if dx > 0 else "right" if dx < 0 else ""
        name = "_".join(filter(None, (vertical, sideways)))
    name += "+" * usi.endswith("+")
    return OFFSETS[name] + destinations(name).index((x, y))


@cache
def destinations(name: str) -> list[tuple[int, int]]:
    plain = name.removesuffix("+")
    promotes = name.endswith("+")

    def holds(x: int, y: int) -> bool:
        if ("left" in plain and x < 1) or ("right" in plain and x > 7):
            return False
        if plain.startswith("knight"):
            return y <= 2 if promotes else 2 <= y <= 6
        if promotes and plain == "down_left":
            return any(x - k >= 0 and 0 <= y - k <= 2 for k in range(1, 9))
        if promotes and plain == "down_right":
            return any(x + k <= 8 and 0 <= y - k <= 2 for k in range(1, 9))
        if plain.startswith("down"):
            return y >= 1
        if promotes:
            return y <= 2
        return y <= 7 or not plain.startswith("up")

    return [(x, y) for x in range(9) for y in range(9) if holds(x, y)]


def square(text: str, turn: int) -> tuple[int, int]:
    x, y = int(text[0]) - 1, "abcdefghi".index(text[1])
    return (8 - x, 8 - y) if turn else (x, y)


def labels_by_the_book(moves: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Of cshogi's moves: their low 15 bits are from, to and promotion."""
    keys = turn.astype(np.int32) << 15 | moves & 0x7FFF
    table = np.full(1 << 16, -1)
    for key in np.flatnonzero(np.bincount(keys, minlength=1 << 16)).tolist():
        table[key] = label_by_the_book(cshogi.move_to_usi(key & 0x7FFF), key >> 15)
    return table[keys]


def test_labels_are_those_of_the_description_and_no_two_legal_moves_share_one(
    seen: Seen, held
) -> None:
    labels = labels_by_the_book(seen.moves, np.repeat(seen.turn, seen.counts))
    ends = np.cumsum(seen.counts)
    for start in range(0, len(ends), 8192):
        stop = min(start + 8192, len(ends))
        first = ends[start] - seen.counts[start]
        expected = np.zeros((stop - start, 1496), dtype=bool)
        row = np.repeat(np.arange(stop - start), seen.counts[start:stop])
        expected[row, labels[first : ends[stop - 1]]] = True
        assert np.array_equal(bits(held["legal"], start, stop), expected)
        assert np.array_equal(expected.sum(1), seen.counts[start:stop])  # one class, one move
    assert np.array_equal(held["move"].numpy(), labels_by_the_book(seen.played, seen.turn))
    assert np.array_equal(held["policy"].ids.numpy(), held["move"].numpy())


def test_values_and_groups(seen: Seen, held) -> None:
    assert np.array_equal(held["value"].numpy(), seen.value.astype(np.float32))
    assert np.array_equal(held["game"].numpy(), seen.game)


def round_trips(sfens: dict[int, str], held) -> None:
    for row, sfen in sfens.items():
        legal = {cshogi.move_to_usi(move) for move in cshogi.Board(sfen).legal_moves}
        labels = np.flatnonzero(bits(held["legal"], row, row + 1)[0]).tolist()
        assert legal_labels(sfen) == labels
        assert sorted(move_label(sfen, usi) for usi in legal) == labels
        assert {label_move(sfen, label) for label in labels} == legal


def test_labels_lead_back_to_their_moves(seen: Seen, held) -> None:
    """On every 97th position here, on all of them in the long test."""
    round_trips(seen.sfens, held)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", ["selfplay", "tournament"])
def test_all_labels_lead_back_to_their_moves(which: str) -> None:
    file = str(SELFPLAY) if which == "selfplay" else tournament()
    held = Games(file).tensors()
    row = 0
    for _, moves in games_of(file):
        board = cshogi.Board()
        for usi in moves:
            round_trips({row: board.sfen()}, held)
            board.push_usi(usi)
            row += 1
    assert row == len(held["move"])


def test_a_king_in_check_is_found_as_cshogi_finds_it(seen: Seen, held) -> None:
    """The same position, seen by the side that gives the check."""
    board = SWAP[held["board"].numpy()[:, ::-1, ::-1]]
    squares = np.ascontiguousarray(board.transpose(0, 2, 1)).reshape(-1, 81)
    assert np.array_equal(king_hangs(squares), seen.check)
    assert 0.02 < seen.check.mean() < 0.2


def entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def positions(held: Mapping) -> np.ndarray:
    """How often each different position is met."""
    whole = np.concatenate([held["board"].reshape(-1, 81), held["hand"]], axis=1)
    return np.unique(whole.view("V95"), return_counts=True)[1]


def share_of_ones(legal) -> float:
    ones = sum(int(bits(legal, k, k + 8192).sum()) for k in range(0, len(legal), 8192))
    return ones / len(legal) / legal.length


def test_figures_of_the_committed_games() -> None:
    """What constant answers reach, counted from cshogi's lists; 66.6 legal moves are the study's figure."""
    seen, held = read(str(SELFPLAY))
    assert len(held["board"]) == len(seen.counts) == 96_648
    assert len(np.unique(held["game"])) == 908
    assert seen.counts.mean() == pytest.approx(66.6, abs=0.05)
    density = seen.counts.sum() / len(seen.counts) / 1496
    assert share_of_ones(held["legal"]) == pytest.approx(density, rel=1e-12)
    assert 1 - density == pytest.approx(0.9555, abs=5e-5)
    value = held["value"].numpy()
    assert (value >= 0.5).mean() == pytest.approx((seen.value >= 0.5).mean(), rel=1e-12)
    results = dict.fromkeys("BWD", 0)
    drawn = 0
    for result, moves in games_of(str(SELFPLAY)):
        results[result] += 1
        drawn += len(moves) * (result == "D")
    assert results == {"B": 414, "W": 474, "D": 20}
    assert (value == 0.5).mean() == pytest.approx(drawn / 96_648, rel=1e-12)
    counts = positions(held)
    alone = Games(str(SELFPLAY), unique=True).tensors()
    assert len(alone["value"]) == len(counts) < 96_648
    assert counts.sum() == 96_648


def test_values_of_the_tournament() -> None:
    """The study's own figures: of 262 games 261 have 20 plies or more."""
    _, held = read(tournament())
    value = held["value"].double().numpy()
    assert len(value) == 30_353 and len(np.unique(held["game"])) == 261
    for level, share in ((0, 0.4859), (0.5, 0.0236), (1, 0.4904)):
        assert (value == level).mean() == pytest.approx(share, abs=1e-4)
    assert value.mean() == pytest.approx(0.5022, abs=5e-5)
    assert value.var() == pytest.approx(0.2441, abs=5e-5)  # squared error of a constant
    assert (value >= 0.5).mean() == pytest.approx(0.5141, abs=5e-5)
    counts = positions(held)
    assert len(counts) == 28_197
    assert (counts == 1).mean() == pytest.approx(0.982, abs=5e-4)
    assert len(Games(tournament(), unique=True).tensors()["board"]) == 28_197


def test_legal_moves_of_the_tournament() -> None:
    seen, held = read(tournament())
    assert share_of_ones(held["legal"]) == pytest.approx(0.0546, abs=5e-4)
    assert 1 - share_of_ones(held["legal"]) == pytest.approx(0.9454, abs=5e-5)
    counts = seen.counts
    assert counts.mean() == pytest.approx(81.7, abs=0.05)
    assert [np.median(counts), counts.min(), counts.max()] == [71, 1, 457]
    legal = bits(held["legal"])
    often = legal.mean(0)
    assert (often > 0).sum() == 1484
    assert np.maximum(often, 1 - often).mean() == pytest.approx(0.9465, abs=5e-5)
    ranked = np.argsort(-often, kind="stable")[:100]
    right = np.cumsum(legal[:, ranked], axis=1, dtype=np.int16)
    f1 = (2 * right / (np.arange(1, 101) + counts[:, None])).mean(0)
    assert f1.max() == pytest.approx(0.29, abs=5e-3)  # of 70 labels; the study counted 57
    assert f1[56] == pytest.approx(0.29, abs=5e-3)


def test_moves_of_the_tournament() -> None:
    seen, held = read(tournament())
    often = np.bincount(held["move"].numpy(), minlength=1496)
    assert (often > 0).sum() == 1369
    assert often.max() / often.sum() == pytest.approx(0.0207, abs=5e-5)
    assert entropy(often) == pytest.approx(6.19, abs=5e-3)
    assert np.log(seen.counts).mean() == pytest.approx(4.02, abs=5e-3)
    assert (1 / seen.counts).mean() == pytest.approx(0.0475, abs=5e-5)


def test_figures_of_both_sets_together() -> None:
    held = Games([tournament(), str(SELFPLAY)]).tensors()
    assert len(held["board"]) == 127_001 and len(np.unique(held["game"])) == 1_169
    assert share_of_ones(held["legal"]) == pytest.approx(0.0469, abs=5e-5)
    value = held["value"].double().numpy()
    assert (value == 0.5).mean() == pytest.approx(0.021, abs=5e-4)
    assert (value >= 0.5).mean() == pytest.approx(0.5119, abs=5e-5)
    assert value.var() == pytest.approx(0.2448, abs=5e-5)
    assert (positions(held) == 1).mean() == pytest.approx(0.993, abs=5e-4)
    assert entropy(np.bincount(held["move"].numpy())) == pytest.approx(6.29, abs=5e-3)
