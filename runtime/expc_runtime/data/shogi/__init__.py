"""Shogi: positions as a network reads them, moves as classes, games and the rules as rows."""

from expc_runtime.data.shogi.board import encode
from expc_runtime.data.shogi.games import Games
from expc_runtime.data.shogi.labels import label_move, move_label
from expc_runtime.data.shogi.legal import legal_labels
from expc_runtime.data.shogi.squares import ReachableSquares

__all__ = ["Games", "ReachableSquares", "encode", "label_move", "legal_labels", "move_label"]
