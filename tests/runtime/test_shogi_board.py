"""Positions as a network reads them, and where single pieces go."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from expc_runtime.data.shogi import ReachableSquares, encode

START = "lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b - 1"


def placed(board: np.ndarray) -> dict[tuple[int, int], int]:
    return {(int(y), int(x)): int(board[y, x]) for y, x in np.argwhere(board)}


def test_the_initial_position() -> None:
    """Rows are ranks, columns files from 1: the rook of the side to move is on 2h, its bishop on 8h."""
    board, hand = encode(START)
    assert board.dtype == hand.dtype == np.uint8
    assert board.shape == (9, 9) and hand.tolist() == [0] * 14
    assert board[8].tolist() == [2, 3, 4, 5, 8, 5, 4, 3, 2]
    assert board[7].tolist() == [0, 7, 0, 0, 0, 0, 0, 6, 0]
    assert board[6].tolist() == [1] * 9
    assert not board[3:6].any()
    assert board[2].tolist() == [15] * 9
    assert board[1].tolist() == [0, 20, 0, 0, 0, 0, 0, 21, 0]
    assert board[0].tolist() == [16, 17, 18, 19, 22, 19, 18, 17, 16]


def test_white_sees_the_board_turned_and_its_own_pieces_as_the_first_fourteen() -> None:
    board, hand = encode("3g1k3/1+B2+P+L3/9/4+N4/2+r1+s4/9/3+p+b4/9/4K1R2 w 2P3l2Ng4p 120")
    assert placed(board) == {
        (8, 3): 5,  # gold, 6a
        (8, 5): 8,  # king, 4a
        (7, 1): 27,  # Black's horse, 8b
        (7, 4): 23,  # Black's promoted pawn, 5b
        (7, 5): 24,  # Black's promoted lance, 4b
        (5, 4): 25,  # Black's promoted knight, 5d
        (4, 2): 14,  # dragon, 7e
        (4, 4): 12,  # promoted silver, 5e
        (2, 3): 9,  # promoted pawn, 6g
        (2, 4): 13,  # horse, 5g
        (0, 4): 22,  # Black's king, 5i
        (0, 6): 21,  # Black's rook, 3i
    }
    assert hand.tolist() == [4, 3, 0, 0, 1, 0, 0, 2, 0, 2, 0, 0, 0, 0]


def test_a_position_with_colours_changed_looks_the_same() -> None:
    board, hand = encode("4k4/9/4p4/9/9/9/9/1B7/4K4 b RGr18p 1")
    turned, held = encode("4k4/7b1/9/9/9/9/4P4/9/4K4 w rgR18P 1")
    assert (board == turned).all() and (hand == held).all()


def test_the_move_number_may_be_left_out() -> None:
    assert (encode(START[:-2])[0] == encode(START)[0]).all()
    assert (encode(f"sfen {START}")[0] == encode(START)[0]).all()


@pytest.mark.parametrize(
    ("sfen", "says"),
    [
        ("", "b or w"),
        ("9/9/9/9/9/9/9/9/9", "b or w"),
        ("9/9/9/9/9/9/9/9/9 x - 1", "b or w"),
        ("9/9/9/9/9/9/9/9 b - 1", "8 ranks, not 9"),
        ("9/9/9/9/9/9/9/9/8 b - 1", "rank 9, '8', is not 9 squares"),
        ("9/9/9/9/9/9/9/9/PPPPPPPPPP b - 1", "is not 9 squares"),
        ("9/9/9/9/9/9/9/9/8+ b - 1", "is not 9 squares"),
        ("9/9/9/9/9/9/9/9/8x b - 1", "no piece x"),
        ("9/9/9/9/9/9/9/9/8+G b - 1", "no piece +G"),
        ("9/9/9/9/9/9/9/9/9 b K 1", "hands 'K'"),
        ("9/9/9/9/9/9/9/9/9 b 2 1", "hands '2'"),
        ("9/9/9/9/9/9/9/9/9 b 19P 1", "hands '19P'"),
        ("9/9/9/9/9/9/9/9/9 b 10P9P 1", "hands '10P9P'"),
        ("9/9/9/9/9/9/9/9/9 b 3R 1", "hands '3R'"),
    ],
)
def test_what_is_not_sfen_is_told(sfen: str, says: str) -> None:
    with pytest.raises(ValueError, match="not SFEN") as told:
        encode(sfen)
    assert says in str(told.value)


class TestReachableSquares:
    """Counts and shares are those of the study's own set, of the same 1,105 records."""

    held = ReachableSquares().tensors()

    def test_records(self) -> None:
        board, hand, reachable = (self.held[name] for name in ("board", "hand", "reachable"))
        assert board.shape == (1105, 9, 9) and board.dtype == torch.uint8
        assert hand.shape == (1105, 14) and hand.dtype == torch.uint8
        assert reachable.shape == (1105, 81) and reachable.dtype == torch.float32
        kinds = torch.bincount(board.view(1105, 81).sum(1, dtype=torch.int64))
        assert kinds.tolist() == [7, 72, 72, 63, *[81] * 5, *[81] * 6]
        assert board.view(1105, 81).count_nonzero(1).tolist() == [1] * 1098 + [0] * 7
        assert hand[1098:, :7].equal(torch.eye(7, dtype=torch.uint8))
        assert not hand[:1098].any() and not hand[:, 7:].any()

    def test_a_constant_no_is_right_nine_times_in_ten(self) -> None:
        reachable = self.held["reachable"]
        assert float(reachable.mean()) == pytest.approx(0.0979, abs=5e-5)
        assert float((reachable == 0).float().mean()) == pytest.approx(0.9021, abs=5e-5)
        assert bool(reachable.any(1).all())
        whole = torch.cat([self.held["board"].view(1105, 81), self.held["hand"]], 1)
        assert len(torch.unique(whole, dim=0)) == 1105

    def test_drops(self) -> None:
        assert self.held["reachable"][1098:].sum(1).tolist() == [72, 72, 63, 81, 81, 81, 81]
        ranks = self.held["reachable"][1098:].view(7, 9, 9).all(1)  # of every file
        assert ranks[0].tolist() == [False] + [True] * 8
        assert ranks[2].tolist() == [False] * 2 + [True] * 7

    @pytest.mark.parametrize(
        ("kind", "goes"),
        [
            (1, "5d"),
            (2, "5a 5b 5c 5d"),
            (3, "4c 6c"),
            (4, "4d 5d 6d 4f 6f"),
            (5, "4d 5d 6d 4e 6e 5f"),
            (6, "1a 2b 3c 4d 6f 7g 8h 9i 9a 8b 7c 6d 4f 3g 2h 1i"),
            (7, "1e 2e 3e 4e 6e 7e 8e 9e 5a 5b 5c 5d 5f 5g 5h 5i"),
            (8, "4d 5d 6d 4e 6e 4f 5f 6f"),
            (12, "4d 5d 6d 4e 6e 5f"),
            (13, "1a 2b 3c 4d 6f 7g 8h 9i 9a 8b 7c 6d 4f 3g 2h 1i 5d 4e 6e 5f"),
            (14, "1e 2e 3e 4e 6e 7e 8e 9e 5a 5b 5c 5d 5f 5g 5h 5i 4d 6d 4f 6f"),
        ],
    )
    def test_a_piece_on_5e(self, kind: int, goes: str) -> None:
        (row,) = (self.held["board"][:, 4, 4] == kind).nonzero()[0].tolist()
        squares = self.held["reachable"][row].nonzero().view(-1).tolist()
        assert {f"{sq // 9 + 1}{'abcdefghi'[sq % 9]}" for sq in squares} == set(goes.split())
