"""Games as rows: who won, whose turn, what is left out, and what a broken file is told."""

import lzma
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from expc_runtime.data.feed import Feed
from expc_runtime.data.shogi import Games, encode, move_label
from expc_runtime.errors import MissingInput

ROOT = Path(__file__).parents[2]
SELFPLAY = ROOT / "specs" / "data" / "selfplay.tsv.xz"

OPENING = "7g7f 3c3d 8h2b+ 3a2b"
BOARDS = [
    "lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b - 1",
    "lnsgkgsnl/1r5b1/ppppppppp/9/9/2P6/PP1PPPPPP/1B5R1/LNSGKGSNL w - 2",
    "lnsgkgsnl/1r5b1/pppppp1pp/6p2/9/2P6/PP1PPPPPP/1B5R1/LNSGKGSNL b - 3",
    "lnsgkgsnl/1r5+B1/pppppp1pp/6p2/9/2P6/PP1PPPPPP/7R1/LNSGKGSNL w B 4",
]


def line(name: str = "one", result: str = "B", moves: str = OPENING) -> str:
    return f"{name}\t{result}\tTORYO\tme\tyou\t{moves}\n"


@pytest.fixture
def write(tmp_path: Path):
    def writes(*lines: str, name: str = "games.tsv") -> str:
        text = "".join(lines).encode()
        path = tmp_path / name
        path.write_bytes(lzma.compress(text) if name.endswith(".xz") else text)
        return str(path)

    return writes


@pytest.mark.parametrize(
    ("result", "values"),
    [("B", [1.0, 0.0, 1.0, 0.0]), ("W", [0.0, 1.0, 0.0, 1.0]), ("D", [0.5, 0.5, 0.5, 0.5])],
)
def test_a_position_is_worth_what_the_game_came_to_for_the_side_to_move(
    write, result: str, values: list[float]
) -> None:
    """A study lost four months to a code of results that changed its meaning."""
    held = Games(write(line(result=result)), min_plies=1).tensors()
    assert held["value"].tolist() == values
    assert held["value"].dtype == torch.float32


def test_a_row_holds_the_position_before_its_move(write) -> None:
    held = Games(write(line(), name="games.tsv.xz"), min_plies=1).tensors()
    for row, (sfen, usi) in enumerate(zip(BOARDS, OPENING.split(), strict=True)):
        board, hand = encode(sfen)
        assert (held["board"][row].numpy() == board).all()
        assert (held["hand"][row].numpy() == hand).all()
        assert int(held["move"][row]) == move_label(sfen, usi)
    assert held["move"].dtype == held["game"].dtype == torch.int64
    policy = held["policy"].index_select(0, torch.arange(4))
    assert policy.equal(torch.nn.functional.one_hot(held["move"], 1496).float())


def test_short_games_are_left_out_and_the_others_counted_on(write) -> None:
    file = write(line("a"), line("b", "W", "7g7f"), line("c", "D", "2g2f 8c8d"))
    assert Games(file, min_plies=2).tensors()["game"].tolist() == [0] * 4 + [1] * 2
    assert Games(file, min_plies=1).tensors()["game"].tolist() == [0] * 4 + [1] + [2] * 2
    with pytest.raises(MissingInput, match="no game of 20 plies or more"):
        Games(file).tensors()


def test_several_files_are_one_set(write) -> None:
    files = [write(line("a")), write("\ufeff" + line("b", "W"), "\n", name="more.tsv.xz")]
    held = Games(files, min_plies=1).tensors()
    assert held["game"].tolist() == [0] * 4 + [1] * 4
    assert held["value"].tolist() == [1, 0, 1, 0, 0, 1, 0, 1]


def test_unique_keeps_the_first_of_equal_positions(write) -> None:
    """The mover's view is what counts: the same position from the other side is no other."""
    file = write(
        line("a", "B", "7g7f 3c3d 2g2f"),
        line("b", "W", "2g2f 3c3d 7g7f"),  # begins where all do
        line("c", "W", "5g5f 5c5d 9g9f"),
        # Black's king walks three steps, White's two: in the end White is where Black was in game c.
        line("d", "D", "5i4h 5c5d 4h5h 5a5b 5h5i 5b5a 5g5f 9c9d"),
    )
    held = Games(file, min_plies=1, unique=True).tensors()
    assert held["game"].tolist() == [0] * 3 + [1] * 2 + [2] * 2 + [3] * 5
    assert held["value"].tolist() == [1, 0, 1, 1, 0, 1, 0, *[0.5] * 5]
    assert len(held["board"]) == len(held["hand"]) == len(held["policy"]) == 12


def test_legal_moves_are_asked_of_cshogi_alone_and_only_when_wanted(
    write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cshogi", None)
    held = Games(write(line()), min_plies=1).tensors()
    assert list(held) == ["board", "hand", "move", "policy", "legal", "value", "game"]
    assert all(len(held[name]) == 4 for name in held if name != "legal")
    with pytest.raises(MissingInput, match=r"pip install 'expc\[shogi\]'"):
        held["legal"]
    with pytest.raises(KeyError):
        held["lines"]


def test_a_feed_reads_the_columns_it_names(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cshogi", None)
    file = write(*(line(str(n)) for n in range(6)))
    feed = Feed(
        Games(file, min_plies=1), columns=("board", "hand", "policy", "value"), batch=5, val=0.25
    )
    feed.setup(torch.device("cpu"), seed=0)
    board, hand, policy, value = next(iter(next(feed.chunks(0))))
    assert (board.shape, board.dtype) == ((5, 9, 9), torch.uint8)
    assert (hand.shape, hand.dtype) == ((5, 14), torch.uint8)
    assert policy.shape == (5, 1496) and policy.sum(1).tolist() == [1] * 5
    assert value.shape == (5,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("one\tB\tTORYO\t7g7f\n", "line 1: 4 tab-separated fields, not 6"),
        (line() + line("two", result="1"), "line 2: result '1'; it is B (Black won)"),
        (line("one", result="b"), "line 1: result 'b'"),
        (line() + line(), "line 2: game one stands at"),
        (line(moves="7g7f xyz"), "line 1, game one, ply 2: illegal move 'xyz': not a move in USI"),
        (line(moves="7g7f 7f7e"), "game one, ply 2: illegal move '7f7e': White is to move"),
        (line(moves="7g7f 3c3d 2h2d"), "ply 3: illegal move '2h2d': the rook's way is not free"),
        (line(moves="7g7f 3c3d 8h2b+ P*5e"), "ply 4: illegal move 'P*5e': White has no pawn"),
        (
            line("x") + line("y", moves="7g7f 3c3d 8h3c+ 1c1d 9g9f"),
            "line 2, game y, ply 4: illegal move '1c1d': the mover's king is left in check",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_told_where_it_stands(write, text: str, says: str) -> None:
    file = write(text)
    with pytest.raises(MissingInput) as told:
        Games(file, min_plies=1).tensors()
    assert str(told.value).startswith(file)
    assert says in str(told.value)


def test_files_that_cannot_be_read(write, tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="no such file"):
        Games(str(tmp_path / "none.tsv")).tensors()
    broken = tmp_path / "broken.tsv.xz"
    broken.write_bytes(SELFPLAY.read_bytes()[:-100])
    with pytest.raises(MissingInput, match=r"broken\.tsv\.xz: "):
        Games(str(broken)).tensors()
    broken.write_text("not compressed")
    with pytest.raises(MissingInput, match=r"broken\.tsv\.xz: "):
        Games(str(broken)).tensors()
    binary = tmp_path / "binary.tsv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MissingInput, match=r"binary\.tsv: "):
        Games(str(binary)).tensors()


def test_mate_by_a_dropped_pawn_is_seen_with_the_legal_moves(write) -> None:
    """The one rule that is left to cshogi: the rest is seen without it."""
    pytest.importorskip("cshogi")
    lines = lzma.decompress(SELFPLAY.read_bytes()).decode().splitlines()
    (game,) = (each.split("\t") for each in lines if each.startswith("sp0001-0031\t"))
    moves = [*game[5].split()[:108], "P*5e"]
    held = Games(write(line(moves=" ".join(moves)))).tensors()
    assert len(held["board"]) == 109
    with pytest.raises(MissingInput, match=r"ply 109: illegal move 'P\*5e'"):
        held["legal"]
