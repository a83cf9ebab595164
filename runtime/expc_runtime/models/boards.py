"""Shogi boards as networks read them: tokens of 81 cells, counts of pieces in hand.

A board is one integer of 0..28 for each cell, [rank][file], seen by the side to move: 0 is empty,
1..14 are its own pieces (pawn, lance, knight, silver, gold, bishop, rook, king, then the promoted
pawn, lance, knight, silver, bishop, rook), 15..28 the opponent's. A hand is 14 counts, pawn, lance,
knight, silver, gold, bishop, rook, the mover's seven first.
"""

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["CELLS", "HAND", "PLANES", "BoardTokens", "cells_of", "hand_of", "planes"]

SIDE = 9
CELLS = SIDE * SIDE
HAND = 14
TOKENS = 256  # rows of the embedding; 29 are used
PIECES = 28
MOST = (18, 4, 4, 4, 4, 2, 2) * 2  # of each kind in hand
PLANES = PIECES + sum(MOST)


def cells_of(board: Tensor) -> Tensor:
    """A board (B, 9, 9) or (B, 1, 9, 9) of integers -> (B, 81) int32, rank by rank.

    TypeError for any other dtype, as a board that someone scaled or normalised holds no tokens;
    ValueError for any other shape.
    """
    if board.is_floating_point() or board.is_complex() or board.dtype is torch.bool:
        raise TypeError(
            f"a board holds piece numbers 0 to 28 as integers (uint8), not {board.dtype}: "
            "do not scale or normalise it"
        )
    shape = board.shape
    if shape[-2:] != (SIDE, SIDE) or not (len(shape) == 3 or (len(shape) == 4 and shape[1] == 1)):
        raise ValueError(f"a board is (B, 9, 9) or (B, 1, 9, 9), not {tuple(shape)}")
    return board.flatten(1).int()


def hand_of(hand: Tensor | None, like: Tensor) -> Tensor:
    """Counts (B, 14) as float32, not scaled; without a hand, zeros for the rows of ``like``.

    ValueError for a hand of another shape.
    """
    if hand is None:
        rows = like.shape[0]  # `len` would be a constant in ONNX
        return torch.zeros(rows, HAND, device=like.device)
    if hand.shape != (len(like), HAND):
        raise ValueError(
            f"a hand is ({len(like)}, {HAND}), counts of 7 kinds for both sides, "
            f"not {tuple(hand.shape)}"
        )
    return hand.float()


def planes(board: Tensor, hand: Tensor | None = None) -> Tensor:
    """The 104 binary planes of a position, uint8 (B, 104, 9, 9), made where the board is.

    28 planes of pieces, in the order of their numbers; then for each count of the hand as many as
    there can be of its kind (18, 4, 4, 4, 4, 2, 2), of which the first `count` are all ones.
    """
    cells, counts = cells_of(board), hand_of(hand, board)
    kinds = torch.arange(1, PIECES + 1, device=cells.device)
    pieces = cells.view(-1, 1, SIDE, SIDE) == kinds.view(-1, 1, 1)
    held = in_hand(counts)[..., None, None].expand(-1, -1, SIDE, SIDE)
    return torch.cat([pieces, held], dim=1).to(torch.uint8)


def in_hand(counts: Tensor) -> Tensor:
    """Counts (B, 14) in thermometer code: bool (B, 76), one entry for each piece there can be."""
    ranks = torch.cat([torch.arange(most) for most in MOST]).to(counts.device)
    kinds = torch.repeat_interleave(torch.arange(HAND), torch.tensor(MOST)).to(counts.device)
    return counts[:, kinds] > ranks


class BoardTokens(nn.Module):
    """Board and hand -> `features` numbers for each of the 81 cells.

    The number of a cell picks a row of a learned table of 256; the 14 counts of the hand go through
    one linear layer. Each gives half of the features. The two are joined in one of two ways.
    """

    def __init__(self, embedding: int = 32) -> None:
        super().__init__()
        self.features = 2 * embedding
        self.pieces = nn.Embedding(TOKENS, embedding)
        self.hand = nn.Linear(HAND, embedding)

    def everywhere(self, board: Tensor, hand: Tensor | None) -> Tensor:
        """(B, 81, features): every cell is told the hand."""
        pieces, held = self._both(board, hand)
        return torch.cat([pieces, held[:, None].expand(-1, CELLS, -1)], dim=-1)

    def in_corner(self, board: Tensor, hand: Tensor | None) -> Tensor:
        """(B, 81, features): the first cell is told the hand, the others zeros."""
        pieces, held = self._both(board, hand)
        return torch.cat([pieces, nn.functional.pad(held[:, None], (0, 0, 0, CELLS - 1))], dim=-1)

    def _both(self, board: Tensor, hand: Tensor | None) -> tuple[Tensor, Tensor]:
        pieces = cast(Tensor, self.pieces(cells_of(board)))
        return pieces, cast(Tensor, self.hand(hand_of(hand, board)))
