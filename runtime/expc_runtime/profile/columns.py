"""What is true of a column, read once, a stretch of rows at a time."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Watched", "bimodality", "rounded", "two_peaked"]

BINS = 10
PEAK = 0.01  # share of the numbers that a bin must hold to be a peak
OFF = 1e-3  # by how much a row of probabilities may miss 1


def rounded(value: float, digits: int = 6) -> float:
    """``value`` with so many significant digits: the last bits of a sum differ between machines."""
    return float(f"{value:.{digits}g}")


class Watched:
    """Facts of a column that means ``meaning`` (``prob``, ``class``, ...): `see` its rows, then `told`."""

    def __init__(self, meaning: str) -> None:
        self._meaning = meaning
        self._watches: list[_Watch] = [_Range(meaning in ("prob", "class_probs"))]
        self._watches += [make() for make in _WATCHES.get(meaning, ())]
        self._first: Tensor | None = None

    def see(self, stretch: Tensor) -> None:
        """Some rows, (n, ...), dense."""
        if self._first is None:
            self._first = stretch[:1].clone()
            if self._meaning == "prob" and stretch.dim() > 1:
                self._watches.append(_Labels())
        for watch in self._watches:
            watch.see(stretch)

    def told(self) -> dict[str, Any]:
        """As JSON. Raises ValueError if no rows were seen."""
        if self._first is None:
            raise ValueError("a column without rows")
        shape = self._first.shape[1:]
        told: dict[str, Any] = {
            "port": self._meaning,
            "dtype": str(self._first.dtype).removeprefix("torch."),
            "shape": list(shape),
            "elements": math.prod(shape),
        }
        for watch in self._watches:
            told |= watch.told()
        return told


class _Watch(Protocol):
    def see(self, stretch: Tensor) -> None: ...

    def told(self) -> dict[str, Any]: ...


class _Range:
    """Ends, numbers that can't be, and numbers of a row that never vary."""

    def __init__(self, share: bool) -> None:
        self._share = share
        self._first: Tensor | None = None
        self._varies = torch.zeros(0, dtype=torch.bool)
        self._unfit = 0
        self._low, self._high = math.inf, -math.inf

    def see(self, stretch: Tensor) -> None:
        flat = stretch.flatten(1) if stretch.dim() > 1 else stretch[:, None]
        if self._first is None:
            self._first = flat[0].clone()
            self._varies = torch.zeros(flat.shape[1], dtype=torch.bool)
        self._varies |= (flat != self._first).any(0)
        fit = _fit(flat, self._share)
        count = int(fit.sum())
        self._unfit += fit.numel() - count
        finite = flat if count == fit.numel() else flat[flat.isfinite()]
        if finite.numel():
            low, high = (float(end) for end in finite.aminmax())
            self._low, self._high = min(self._low, low), max(self._high, high)

    def told(self) -> dict[str, Any]:
        known = self._low <= self._high
        return {
            "constant": int((~self._varies).sum()),
            "unfit": self._unfit,
            "lowest": rounded(self._low) if known else None,
            "highest": rounded(self._high) if known else None,
        }


def _fit(values: Tensor, share: bool) -> Tensor:
    fit = values.isfinite()
    return fit & (values >= 0) & (values <= 1) if share else fit


class _Shares:
    """How numbers between 0 and 1 lie."""

    def __init__(self) -> None:
        self._count = self._zero = self._half = self._one = self._below = self._above = 0
        self._bins = torch.zeros(BINS, dtype=torch.int64)
        self._powers = torch.zeros(4, dtype=torch.float64)  # of the distance from 1/2

    def see(self, stretch: Tensor) -> None:
        zero, one = int((stretch == 0).sum()), int((stretch == 1).sum())
        between = stretch[(stretch > 0) & (stretch < 1)].float()
        self._count += zero + one + len(between)
        self._zero += zero
        self._one += one
        self._bins[0] += zero
        self._bins[-1] += one
        self._powers += torch.tensor([(one - zero) / 2, (one + zero) / 4,
                                      (one - zero) / 8, (one + zero) / 16], dtype=torch.float64)  # fmt: skip
        if len(between):
            self._half += int((between == 0.5).sum())
            self._below += int((between < 0.1).sum())
            self._above += int((between > 0.9).sum())
            places = (between * BINS).long().clamp(max=BINS - 1)
            self._bins += torch.bincount(places, minlength=BINS)
            from_half = between.double() - 0.5
            self._powers += torch.stack([(from_half**k).sum() for k in (1, 2, 3, 4)])

    def told(self) -> dict[str, Any]:
        if not self._count:
            return {}
        n = self._count
        raw = (self._powers / n).tolist()
        bins = (self._bins.double() / n).tolist()
        bimodal = bimodality(*raw)
        mean, square = raw[0], raw[1]
        return {
            "shares": {
                "mean": rounded(mean + 0.5),
                "variance": rounded(max(0.0, square - mean * mean)),
                "histogram": [rounded(share) for share in bins],
                "below": rounded((self._below + self._zero) / n),
                "above": rounded((self._above + self._one) / n),
                "zero": rounded(self._zero / n),
                "half": rounded(self._half / n),
                "one": rounded(self._one / n),
                "bimodality": None if bimodal is None else rounded(bimodal),
                "two_peaked": two_peaked(bimodal, bins),
            }
        }


def bimodality(first: float, second: float, third: float, fourth: float) -> float | None:
    """Sarle's coefficient (skew^2 + 1) / kurtosis, of raw moments about any point; None without variance.

    1 for two values alone, 5/9 for a uniform distribution, 1/3 for a normal one.
    """
    variance = second - first**2
    if variance <= 1e-12:
        return None
    third_central = third - 3 * first * second + 2 * first**3
    fourth_central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return (third_central**2 / variance**3 + 1) / (fourth_central / variance**2)


def two_peaked(coefficient: float | None, bins: list[float]) -> bool:
    """Whether the coefficient is above 5/9 and there is a valley: it alone is high for one long tail too.

    A valley is a bin that holds less than half of what one on either side of it does; these hold at least 1 %.
    """
    if coefficient is None or coefficient <= 5 / 9:
        return False
    for k in range(1, len(bins) - 1):
        lower = min(max(bins[:k]), max(bins[k + 1 :]))
        if lower >= PEAK and bins[k] < lower / 2:
            return True
    return False


class _Labels:
    """Yes-or-no labels, many to a row."""

    def __init__(self) -> None:
        self._rows = self._sum = self._empty = self._most = 0
        self._fewest: int | None = None
        self._ever = torch.zeros(0, dtype=torch.bool)

    def see(self, stretch: Tensor) -> None:
        yes = stretch.flatten(1) >= 0.5
        counts = yes.sum(1)
        if not self._rows:
            self._ever = torch.zeros(yes.shape[1], dtype=torch.bool)
        self._rows += len(counts)
        self._sum += int(counts.sum())
        self._empty += int((counts == 0).sum())
        low, high = (int(end) for end in counts.aminmax())
        self._fewest = low if self._fewest is None else min(self._fewest, low)
        self._most = max(self._most, high)
        self._ever |= yes.any(0)

    def told(self) -> dict[str, Any]:
        return {
            "labels": {
                "fewest": self._fewest or 0,
                "mean": rounded(self._sum / self._rows),
                "most": self._most,
                "empty": self._empty,
                "never": int((~self._ever).sum()),
            }
        }


class _Ids:
    """Class ids; negative ones are left out, and told as the column's lowest number."""

    def __init__(self) -> None:
        self._counts = torch.zeros(0, dtype=torch.float64)

    def see(self, stretch: Tensor) -> None:
        counts = torch.bincount(stretch[stretch >= 0].flatten().long()).double()
        size = max(len(counts), len(self._counts))
        grown = torch.zeros(size, dtype=torch.float64)
        grown[: len(self._counts)] += self._counts
        grown[: len(counts)] += counts
        self._counts = grown

    def told(self) -> dict[str, Any]:
        return _classes(self._counts)


class _Distributions:
    """Rows of class probabilities."""

    def __init__(self) -> None:
        self._counts = torch.zeros(0, dtype=torch.float64)
        self._low, self._high = math.inf, -math.inf
        self._zero = self._off = 0

    def see(self, stretch: Tensor) -> None:
        rows = stretch.flatten(1)
        sums = rows.sum(1, dtype=torch.float64)
        if not len(self._counts):
            self._counts = torch.zeros(rows.shape[1], dtype=torch.float64)
        self._counts += rows.sum(0, dtype=torch.float64)
        zero = sums == 0
        self._zero += int(zero.sum())
        self._off += int((~zero & ~((sums - 1).abs() <= OFF)).sum())
        low, high = (float(end) for end in sums.aminmax())
        self._low, self._high = min(self._low, low), max(self._high, high)

    def told(self) -> dict[str, Any]:
        sums = {
            "lowest": rounded(self._low),
            "highest": rounded(self._high),
            "zero": self._zero,
            "off": self._off,
        }
        return {"sums": sums} | _classes(self._counts)


def _classes(counts: Tensor) -> dict[str, Any]:
    total = float(counts.sum())
    if not total > 0:
        return {}
    shares = counts / total
    seen = shares[shares > 0]
    common = int(counts.argmax())
    return {
        "classes": {
            "seen": len(seen),
            "highest": int(counts.nonzero().max()),
            "common": common,
            "share": rounded(float(shares[common])),
            "entropy": rounded(abs(float((seen * seen.log()).sum()))),
        }
    }


_WATCHES: dict[str, tuple[Callable[[], _Watch], ...]] = {
    "prob": (_Shares,),
    "class": (_Ids,),
    "class_probs": (_Distributions,),
}
