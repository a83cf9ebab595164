"""What boundaries look like: frames, latents and events of one episode, as PNG at 150 dpi."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from expc_runtime.evals.episodes import Episode, Flags, frame_delta
from expc_runtime.evals.segments import Segments

__all__ = ["Strip", "boundary_fired", "boundary_grid", "boundary_internal", "window"]

READ, FORCED, COPY = "#d62728", "#f2a0a1", "#2f6db5"
INK, FAINT, GRID = "#1f2430", "#6b7280", "#e5e7eb"
EVENTS = ("#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d1f", "#7f7f7f")
LEVELS = ("#5b3f9e", "#1b9e9e")  # abstract, observation

_DPI = 150
_ACROSS = 10  # frames in a row
_CELL = 0.92  # inches of a frame with its border
_ROW = _CELL + 0.2  # inches of a row of frames with its titles
_BARS = 0.26  # inches of the bars below a row
_LEFT, _RIGHT, _HEAD, _FOOT = 0.42, 0.14, 0.66, 0.42  # inches around a body
_BORDER = 0.07  # of a frame, on each side
_DRAWN = 600  # frames of a mosaic, at most: no image can be larger than 2^16 pixels


@dataclass(frozen=True)
class Strip:
    """One episode as it is drawn: frames, what the dynamics made of them, the events by name."""

    source: Episode
    found: Segments
    events: Mapping[str, Flags]

    @property
    def title(self) -> str:
        k, n = int(self.found.read.sum()), len(self.found)
        forced = int(self.found.forced.sum())
        tail = f", {forced} of them forced" if forced else ""
        return f"episode {self.source.name}: {k} boundaries in {n} frames{tail}"

    def happening(self, frame: int) -> list[str]:
        """Names of the events of one frame."""
        return [name for name, flags in self.events.items() if flags[frame]]


def window(strip: Strip, length: int) -> slice:
    """The ``length`` frames with most boundaries; without any, most rewards; else most change."""
    source, length = strip.source, min(length, len(strip.found))
    for weight in (strip.found.read, source.reward != 0, frame_delta(source.image)):
        if np.any(weight):
            inside = np.convolve(np.asarray(weight, dtype=np.float64), np.ones(length), "valid")
            start = int(inside.argmax())
            return slice(start, start + length)
    return slice(0, length)


def boundary_grid(strip: Strip, length: int, folder: Path) -> Path:
    """The window's frames, red where READ and blue where COPY, a bar of READ's probability below."""
    frames = np.arange(len(strip.found))[window(strip, length)]
    rows = -(-len(frames) // _ACROSS)
    each = _ROW + _BARS + 0.24
    figure = _page(rows * each - 0.12, strip.title, _told(frames))
    for row in range(rows):
        shown = frames[row * _ACROSS : (row + 1) * _ACROSS]
        _mosaic(_placed(figure, row * each, _ROW), strip, shown)
        _bars(_placed(figure, row * each + _ROW + 0.03, _BARS), strip, shown)
    _legend(figure, _gates(strip, frames) + _markers(strip, frames))
    return _save(figure, folder / "boundary_grid.png")


def boundary_fired(strip: Strip, length: int, folder: Path) -> Path:
    """Every frame where READ is, ten in a row; a card that says so if there is none."""
    fired = np.flatnonzero(strip.found.read)
    if not fired.size:
        return _save(_card(strip), folder / "boundary_fired.png")
    frames = fired[:_DRAWN]
    rows = -(-len(frames) // _ACROSS)
    cut = fired.size > _DRAWN
    told = f"the first {_DRAWN} of {fired.size} READ frames" if cut else "every READ frame"
    figure = _page(rows * _ROW, strip.title, told)
    _mosaic(_placed(figure, 0, rows * _ROW), strip, frames, rows=rows)
    _legend(figure, _gates(strip, frames) + _markers(strip, frames))
    return _save(figure, folder / "boundary_fired.png")


def boundary_internal(strip: Strip, length: int, folder: Path) -> Path:
    """Four plots over the window: READ probability, counters, KL of both levels, reward and change."""
    span = window(strip, length)
    at = np.arange(len(strip.found))[span]
    figure = _page(4 * 1.75 + 0.1, strip.title, _told(at))
    plots = [_placed(figure, 0.22 + 1.75 * row, 1.35, inset=0.3) for row in range(4)]
    for axes, draw in zip(
        plots, (_draw_probability, _draw_counters, _draw_kl, _draw_change), strict=True
    ):
        _plain(axes)
        for frame in at[strip.found.read[span]]:
            axes.axvspan(frame - 0.5, frame + 0.5, color=READ, alpha=0.08, linewidth=0)
        axes.set_xlim(at[0] - 0.7, at[-1] + 0.7)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=_ACROSS, integer=True))
        draw(axes, strip, at, span)
    for axes in plots[:-1]:
        axes.tick_params(labelbottom=False)
    plots[-1].set_xlabel("frame", fontsize=9, color=INK)
    return _save(figure, folder / "boundary_internal.png")


# The plots of `boundary_internal`; ``at`` are the frames of ``span``.

At = NDArray[np.intp]


def _draw_probability(axes: Axes, strip: Strip, at: At, span: slice) -> None:
    prob, gates = strip.found.read_prob[span], np.array([_gate(strip, frame) for frame in at])
    axes.axhline(0.5, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.plot(at, prob, color=INK, linewidth=1.4, zorder=2)
    for colour, name in ((READ, "READ"), (FORCED, "READ, forced"), (COPY, "COPY")):
        here = gates == colour
        if here.any():
            axes.scatter(at[here], prob[here], color=colour, s=26, zorder=3, label=name)
    axes.set_ylim(-0.05, 1.05)
    axes.set_yticks([0, 0.5, 1])
    _named(axes, "READ probability")


def _draw_counters(axes: Axes, strip: Strip, at: At, span: slice) -> None:
    axes.step(at, strip.found.seg_len[span], where="mid", color=INK, label="frames in this segment")
    other = _twin(axes)
    begun = strip.found.seg_num[span]
    other.step(at, begun, where="mid", color=LEVELS[1], label="segments begun (right)")
    other.set_ylim(begun.min() - 0.5, max(begun.max(), begun.min() + 1) + 0.5)
    axes.set_ylim(0, max(2.0, 1.1 * strip.found.seg_len[span].max()))
    _named(axes, "segments", other)


def _draw_kl(axes: Axes, strip: Strip, at: At, span: slice) -> None:
    for values, colour, name in (
        (strip.found.kl_abs[span], LEVELS[0], "abstract level"),
        (strip.found.kl_obs[span], LEVELS[1], "observation level"),
    ):
        axes.plot(at, values, color=colour, linewidth=1.4, marker="o", markersize=3, label=name)
    axes.set_ylim(bottom=0)
    _named(axes, "KL, nats")


def _draw_change(axes: Axes, strip: Strip, at: At, span: slice) -> None:
    delta, reward = frame_delta(strip.source.image)[span], strip.source.reward[span]
    axes.plot(at, delta, color=INK, linewidth=1.4, marker="o", markersize=3, label="frame delta")
    axes.set_ylim(0, max(1.0, 1.1 * float(delta.max())))
    other = _twin(axes)
    where = "right" if reward.any() else "none here"
    other.bar(at, reward, width=0.7, color=EVENTS[0], alpha=0.75, label=f"reward ({where})")
    other.set_ylim(1.1 * min(0.0, float(reward.min())), 1.1 * max(1.0, float(reward.max())))
    other.tick_params(labelright=bool(reward.any()), right=bool(reward.any()))
    axes.set_zorder(other.get_zorder() + 1)
    axes.patch.set_visible(False)
    _named(axes, "change", other)


# Parts.


def _page(body: float, title: str, below: str) -> Figure:
    """A figure with room for ``body`` inches between its heading and its legend."""
    width, height = _LEFT + _ACROSS * _CELL + _RIGHT, _HEAD + body + _FOOT
    figure = Figure(figsize=(width, height), facecolor="white")
    left = (_LEFT + 0.03) / width
    figure.text(left, 1 - 0.16 / height, title, va="top", fontsize=12, weight="bold", color=INK)
    figure.text(left, 1 - 0.40 / height, below, va="top", fontsize=9, color=FAINT)
    return figure


def _placed(figure: Figure, down: float, tall: float, inset: float = 0.0) -> Axes:
    """Axes of ``tall`` inches that begin ``down`` inches below the heading, as wide as a row."""
    width, height = figure.get_size_inches()
    bottom = 1 - (_HEAD + down + tall) / height
    across = (_ACROSS * _CELL - 2 * inset) / width
    return figure.add_axes(((_LEFT + inset) / width, bottom, across, tall / height))


def _told(frames: At) -> str:
    return f"frames {frames[0]} to {frames[-1]}"


def _mosaic(axes: Axes, strip: Strip, frames: At, rows: int = 1) -> None:
    """Frames in rows of ten, bordered by READ and COPY, each under its time and its events."""
    axes.set_axis_off()
    tall = _ROW / _CELL  # a row, in cells
    for index, frame in enumerate(frames.tolist()):
        row, x = divmod(index, _ACROSS)
        y = row * tall + tall - 1
        axes.imshow(
            _framed(strip, frame),
            extent=(x + 0.03, x + 0.97, y + 0.97, y + 0.03),
            interpolation="nearest",
            aspect="auto",
        )
        axes.text(x + 0.04, y - 0.01, f"t={frame}", fontsize=8, color=INK, va="bottom")
        for place, name in enumerate(strip.happening(frame)):
            dot = x + 0.93 - 0.11 * place
            axes.plot(dot, y - 0.09, "o", color=_colour(strip, name), markersize=4.5)
    axes.set_xlim(0, _ACROSS)  # which every image has moved
    axes.set_ylim(rows * tall, 0)


def _framed(strip: Strip, frame: int) -> NDArray[np.uint8]:
    """A frame with a border of READ's or COPY's colour; a forced READ is pale."""
    image = strip.source.image[frame]
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    edge = max(1, round(_BORDER * image.shape[0]))
    colour = _gate(strip, frame)
    whole = np.empty((image.shape[0] + 2 * edge, image.shape[1] + 2 * edge, 3), dtype=np.uint8)
    whole[:] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    whole[edge:-edge, edge:-edge] = image
    return whole


def _bars(axes: Axes, strip: Strip, frames: At) -> None:
    """A bar for each frame: as high as READ is probable, red where it was chosen."""
    colours = [_gate(strip, frame) for frame in frames.tolist()]
    places = np.arange(len(frames)) + 0.5
    axes.bar(places, np.ones(len(frames)), width=0.94, color=[GRID], linewidth=0)
    axes.bar(places, strip.found.read_prob[frames], width=0.94, color=colours, linewidth=0)
    axes.axhline(0.5, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
    axes.set_xlim(0, _ACROSS)
    axes.set_ylim(0, 1)
    axes.set_xticks([])
    axes.set_yticks([0, 1])
    axes.tick_params(labelsize=7, colors=FAINT, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _card(strip: Strip) -> Figure:
    figure = _page(1.0, strip.title, "")
    figure.text(0.5, 0.45, "no frame is READ", ha="center", fontsize=17, color=READ)
    prob = strip.found.read_prob
    told = f"READ's probability is {prob.mean():.3f} in the mean, {prob.max():.3f} at most"
    figure.text(0.5, 0.27, told, ha="center", fontsize=10, color=FAINT)
    return figure


def _gates(strip: Strip, frames: At) -> list[Any]:
    """What the colours of borders and bars mean, those that are there."""
    read, forced = strip.found.read[frames], strip.found.forced[frames]
    meanings = (
        (READ, "READ: a segment begins", (read & ~forced).any()),
        (FORCED, "READ, forced by a limit", forced.any()),
        (COPY, "COPY: it goes on", (~read).any()),
    )
    return [Patch(color=colour, label=label) for colour, label, there in meanings if there]


def _markers(strip: Strip, frames: At) -> list[Any]:
    """The dots of the events that happen in ``frames``."""
    return [
        Line2D([], [], marker="o", linestyle="", color=_colour(strip, name), label=name)
        for name, flags in strip.events.items()
        if flags[frames].any()
    ]


def _gate(strip: Strip, frame: int) -> str:
    if strip.found.forced[frame]:
        return FORCED
    return READ if strip.found.read[frame] else COPY


def _colour(strip: Strip, event: str) -> str:
    return EVENTS[list(strip.events).index(event) % len(EVENTS)]


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(
        handles=list(handles),
        loc="lower left",
        bbox_to_anchor=(0.035, 0.0),
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        handlelength=1.0,
        columnspacing=1.6,
        labelcolor=INK,
    )


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(labelsize=8, colors=FAINT, length=2)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _twin(axes: Axes) -> Axes:
    """A second scale on the right, of whole numbers."""
    other = axes.twinx()
    for side in other.spines.values():
        side.set_visible(False)
    other.tick_params(labelsize=8, colors=FAINT, length=2)
    other.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    return other


def _named(axes: Axes, label: str, other: Axes | None = None) -> None:
    """The plot's name on the left above it, and what its lines are on the right."""
    handles, names = axes.get_legend_handles_labels()
    if other is not None:
        more, more_names = other.get_legend_handles_labels()
        handles, names = handles + more, names + more_names
    axes.set_title(label, loc="left", fontsize=9.5, weight="bold", color=INK, pad=5)
    axes.legend(
        handles,
        names,
        loc="lower right",
        bbox_to_anchor=(1.01, 0.96),
        ncols=3,
        frameon=False,
        fontsize=8.5,
        handlelength=1.3,
        columnspacing=1.4,
        labelcolor=INK,
    )


def _save(figure: Figure, path: Path) -> Path:
    """No version or date goes into the file: the same figures give the same bytes."""
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path
