"""Which figure is best, and what a curve is made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expc.report.curves import collect, lines
from expc.report.figures import Figure, best


def figure(*values: float, floor: float | None = None) -> Figure:
    seeds = tuple((str(i), value) for i, value in enumerate(values))
    return Figure(seeds, () if floor is None else (floor,))


def test_mean_and_deviation_are_those_of_the_seeds() -> None:
    found = figure(1.0, 2.0, 4.0, floor=0.5)
    assert found.mean == pytest.approx(7 / 3)
    assert found.deviation == pytest.approx((7 / 3) ** 0.5)  # ((4/3)^2 + (1/3)^2 + (5/3)^2) / 2
    assert found.floor == 0.5


def test_the_best_leads_every_other_by_more_than_both_deviations() -> None:
    assert best([figure(0.9, 0.92), figure(0.5, 0.52)], "higher") == 0
    assert best([figure(0.9, 0.92), figure(0.5, 0.52)], "lower") == 1


def test_nothing_is_best_within_the_spread() -> None:
    assert best([figure(0.9, 0.8), figure(0.88, 0.78)], "higher") is None


def test_the_third_may_spread_into_the_first() -> None:
    assert best([figure(0.90, 0.91), figure(0.80, 0.81), figure(0.2, 1.1)], "higher") is None


def test_one_seed_shows_no_spread_so_nothing_is_marked() -> None:
    assert best([figure(0.9), figure(0.1)], "higher") is None
    assert best([figure(0.9, 0.91), figure(0.1)], "higher") is None


def test_what_is_not_better_than_its_floor_is_not_best() -> None:
    assert best([figure(0.2, 0.21, floor=0.5), figure(0.1, 0.11, floor=0.5)], "higher") is None


def test_a_metric_without_a_direction_has_no_best() -> None:
    assert best([figure(0.9, 0.91), figure(0.1, 0.11)], "") is None


# ------------------------------------------------------------------------------------------------------ curves


def write(folder: Path, *told: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in told)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def train(step: int, value: float, **more: object) -> dict[str, object]:
    return {"step": step, "epoch": 0, "split": "train", "train/loss": value, **more}


def test_a_later_attempt_supersedes_what_an_earlier_one_logged_after_its_checkpoint(
    tmp_path: Path,
) -> None:
    first = [train(step, 1.0) for step in (10, 20, 30, 40)]
    second = [train(step, 2.0) for step in (25, 35)]  # went on from step 20, at other steps
    folder = write(tmp_path, *first, *second)
    assert [(line["step"], line["train/loss"]) for line in lines(folder / "metrics.jsonl")] == [
        (10, 1.0),
        (20, 1.0),
        (25, 2.0),
        (35, 2.0),
    ]


def test_a_torn_line_is_dropped_wherever_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path, train(1, 1.0), '{"step": 2, "split": "tr\n', train(3, 3.0), '{"st')
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == [1, 3]


@pytest.mark.parametrize(
    "text", ["", "\0\0\0", "[]\n", "null\n", '{"split": 3, "step": 1}\n', '{"split": "a"}\n']
)
def test_what_is_no_line_of_figures_is_no_line(tmp_path: Path, text: str) -> None:
    assert lines(write(tmp_path, text) / "metrics.jsonl") == []


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert lines(tmp_path / "metrics.jsonl") == []


def test_figures_of_another_mode_are_a_curve_of_their_own(tmp_path: Path) -> None:
    told = [
        {"step": s, "split": "val", "mode": mode, "val/f1": value}
        for s in (1, 2)
        for mode, value in (("eval", 0.5), ("train", 0.9))
    ]
    series, _ = collect([("a", [write(tmp_path, *told)])], 2)
    assert set(series) == {"val/f1", "val/f1 (train mode)"}


def test_a_curve_is_the_mean_over_seeds_and_its_band_their_extremes(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / str(seed), *[train(step, float(seed + step)) for step in (10, 20)])
        for seed in (0, 1, 5)
    ]
    (curve,) = collect([("a", folders)], 20)[0]["train/loss"].curves
    told = [(p.step, p.mean, p.low, p.high) for p in curve.points]
    assert told == [(10, 12.0, 10.0, 15.0), (20, 22.0, 20.0, 25.0)]


def test_thinning_keeps_the_extremes(tmp_path: Path) -> None:
    spike = 1234
    told = [train(step, 99.0 if step == spike else 1.0) for step in range(5000)]
    (curve,) = collect([("a", [write(tmp_path, *told)])], 4999)[0]["train/loss"].curves
    assert len(curve.points) <= 161
    assert max(point.high for point in curve.points) == 99.0
    assert min(point.low for point in curve.points) == 1.0


def test_a_single_measurement_is_no_curve(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / str(s), {"step": s, "split": "test", "test/f1": 0.5}) for s in (1, 2)
    ]
    assert collect([("a", folders)], 2)[0] == {}


def test_floors_are_told_once_each(tmp_path: Path) -> None:
    floor = {"step": 0, "split": "floor", "floor/val/f1": 0.25}
    folders = [write(tmp_path / str(s), floor, train(1, 1.0), train(2, 1.0)) for s in (1, 2)]
    assert collect([("a", folders)], 2)[1] == {"val/f1": (0.25,)}
