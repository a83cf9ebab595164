"""1496 classes of moves: numbered as the study has them, and back to moves with the board."""

from collections.abc import Callable

import pytest

pytest.importorskip("torch")

from expc_runtime.data.shogi import label_move, move_label
from expc_runtime.data.shogi.labels import CATEGORIES, LABELS

START = "lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b - 1"

# Offset, size, and which destinations (x = file - 1, y = rank - 1), from the study's description.
TABLE: dict[str, tuple[int, int, Callable[[int, int], bool]]] = {
    "up": (0, 72, lambda x, y: y <= 7),
    "up_left": (72, 64, lambda x, y: x >= 1 and y <= 7),
    "up_right": (136, 64, lambda x, y: x <= 7 and y <= 7),
    "left": (200, 72, lambda x, y: x >= 1),
    "right": (272, 72, lambda x, y: x <= 7),
    "down": (344, 72, lambda x, y: y >= 1),
    "down_left": (416, 64, lambda x, y: x >= 1 and y >= 1),
    "down_right": (480, 64, lambda x, y: x <= 7 and y >= 1),
    "knight_left": (544, 40, lambda x, y: x >= 1 and 2 <= y <= 6),
    "knight_right": (584, 40, lambda x, y: x <= 7 and 2 <= y <= 6),
    "up+": (624, 27, lambda x, y: y <= 2),
    "up_left+": (651, 24, lambda x, y: x >= 1 and y <= 2),
    "up_right+": (675, 24, lambda x, y: x <= 7 and y <= 2),
    "left+": (699, 24, lambda x, y: x >= 1 and y <= 2),
    "right+": (723, 24, lambda x, y: x <= 7 and y <= 2),
    "down+": (747, 72, lambda x, y: y >= 1),
    "down_left+": (
        *(819, 49),
        lambda x, y: any(x - k >= 0 and 0 <= y - k <= 2 for k in range(1, 9)),
    ),
    "down_right+": (
        *(868, 49),
        lambda x, y: any(x + k <= 8 and 0 <= y - k <= 2 for k in range(1, 9)),
    ),
    "knight_left+": (917, 24, lambda x, y: x >= 1 and y <= 2),
    "knight_right+": (941, 24, lambda x, y: x <= 7 and y <= 2),
    "pawn*": (965, 72, lambda x, y: y >= 1),
    "lance*": (1037, 72, lambda x, y: y >= 1),
    "knight*": (1109, 63, lambda x, y: y >= 2),
    "silver*": (1172, 81, lambda x, y: True),
    "gold*": (1253, 81, lambda x, y: True),
    "bishop*": (1334, 81, lambda x, y: True),
    "rook*": (1415, 81, lambda x, y: True),
}


def test_every_category_stands_where_the_table_has_it() -> None:
    assert LABELS == 1496
    assert [category.name for category in CATEGORIES] == list(TABLE)
    for category in CATEGORIES:
        offset, size, holds = TABLE[category.name]
        listed = [9 * x + y for x in range(9) for y in range(9) if holds(x, y)]
        assert (category.offset, len(category.destinations)) == (offset, size)
        assert list(category.destinations) == listed


DIRECTIONS = {
    "up": (0, -1), "up_left": (1, -1), "up_right": (-1, -1), "left": (1, 0), "right": (-1, 0),
    "down": (0, 1), "down_left": (1, 1), "down_right": (-1, 1),
}  # fmt: skip


def boards(category: str) -> list[tuple[str, str, int]]:
    """A piece alone for each destination and distance: SFEN, move, class."""
    offset, _, holds = TABLE[category]
    squares = [(x, y) for x in range(9) for y in range(9) if holds(x, y)]
    name, promotes = category.removesuffix("+"), category.endswith("+")
    made = []
    for rank, (x, y) in enumerate(squares):
        if category.endswith("*"):
            letter = "PLNSGBR"[list(TABLE).index(category) - 20]
            made.append(
                (f"{'/'.join('9' * 9)} b {letter} 1", f"{letter}*{at(x, y)}", offset + rank)
            )
            continue
        dx, dy = DIRECTIONS.get(name, (1, -2) if name == "knight_left" else (-1, -2))
        knight = name.startswith("knight")
        piece = "N" if knight else "R" if 0 in (dx, dy) else "B"
        for k in range(1, 2 if knight else 9):
            fx, fy = x - k * dx, y - k * dy
            if 0 <= fx < 9 and 0 <= fy < 9 and (not promotes or min(y, fy) <= 2):
                usi = f"{at(fx, fy)}{at(x, y)}{'+' * promotes}"
                made.append((alone(piece, fx, fy), usi, offset + rank))
    return made


def at(x: int, y: int) -> str:
    return f"{x + 1}{'abcdefghi'[y]}"


def alone(piece: str, x: int, y: int) -> str:
    ranks = ["9"] * 9
    ranks[y] = f"{8 - x or ''}{piece}{x or ''}"
    return f"{'/'.join(ranks)} b - 1"


@pytest.mark.parametrize("category", TABLE)
def test_a_piece_alone_makes_every_move_of_a_category(category: str) -> None:
    """All distances to a destination are one class, and the board tells which was meant."""
    for sfen, usi, label in boards(category):
        assert move_label(sfen, usi) == label
        assert label_move(sfen, label) == usi


def test_white_moves_as_black_would_on_a_turned_board() -> None:
    after = "lnsgkgsnl/1r5b1/ppppppppp/9/9/2P6/PP1PPPPPP/1B5R1/LNSGKGSNL w - 2"
    assert move_label(START, "7g7f") == 6 * 8 + 5  # up, to the sixth rank of the seventh file
    assert move_label(after, "3c3d") == move_label(START, "7g7f")
    assert move_label(after, "8b3b") == move_label(START, "2h7h") == 200 + 5 * 9 + 7
    assert label_move(after, move_label(after, "3c3d")) == "3c3d"


LATE = "4k4/4+P4/9/2p1S4/4R4/4l4/1N7/1P7/4K4 b GN2p 1"


@pytest.mark.parametrize(
    ("sfen", "usi", "says"),
    [
        (START, "7g7f ", "not a move in USI notation"),
        (START, "0g7f", "not a move in USI notation"),
        (START, "7g7g", "not a move in USI notation"),
        (START, "resign", "not a move in USI notation"),
        (START, "K*5e", "not a move in USI notation"),
        (START, "7f7e", "Black is to move and has no piece on 7f"),
        (START, "3c3d", "Black is to move and has no piece on 3c"),
        (START, "7g7e", "a pawn does not move so"),
        (START, "7g6f", "a pawn does not move so"),
        (START, "8i6g", "a knight does not move so"),
        (START, "7g7f+", "the pawn cannot promote there"),
        (START, "2h8h", "Black's own piece is on 8h"),
        (START, "8h6f", "the bishop's way is not free"),
        (START, "P*5e", "Black has no pawn in hand"),
        (LATE, "5b4a+", "the promoted pawn cannot promote there"),
        (LATE, "5b5a", "it takes the king"),
        (LATE, "5e5c", "the rook's way is not free"),
        (LATE, "5d5c=", "not a move in USI notation"),
        (LATE, "G*5b", "5b is not empty"),
        (LATE, "N*1b", "a knight could never move from 1b"),
        (LATE, "P*5g", "Black has no pawn in hand"),
        (LATE.replace("GN2p", "P"), "P*8e", "Black has a pawn in file 8 already"),
        (LATE.replace("GN2p", "P"), "P*1a", "a pawn could never move from 1a"),
        (LATE.replace(" b ", " w "), "P*7e", "White has a pawn in file 7 already"),
        ("4k4/P8/1N7/9/9/9/9/9/4K4 b - 1", "9b9a", "the pawn must promote there"),
        ("4k4/P8/1N7/9/9/9/9/9/4K4 b - 1", "8c7a", "the knight must promote there"),
        ("4k4/9/9/9/9/9/9/p8/4K4 w - 1", "9h9i", "the pawn must promote there"),
    ],
)
def test_what_no_piece_can_do_has_no_class(sfen: str, usi: str, says: str) -> None:
    with pytest.raises(ValueError, match="illegal move") as told:
        move_label(sfen, usi)
    assert says in str(told.value)


@pytest.mark.parametrize("label", [-1, 1496, 544, 965])
def test_a_class_that_no_piece_can_play_has_no_move(label: int) -> None:
    with pytest.raises(ValueError, match="illegal move class"):
        label_move(START, label)


def test_of_two_pieces_in_a_line_the_nearer_moves() -> None:
    sfen = "4k4/9/9/9/9/9/4R4/4L4/4K4 b - 1"
    assert label_move(sfen, move_label(sfen, "5g5d")) == "5g5d"
    with pytest.raises(ValueError, match="way is not free"):
        move_label(sfen, "5h5d")


def test_a_pawn_dropped_has_no_file_of_another_kind_or_colour() -> None:
    """A promoted pawn is no pawn, and the opponent's does not count."""
    sfen = LATE.replace("GN2p", "P")
    assert move_label(sfen, "P*5c") == 965 + 4 * 8 + 1
    assert move_label(sfen, "P*7g") == 965 + 6 * 8 + 5
