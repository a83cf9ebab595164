"""Every square that one piece can reach: the rules' first lesson, 1,105 boards, all there are."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from expc_runtime.data.shogi.board import DROPPED, REACH, stuck

__all__ = ["ReachableSquares"]


class ReachableSquares:
    """One piece of the mover alone on an empty board, or one in hand: where can it go?

    Columns: ``board`` (1105, 9, 9) uint8, ``hand`` (1105, 14) uint8, both as `encode` gives them,
    and ``reachable`` (1105, 81) float32 in {0, 1}, by square ``9 * x + y``.

    The first 1,098 records have the piece on each square that it could stand on (pawns and lances
    not on the last rank, knights not on the last two), the last 7 have it in hand, to be dropped
    where it could move from. Neither a second pawn in a file nor promotion is considered.
    """

    columns: ClassVar[dict[str, str]] = {
        "board": "features",
        "hand": "features",
        "reachable": "prob",
    }

    def tensors(self) -> dict[str, Tensor]:
        rank = np.arange(81) % 9
        stands = [
            (kind, sq) for kind in range(1, 15) for sq in range(81) if rank[sq] >= stuck(kind)
        ]
        kinds, squares = np.array(stands).T
        board = np.zeros((len(stands) + DROPPED, 9, 9), dtype=np.uint8)
        board[np.arange(len(stands)), squares % 9, squares // 9] = kinds
        hand = np.zeros((len(board), 2 * DROPPED), dtype=np.uint8)
        hand[np.arange(len(stands), len(board)), np.arange(DROPPED)] = 1
        drops = [rank >= stuck(kind) for kind in range(1, DROPPED + 1)]
        reachable = np.concatenate([REACH[kinds, squares], drops])
        return {
            "board": torch.from_numpy(board),
            "hand": torch.from_numpy(hand),
            "reachable": torch.from_numpy(reachable.astype(np.float32)),
        }
