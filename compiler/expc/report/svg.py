"""Drawings as inline SVG. Colours are classes of the style sheet, so light, dark and print have their own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from expc.report.curves import Curve, Point, Series
from expc.report.figures import Figure

__all__ = ["HUES", "Drawn", "chart", "number", "strip"]

HUES = 8
"""Colours of curves; then the dashes change."""

_WIDE, _HIGH = 352.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 8.0, 24.0
_DECADES = 100.0  # largest over smallest value from which an axis is logarithmic
_BANDS = 24  # curves from which bands would hide one another
_MANY = 12  # curves from which each is drawn thin
_STRIP = (88.0, 16.0)
_FAR = 2.0  # floors are drawn where the axis grows no more than so many times


@dataclass(frozen=True)
class Drawn:
    """A picture, and what has to be said of it."""

    svg: Markup
    note: str


@dataclass(frozen=True)
class _Axis:
    """From values to pixels."""

    low: float
    high: float
    start: float  # pixel of ``low``
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + (self.end - self.start) * share

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.log else value

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the axis."""
        if self.log:
            return self._decades(count)
        step = _round_up((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _decades(self, count: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        stride = max(1, math.ceil((last - first) / count))
        found = [10.0**k for k in range(first, last + 1, stride)]
        return [tick for tick in found if self.low * 0.999 <= tick <= self.high * 1.001]


def _round_up(step: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten."""
    if not step > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= step * (1 - 1e-9))


def number(value: float, digits: int = 4) -> str:
    """A figure for people: at most ``digits`` significant digits, a true minus sign."""
    text = f"{value:.{digits}g}"
    mantissa, e, power = text.partition("e")
    text = f"{mantissa}e{int(power)}" if e else mantissa
    return text.replace("-", "\u2212")


def _count(value: float) -> str:
    """A number of steps: 20k, 1.5M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


# ------------------------------------------------------------------------------------------------------ charts


def chart(series: Series, hues: dict[str, int], floors: Sequence[float]) -> Drawn:
    """The curves of one metric over steps: mean of each condition, band from least to most, floors dashed."""
    curves = [curve for curve in series.curves if curve.points]
    bands = len(curves) <= _BANDS
    low, high, log, clipped = _range(curves, bands)
    shown = [f for f in floors if _near(f, low, high, log)]
    if shown:
        low, high = min(low, *shown), max(high, *shown)
    low, high = _padded(low, high, log)
    last = max(point.step for curve in curves for point in curve.points)
    x = _Axis(0.0, max(last, 1.0), _LEFT, _WIDE - _RIGHT)
    y = _Axis(low, high, _HIGH - _BOTTOM, _TOP, log)
    parts = [*_grid(x, y), *(_floor(f, y) for f in shown)]
    if bands:
        parts += [_band(c, hues[c.condition], x, y) for c in curves if _has_band(c)]
    parts += [_line(c, hues[c.condition], x, y) for c in curves]
    body = Markup("").join(parts)
    svg = Markup(
        '<svg viewBox="0 0 {w:.0f} {h:.0f}" class="chart{many}" role="img" tabindex="0" aria-label="{label}" '
        'data-x="{x}" data-y="{y}" data-log="{log}">{body}</svg>'
    ).format(
        many=" many" if len(curves) > _MANY else "",
        w=_WIDE, h=_HIGH, label=_label(series.name, curves, floors), body=body, log=int(log),
        x=f"{x.low:.8g} {x.high:.8g} {x.start:.8g} {x.end:.8g}",
        y=f"{y.low:.8g} {y.high:.8g} {y.start:.8g} {y.end:.8g}",
    )  # fmt: skip
    return Drawn(svg, _note(floors, shown, log, clipped))


def _range(curves: Sequence[Curve], bands: bool) -> tuple[float, float, bool, bool]:
    """Least and most, whether the axis is logarithmic, and whether a few far values are cut off."""
    means = sorted(point.mean for curve in curves for point in curve.points)
    low, high = means[0], means[-1]
    if bands:
        ends = [(p.low, p.high) for curve in curves for p in curve.points]
        least, most = min(e[0] for e in ends), max(e[1] for e in ends)
        if most - least <= 2 * (high - low) or high == low:
            low, high = least, most
    if low > 0 and high / low >= _DECADES:
        return low, high, True, False
    inner = (means[len(means) // 20], means[-1 - len(means) // 20])
    if inner[1] > inner[0] and high - low > 20 * (inner[1] - inner[0]):
        wide = inner[1] - inner[0]
        return max(low, inner[0] - wide / 2), min(high, inner[1] + wide / 2), False, True
    return low, high, False, False


def _near(floor: float, low: float, high: float, log: bool) -> bool:
    if log:
        return floor > 0 and low / 10 <= floor <= high * 10
    wide = (high - low) or abs(high) or 1.0
    return low - _FAR * wide <= floor <= high + _FAR * wide


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return low * 0.9, high * 1.1
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if 0 <= low < pad else low - pad), high + pad


def _note(floors: Sequence[float], shown: Sequence[float], log: bool, clipped: bool) -> str:
    parts = ["log axis"] if log else []
    if shown:
        parts.append("floor " + _several(shown))
    if far := [f for f in floors if f not in shown]:
        parts.append(f"floor {_several(far)}, off the chart")
    if clipped:
        parts.append("far values cut off")
    return " · ".join(parts)


def _several(values: Sequence[float]) -> str:
    told = [number(value, 3) for value in values]
    return ", ".join(told) if len(told) <= 3 else f"{told[0]} to {told[-1]}"


def _label(name: str, curves: Sequence[Curve], floors: Sequence[float]) -> str:
    """The chart in words."""
    ends = [f"{c.condition or 'all'} ends at {number(c.points[-1].mean)}" for c in curves[:8]]
    more = f", and {len(curves) - 8} more" if len(curves) > 8 else ""
    floor = f"; floor {_several(floors)}" if floors else ""
    return f"{name} by step: {', '.join(ends)}{more}{floor}"


def _grid(x: _Axis, y: _Axis) -> Iterator[Markup]:
    lines = "".join(f"M{x.start:g} {y.at(t):.1f}H{x.end:g}" for t in y.ticks())
    yield Markup('<path class="grid" d="{}"/>').format(lines)
    for tick in y.ticks():
        place = y.at(tick) + 3.5
        yield Markup('<text class="y" x="{}" y="{:.1f}">{}</text>').format(
            f"{x.start - 6:g}", place, number(tick)
        )
    for tick in x.ticks(4):
        end = " end" if x.at(tick) > x.end - 12 else ""
        yield Markup('<text class="x{}" x="{:.1f}" y="{:g}">{}</text>').format(
            end, x.at(tick), y.start + 16, _count(tick)
        )


def _floor(value: float, y: _Axis) -> Markup:
    return Markup(
        '<path class="floor" d="M{:g} {:.1f}H{:g}"><title>floor {}</title></path>'
    ).format(_LEFT, y.at(value), _WIDE - _RIGHT, number(value))


def _line(curve: Curve, hue: int, x: _Axis, y: _Axis) -> Markup:
    points = [(x.at(p.step), _within(y.at(p.mean))) for p in curve.points]
    body = "M" + "L".join(f"{a:.1f} {b:.2f}" for a, b in points)
    body += "h.01" if len(points) == 1 else ""  # a dot
    return Markup('<path class="line h{} d{}" data-i="{}" d="{}"><title>{}</title></path>').format(
        hue % HUES, hue // HUES % 4, hue, body, curve.condition or "all runs"
    )


def _band(curve: Curve, hue: int, x: _Axis, y: _Axis) -> Markup:
    upper = [f"{x.at(p.step):.1f} {_within(y.at(p.high)):.1f}" for p in curve.points]
    lower = [f"{x.at(p.step):.1f} {_within(y.at(p.low)):.1f}" for p in reversed(curve.points)]
    return Markup('<path class="band h{}" data-i="{}" d="M{}Z"/>').format(
        hue % HUES, hue, "L".join([*upper, *lower])
    )


def _has_band(curve: Curve) -> bool:
    return any(_apart(point) for point in curve.points) and len(curve.points) > 1


def _apart(point: Point) -> bool:
    return point.high - point.low > 1e-9 * max(abs(point.high), abs(point.low))


def _within(pixel: float) -> float:
    return min(max(pixel, _TOP - 1), _HIGH - _BOTTOM + 1)


# ------------------------------------------------------------------------------------------------------ strips


def strip(figure: Figure, low: float, high: float) -> Markup:
    """A figure's seeds as dots on the scale of its column, the mean as a bar, the floor dashed."""
    wide, tall = _STRIP
    x = _Axis(low, high, 5.0, wide - 5)
    parts = [Markup('<path class="rail" d="M2 {:g}H{:g}"/>').format(tall / 2, wide - 2)]
    floor = figure.floor
    if floor is not None and low <= floor <= high:
        parts.append(
            Markup('<path class="floor" d="M{:.1f} 1V{:g}"/>').format(x.at(floor), tall - 1)
        )
    dots = Markup('<circle cx="{:.1f}" cy="{:g}" r="2.6"/>')
    parts += [dots.format(x.at(value), tall / 2) for value in figure.values]
    if len(figure.seeds) > 1:
        mean = Markup('<path class="mean" d="M{:.1f} 2V{:g}"/>')
        parts.append(mean.format(x.at(figure.mean), tall - 2))
    return Markup('<svg viewBox="0 0 {:g} {:g}" class="strip" aria-hidden="true">{}</svg>').format(
        wide, tall, Markup("").join(parts)
    )
