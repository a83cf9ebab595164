"""Visual Pin Pad: a batch of small games in which pads are to be touched in order.

Rules, images and their checks: ``embodied/envs/pinpad.py`` of danijar/director (the same in
danijar/dreamerv3), and its port nomutin/pinpad. Nothing here draws a random number: where a player
appears is handed in, so a CPU and a GPU play the same game.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from expc_runtime.envs.automaton import (
    ACTIONS,
    FREE_Y,
    HEIGHT,
    LAYOUTS,
    SPAWNS,
    WIDTH,
    automaton,
    in_order,
    listed,
    rows,
)

__all__ = ["PinPad", "Variant", "paint", "paint_unit"]

Variant = Literal["reference", "port"]
Obs = dict[str, Tensor]

GRID, SCALE = 16, 4  # cells a side, the two rows of the HUD among them; pixels a cell
IMAGE = (GRID * SCALE, GRID * SCALE, 3)
HUD = HEIGHT  # the row that shows the touched pads

COLOURS = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
    (255, 0, 255),
    (0, 255, 255),
    (128, 0, 128),
    (0, 128, 128),
)
PADS = len(COLOURS)
# Palette: 0 wall and HUD, 1..8 the pads, 9..16 the pads dimmed, then these three.
FLOOR, GREEN, PLAYER = 2 * PADS + 1, 2 * PADS + 2, 2 * PADS + 3
PALETTE = (
    (192, 192, 192),
    *COLOURS,
    *(tuple((10 * c + 90 * 255) // 100 for c in colour) for colour in COLOURS),
    (255, 255, 255),
    (223, 255, 223),
    (0, 0, 0),
)


@dataclass(frozen=True)
class _Rules:
    """What the variants differ in, beside their targets."""

    reward: float
    countdown: int  # steps from a reward to the respawn; 0: never
    shown: int  # touched pads in the HUD


class PinPad:
    """``batch`` games of Visual Pin Pad; all tensors on one device, no host sync in a step.

    Args:
        layout: three, four, five, six, seven or eight: the number of pads.
        batch: number of games, B.
        time_limit: steps of an episode; the reset is not counted. None: episodes never end.
        variant: ``reference`` pays 10 when the last N touched pads are 1, 2, ..., N (N = number
            of pads), is green for 10 frames, then respawns the player. ``port`` pays 1.0 on every
            step in which all pads touched since the reset are one of ``targets``, never respawns,
            and shows the last 7 pads; it has no limit of its own: ``time_limit`` is that of the
            trainer's wrapper around it.
        targets: of the port: lists of pads, as ``(1, 2, 3)`` or ``"123"``. None or empty, as in
            every public version of the port: it can never pay (``can_pay`` is False).

    Attributes after each step, all of the current frame:
        is_first, is_last, is_terminal: (B,) bool; a pin pad never terminates.
        sequence: (B, N) int64, the last N touched pads, oldest first, 0 = empty. Port: (B, 7).
        countdown: (B,) int64, steps to the respawn, 0 = idle. steps: (B,) int64 since the reset.
        state: (B,) int64, the state of ``tables``.

    The step after ``is_last`` is a reset: its action is ignored, its reward 0.
    Raises ValueError for a setting, a shape or a dtype that can't be.
    """

    name: ClassVar[str] = "pinpad"
    actions: ClassVar[int] = ACTIONS
    spawns: ClassVar[int] = SPAWNS
    image_shape: ClassVar[tuple[int, int, int]] = IMAGE
    EVENTS: ClassVar[tuple[str, ...]] = ("reward", "pad_enter", "pad_leave", "respawn")

    # What a game is between two steps; `state_dict` holds these.
    _HELD: ClassVar[tuple[str, ...]] = (
        "state",
        "sequence",
        "countdown",
        "steps",
        "is_first",
        "is_last",
        "_reward",
        "_before",
        "_appeared",
    )
    state: Tensor
    sequence: Tensor
    countdown: Tensor
    steps: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    _reward: Tensor
    _before: Tensor
    _appeared: Tensor

    def __init__(
        self,
        layout: str,
        *,
        batch: int = 1,
        time_limit: int | None = 10_000,
        variant: Variant = "reference",
        targets: Sequence[Sequence[int] | str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        _require_settings(layout, batch, time_limit, variant)
        self.layout, self.batch, self.time_limit, self.variant = layout, batch, time_limit, variant
        self.pads = len(LAYOUTS[layout])
        self.targets = _targets(targets, variant, self.pads)
        if variant == "reference":
            self._rules = _Rules(reward=10.0, countdown=10, shown=self.pads)
            progress = in_order(self.pads)
        else:
            self._rules = _Rules(reward=1.0, countdown=0, shown=7)
            progress = listed(self.targets, self.pads)
        self._limit = 2**62 if time_limit is None else time_limit
        self.tables = automaton(layout, progress)
        self._gain = self.tables.pays * self._rules.reward
        self._canvas = _canvases(layout)
        self._clear()
        self.to(device)

    # ------------------------------------------------------------------------------------ playing

    def reset(self, u: Tensor) -> Obs:
        """All games anew: ``u`` (B,) float64 in [0, 1), the player appears in cell floor(168 u)."""
        self._play(torch.zeros_like(self.state), u, fresh=torch.ones_like(self.is_last))
        return self.observation()

    def step(self, action: Tensor, u: Tensor) -> tuple[Obs, Tensor]:
        """``advance``, and the observation: image (B, 64, 64, 3) uint8 and the three flags."""
        reward = self.advance(action, u)
        return self.observation(), reward

    def observation(self) -> Obs:
        return {
            "image": self.paint(self.cells),
            "is_first": self.is_first,
            "is_last": self.is_last,
            "is_terminal": self.is_terminal,
        }

    def advance(self, action: Tensor, u: Tensor) -> Tensor:
        """One step of every game, unpainted; the reward (B,) float32.

        Args:
            action: (B,) int64: stay, down (y + 1), up, right (x + 1), left.
            u: (B,) float64 in [0, 1), used by the games in which the player appears anew.

        Raises ValueError, and leaves the games as they are, for a value out of range; on a GPU,
        where to look would be to wait, that is a device assert.
        """
        return self._play(action, u, fresh=self.is_last)

    def _play(self, action: Tensor, u: Tensor, fresh: Tensor) -> Tensor:
        self._require(action, u)
        try:
            return self._advance(action, u, fresh)
        except IndexError:  # of a look-up below, before anything is changed
            raise ValueError(
                f"an action is 0 to {ACTIONS - 1} and u in [0, 1): not {_span(action)} and {_span(u)}"
            ) from None

    def _advance(self, action: Tensor, u: Tensor, fresh: Tensor) -> Tensor:
        appear = fresh | (self.countdown == 1)
        spawn = self.tables.first.index_select(0, (u * SPAWNS).long())
        start = torch.where(appear, spawn, self.state)
        taken = self.tables.step.index_select(0, action * self.tables.states + start)
        state = torch.where(fresh, start, taken[:, 0])
        added = taken[:, 1].masked_fill(fresh, 0)
        countdown = (self.countdown - 1).clamp_(min=0).masked_fill_(fresh, 0)
        reward = self._gain.index_select(0, state).masked_fill_(countdown > 0, 0.0)

        self._before, self.state = self.state, state
        self._appeared, self._reward = appear, reward
        self.sequence = _append(self.sequence.masked_fill(appear[:, None], 0), added)
        self.countdown = countdown.masked_fill_(reward > 0, self._rules.countdown)
        self.steps = (self.steps + 1).masked_fill_(fresh, 0)
        self.is_first, self.is_last = fresh, self.steps >= self._limit
        return reward

    # ----------------------------------------------------------------------------- what is to see

    @property
    def can_pay(self) -> bool:
        """Whether any policy can ever be paid."""
        return self.variant == "reference" or bool(self.targets)

    @property
    def player(self) -> Tensor:
        """(B, 2) int64: x and y, 0 at the top left."""
        cell = self.tables.cell.index_select(0, self.state)
        return torch.stack([1 + cell // FREE_Y, 1 + cell % FREE_Y], 1)

    @property
    def events(self) -> dict[str, Tensor]:
        """What happened between the last frame and this one, (B,) bool; nothing at a reset.

        pad_enter, pad_leave: the pad under the player is another one (they also come with a
        respawn). respawn: the player appeared elsewhere within the episode.
        """
        now = self.tables.under.index_select(0, self.state)
        before = self.tables.under.index_select(0, self._before)
        other = (now != before) & ~self.is_first
        return {
            "reward": self._reward != 0,
            "pad_enter": other & (now > 0),
            "pad_leave": other & (before > 0),
            "respawn": self._appeared & ~self.is_first,
        }

    @property
    def cells(self) -> Tensor:
        """(B, 16, 16) uint8: the frame as indices of the palette, which ``paint`` paints."""
        cell = self.tables.cell.index_select(0, self.state)
        canvas = self._canvas.index_select(0, 2 * cell + (self.countdown > 0))
        canvas[:, HUD, 1 : 2 * self._rules.shown : 2] = self.sequence.to(torch.uint8)
        return canvas

    def paint(self, cells: Tensor) -> Tensor:
        """(..., 16, 16) uint8 cells -> (..., 64, 64, 3) uint8."""
        return paint(cells)

    def paint_unit(self, cells: Tensor) -> Tensor:
        """(..., 16, 16) uint8 cells -> (..., 64, 64, 3) float32 in [0, 1]: ``paint`` / 255."""
        return paint_unit(cells)

    # ---------------------------------------------------------------------------- settings, state

    @property
    def settings(self) -> dict[str, Any]:
        """The environment for a record; plain values."""
        return {
            "name": self.name,
            "layout": self.layout,
            "batch": self.batch,
            "time_limit": self.time_limit,
            "variant": self.variant,
            "targets": ["".join(map(str, target)) for target in self.targets],
        }

    def like(self, *, batch: int) -> "PinPad":
        """The same environment, fresh, with ``batch`` games."""
        return PinPad(
            self.layout,
            batch=batch,
            time_limit=self.time_limit,
            variant=self.variant,
            targets=self.targets or None,
            device=self.device,
        )

    def to(self, device: torch.device | str) -> "PinPad":
        """This environment, moved."""
        self.device = torch.device(device)
        self.tables = self.tables.to(self.device)
        for name in (*self._HELD, "_gain", "_canvas", "is_terminal"):
            setattr(self, name, getattr(self, name).to(self.device))
        return self

    def state_dict(self) -> dict[str, Tensor | int]:
        """What the games are; with the same actions and draws they go on the same way."""
        held = {name.lstrip("_"): getattr(self, name).clone() for name in self._HELD}
        return {"game": self._game, **held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for the state of another environment."""
        names = {name.lstrip("_"): name for name in self._HELD}
        if state.keys() != {"game", *names}:
            raise ValueError(f"the state of a pinpad has the keys game, {', '.join(names)}")
        if state["game"] != self._game:
            told = {key: value for key, value in self.settings.items() if key != "batch"}
            raise ValueError(f"this is the state of a game with other settings than {told}")
        for key, name in names.items():
            mine, given = getattr(self, name), state[key]
            if given.shape != mine.shape:
                raise ValueError(
                    f"{key} is {tuple(given.shape)} in the state, but {tuple(mine.shape)} here: "
                    f"the state of another batch"
                )
            setattr(self, name, given.to(self.device, mine.dtype, copy=True))

    @property
    def _game(self) -> int:
        """Tells states apart that number different things; the batch is told by the shapes."""
        told = [value for key, value in self.settings.items() if key != "batch"]
        return zlib.crc32(repr(told).encode())

    def _clear(self) -> None:
        """Before the first reset every game is over."""
        zeros = torch.zeros(self.batch, dtype=torch.int64)
        no = zeros.bool()
        self.state, self._before, self.countdown, self.steps = zeros, zeros, zeros, zeros
        self.sequence = zeros[:, None].repeat(1, self._rules.shown)
        self._reward, self._appeared = zeros.float(), no
        self.is_first, self.is_last, self.is_terminal = no, ~no, no

    def _require(self, action: Tensor, u: Tensor) -> None:
        for name, given, dtype in (("action", action, torch.int64), ("u", u, torch.float64)):
            if given.shape != (self.batch,) or given.dtype != dtype:
                raise ValueError(
                    f"{name} must be ({self.batch},) {dtype}, not {tuple(given.shape)} "
                    f"{given.dtype}: one for each game"
                )


# --------------------------------------------------------------------------------------- painting


def paint(cells: Tensor) -> Tensor:
    """(..., 16, 16) uint8 indices of the palette -> (..., 64, 64, 3) uint8."""
    return _upscaled(cells, _brushes(cells.device)[0])


def paint_unit(cells: Tensor) -> Tensor:
    """(..., 16, 16) uint8 indices of the palette -> (..., 64, 64, 3) float32: ``paint`` / 255."""
    return _upscaled(cells, _brushes(cells.device)[1])


@cache
def _brushes(device: torch.device) -> tuple[Tensor, Tensor]:
    """The pixels of one line through two cells, (pairs, 2 * 4 * 3): uint8, and float32 in 0..1.

    Two cells at a time, since few long rows are gathered faster than many short ones. A pair is
    numbered as its two bytes read as one int16.
    """
    index = torch.arange(len(PALETTE))
    pairs = torch.cartesian_prod(index, index)
    line = torch.tensor(PALETTE, dtype=torch.uint8).repeat(1, SCALE)
    number = pairs.to(torch.uint8).view(torch.int16).flatten().long()
    brush = torch.zeros(int(number.max()) + 1, 2 * line.shape[1], dtype=torch.uint8)
    brush[number] = line[pairs].flatten(1)
    return brush.to(device), (brush.float() / 255).to(device)


def _upscaled(cells: Tensor, brush: Tensor) -> Tensor:
    if cells.shape[-2:] != (GRID, GRID) or cells.dtype != torch.uint8:
        raise ValueError(
            f"cells must be (..., 16, 16) torch.uint8, not {tuple(cells.shape)} {cells.dtype}"
        )
    pairs = cells.contiguous().view(torch.int16).flatten().int()
    lines = brush.index_select(0, pairs).view(-1, 1, GRID * SCALE * 3)  # one of each row of cells
    return lines.expand(-1, SCALE, -1).reshape(*cells.shape[:-2], *IMAGE)


def _canvases(layout: str) -> Tensor:
    """(2 * 168, 16, 16) uint8: a frame without touched pads for each cell, plain and green."""
    text = rows(layout)
    pad = torch.tensor([[int(tile) if tile.isdigit() else 0 for tile in row] for row in text])
    wall = torch.tensor([[tile == "#" for tile in row] for row in text])
    index = torch.arange(SPAWNS)
    x, y = 1 + index // FREE_Y, 1 + index % FREE_Y
    lit = (pad > 0) & (pad == pad[y, x][:, None, None])  # (168, 14, 16)
    dimmed = torch.where(lit, pad, pad + PADS)
    frames = torch.zeros(SPAWNS, 2, GRID, GRID, dtype=torch.uint8)
    for green, floor in enumerate((FLOOR, GREEN)):
        painted = torch.where(pad > 0, dimmed, floor).masked_fill(wall, 0)
        painted[index, y, x] = PLAYER
        frames[:, green, :HEIGHT, :WIDTH] = painted.to(torch.uint8)
    return frames.flatten(0, 1)


# ------------------------------------------------------------------------------------------- rest


def _append(sequence: Tensor, added: Tensor) -> Tensor:
    """Each row with its pad behind the last one; a full row loses its oldest. Pad 0 adds nothing.

    sequence (B, N) int64, added (B,) int64 -> (B, N) int64.
    """
    full = (sequence[:, -1] > 0) & (added > 0)
    kept = torch.where(full[:, None], sequence.roll(-1, 1), sequence)
    kept[:, -1].masked_fill_(full, 0)
    empty = kept == 0
    next_slot = empty.clone()
    next_slot[:, 1:] &= ~empty[:, :-1]
    return torch.where(next_slot, added[:, None], kept)


def _span(values: Tensor) -> str:
    return f"{values.min():g} to {values.max():g}"


def _require_settings(layout: str, batch: int, time_limit: int | None, variant: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
    if variant not in ("reference", "port"):
        raise ValueError(f"variant {variant!r} is neither 'reference' nor 'port'")
    if batch < 1:
        raise ValueError(f"batch must be 1 or more, not {batch}")
    if time_limit is not None and time_limit < 1:
        raise ValueError(f"time_limit must be 1 or more, or None, not {time_limit}")


def _targets(
    given: Sequence[Sequence[int] | str] | None, variant: str, pads: int
) -> tuple[tuple[int, ...], ...]:
    if given is not None and variant == "reference":
        raise ValueError(
            f"targets are of the variant 'port'; the reference's is 1 to {pads} in order"
        )
    match given:
        case str():  # it would read as one target for each pad
            raise ValueError(f"targets is a list of lists of pads: not {given!r}, but [{given!r}]")
    return tuple(_target(target, pads) for target in given or ())


def _target(given: Sequence[int] | str, pads: int) -> tuple[int, ...]:
    told = given if isinstance(given, str) else list(given)
    if not told:
        raise ValueError("a target of no pads would be met before anything is touched")
    if any(str(pad) not in map(str, range(1, pads + 1)) for pad in told):
        raise ValueError(f"target {told!r} names a pad that is not there: they are 1 to {pads}")
    target = tuple(int(pad) for pad in told)
    if any(a == b for a, b in pairwise(target)):
        raise ValueError(f"target {told!r} can't be met: no pad is touched twice running")
    return target
