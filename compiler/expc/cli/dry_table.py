"""What a clean dry run says: how many weights each stage has, and the memory that a step of it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from expc.dry import PRECISIONS, Build, Dry, flag_values
from expc.findings import listed

_PEAKS = (f"peak: {PRECISIONS[0]}", *PRECISIONS[1:])
_HEAD = ("", "parameters", "optimizer", "batch", "kept for backward", *_PEAKS)
_FORMULA = (
    "peak = weights + gradients + optimizer state + batch + kept for backward, in bytes: an upper bound of one step, "
    "without the data set, workspace of kernels and slack of the allocator"
)


def told(found: Dry) -> str:
    """The table, what could not be seen, and how the peak is counted."""
    modules = len({tried.build.file for tried in found.tried})
    builds = len(found.tried)
    parts = [
        f"{_count(modules, 'module')} in {_count(builds, 'variant')}, one batch of each: nothing fails"
    ]
    if found.tried:
        parts.append(_aligned([_HEAD, *_rows(found)]))
    lines = [f"not checked: {line}" for line in found.unchecked]
    lines += [f"{listed(found.idle)}: nothing to build"] if found.idle else []
    if any(tried.sizes and tried.sizes["kept"] for tried in found.tried):
        lines.append(_FORMULA)
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _rows(found: Dry) -> Iterator[tuple[str, ...]]:
    """A row for each module; more where swept values change its sizes."""
    by_file: dict[str, dict[tuple[str, ...], list[Build]]] = {}
    for tried in found.tried:
        cells = _cells(tried.sizes)
        by_file.setdefault(tried.build.file, {}).setdefault(cells, []).append(tried.build)
    for file, rows in by_file.items():
        for cells, builds in rows.items():
            others = [b for other, each in rows.items() if other != cells for b in each]
            yield (" ".join([file.removesuffix(".py"), *_telling(builds, others)]), *cells)


def _telling(builds: Sequence[Build], others: Sequence[Build]) -> list[str]:
    """The flags that all of some builds share and none of the others has."""
    mine = [flag_values(build.flags) for build in builds]
    theirs = [flag_values(build.flags) for build in others]
    return [
        f"{name}={text}"
        for name, text in mine[0].items()
        if all(each.get(name) == text for each in mine)
        and others
        and not any(each.get(name) == text for each in theirs)
    ]


def _cells(sizes: Mapping[str, Any] | None) -> tuple[str, ...]:
    if sizes is None:
        return ("",) * (len(_HEAD) - 1)
    kept, peak = sizes["kept"] or {}, sizes.get("peak") or {}
    sums = [sizes["optimizer"], sizes["batch"], kept.get("32")]
    return (f"{sizes['parameters']:,}", *map(_bytes, [*sums, *(peak.get(p) for p in PRECISIONS)]))


def _bytes(count: int | None) -> str:
    if count is None:
        return "?"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    raise AssertionError


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [
                f"  {row[0]:<{wide[0]}}",
                *(f"{c:>{w}}" for c, w in zip(row[1:], wide[1:], strict=True)),
            ]
        )
        for row in rows
    )
