"""Visual Pin Pad as a finite automaton: the six layouts, and the tables that play them.

All that decides what happens next is the player's cell, the pad touched last, and how far the
touched pads have come towards a target. The three are one number, so a step is one look-up.

Rules: ``embodied/envs/pinpad.py`` of danijar/director, the same in danijar/dreamerv3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = [
    "ACTIONS",
    "HEIGHT",
    "LAYOUTS",
    "MOVES",
    "SPAWNS",
    "WIDTH",
    "Automaton",
    "Progress",
    "automaton",
    "in_order",
    "listed",
    "rows",
]

WIDTH, HEIGHT = 16, 14
FREE_X, FREE_Y = WIDTH - 2, HEIGHT - 2
SPAWNS = FREE_X * FREE_Y  # no layout has an inner wall
MOVES = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # stay, down, up, right, left
ACTIONS = len(MOVES)

Rectangle = tuple[int, int, int, int]  # x from, x to, y from, y to; both ends belong to it

_SEVEN: tuple[tuple[Rectangle, ...], ...] = (
    ((1, 3, 1, 2), (1, 2, 3, 3)),
    ((13, 14, 10, 10), (12, 14, 11, 12)),
    ((1, 2, 5, 8),),
    ((12, 14, 1, 2), (13, 14, 3, 3)),
    ((13, 14, 5, 8),),
    ((1, 2, 10, 10), (1, 3, 11, 12)),
    ((6, 9, 11, 12),),
)

# Layout -> the rectangles of pad 1, of pad 2, ...
LAYOUTS: dict[str, tuple[tuple[Rectangle, ...], ...]] = {
    "three": (((1, 4, 1, 4),), ((6, 9, 9, 12),), ((11, 14, 1, 4),)),
    "four": (((1, 4, 1, 4),), ((11, 14, 9, 12),), ((1, 4, 9, 12),), ((11, 14, 1, 4),)),
    "five": (
        ((1, 3, 2, 5),),
        ((11, 14, 10, 12),),
        ((1, 3, 8, 11),),
        ((11, 14, 1, 3),),
        ((12, 14, 5, 8),),
    ),
    "six": (
        ((1, 3, 1, 3),),
        ((12, 14, 10, 12),),
        ((1, 2, 5, 8),),
        ((1, 3, 10, 12),),
        ((12, 14, 1, 3),),
        ((13, 14, 5, 8),),
    ),
    "seven": _SEVEN,
    "eight": (*_SEVEN, ((6, 9, 1, 2),)),
}


def rows(layout: str) -> tuple[str, ...]:
    """The layout as 14 rows of 16 characters: ``#`` a wall, a space the floor, digits the pads."""
    wall = "#" * WIDTH
    canvas = [list(wall), *(list(f"#{' ' * FREE_X}#") for _ in range(FREE_Y)), list(wall)]
    for pad, rectangles in enumerate(LAYOUTS[layout], start=1):
        for left, right, top, bottom in rectangles:
            for row in canvas[top : bottom + 1]:
                row[left : right + 1] = str(pad) * (right + 1 - left)
    return tuple("".join(row) for row in canvas)


@dataclass(frozen=True)
class Progress:
    """How the list of touched pads stands to its targets.

    ``after`` (P, N + 1) int64: the progress after each pad; column 0, no pad, changes nothing.
    ``pays`` (P,) bool. Progress 0 is the empty list, and never pays.
    """

    after: Tensor
    pays: Tensor


def in_order(pads: int) -> Progress:
    """The last ``pads`` touched pads are 1, 2, ..., ``pads``; progress counts how many are."""
    after = torch.zeros(pads + 1, pads + 1, dtype=torch.int64)
    after[:, 1] = 1
    for progress in range(pads):
        after[progress, progress + 1] = progress + 1
    after[:, 0] = torch.arange(pads + 1)
    return Progress(after, torch.arange(pads + 1) == pads)


def listed(targets: Sequence[tuple[int, ...]], pads: int) -> Progress:
    """All pads touched so far are one of ``targets``; progress is a node of their prefix tree."""
    prefixes = {target[:n] for target in targets for n in range(len(target) + 1)} | {()}
    node = {prefix: n for n, prefix in enumerate(sorted(prefixes, key=lambda p: (len(p), p)))}
    lost = len(node)  # no target begins like this, and nothing is ever forgotten
    after = torch.full((lost + 1, pads + 1), lost)
    for prefix, n in node.items():
        for pad in range(1, pads + 1):
            after[n, pad] = node.get((*prefix, pad), lost)
    after[:, 0] = torch.arange(lost + 1)
    pays = torch.zeros(lost + 1, dtype=torch.bool)
    pays[[node[target] for target in targets]] = True
    return Progress(after, pays)


@dataclass(frozen=True)
class Automaton:
    """Tables over the states, S = 168 cells x (N + 1) last pads x P progresses, in this order.

    ``step`` (5 * S, 2) int64: row action * S + state -> the next state, and the pad that the step
    adds to the list of touched pads (0: none). ``cell`` (S,) int64 in the order of the spawns:
    by x, then by y. ``under`` (S,) int64: the pad under the player, 0 for the floor.
    ``pays`` (S,) bool. ``first`` (168,) int64: the state after a spawn in each cell.
    """

    step: Tensor
    cell: Tensor
    under: Tensor
    pays: Tensor
    first: Tensor

    @property
    def states(self) -> int:
        return len(self.cell)

    def to(self, device: torch.device) -> "Automaton":
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return replace(self, **moved)


def automaton(layout: str, progress: Progress) -> Automaton:
    """The tables of one layout and its targets, on the CPU."""
    lasts, stages = len(LAYOUTS[layout]) + 1, len(progress.pays)
    under, goal, tile = _moves(layout)  # (C,), (5, C), (5, C)
    cell, last, stage = torch.meshgrid(
        torch.arange(SPAWNS), torch.arange(lasts), torch.arange(stages), indexing="ij"
    )
    touched = tile[:, cell]  # (5, C, N + 1, P)
    added = touched.where(touched != last, 0)
    then = added.where(added > 0, last)
    state = (goal[:, cell] * lasts + then) * stages + progress.after[stage, added]
    return Automaton(
        step=torch.stack([state.flatten(), added.flatten()], 1),
        cell=cell.flatten(),
        under=under[cell].flatten(),
        pays=progress.pays[stage].flatten(),
        first=torch.arange(SPAWNS) * lasts * stages,
    )


def _moves(layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """The pad under each cell; for each action and cell, the cell come to and the pad touched."""
    text = rows(layout)
    wall = torch.tensor([[tile == "#" for tile in row] for row in text])
    pad = torch.tensor([[int(tile) if tile.isdigit() else 0 for tile in row] for row in text])
    index = torch.arange(SPAWNS)
    x, y = 1 + index // FREE_Y, 1 + index % FREE_Y
    dx, dy = torch.tensor(MOVES).T[:, :, None]
    to_x, to_y = x + dx, y + dy
    goal = ((to_x - 1) * FREE_Y + to_y - 1).where(~wall[to_y, to_x], index)
    return pad[y, x], goal, pad[to_y, to_x]  # a wall is no pad: a bump touches nothing
