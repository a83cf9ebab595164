"""What a spec says of its rows beside where they come from: groups, limits, streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from expc.ir import Flag, Program
from expc.lint.engine import lint_files
from expc.lint.readings import epoch_updates
from expc.resolve import document, resolve

if TYPE_CHECKING:
    from tests.compiler.conftest import Project

FILE = "use: arrays, file: a.npz, columns: {image: features, digit: class, writer: group}"


def of(project: Project, data: str) -> str:
    """The digits spec with one head, and its data said anew."""
    text = project.changed("data: {use: digits, batch: 64, split: {val: 0.2}}", f"data: {{{data}}}")
    lines = [line for line in text.splitlines() if "loop: {" not in line and "brier" not in line]
    return "\n".join(lines) + "\n"


def feed(project: Project, data: str) -> tuple[Program, dict[str, object]]:
    """The program, and what its feed is made with: of a flag its name and default."""
    (variant,) = project.compile(of(project, data)).space.variants
    made = variant.programs["read"]
    kwargs: dict[str, object] = {
        name: (value.field, value.default) if isinstance(value, Flag) else value
        for name, value in made.feed.build.kwargs
    }
    return made, kwargs


def test_rows_are_split_by_a_group_and_limited_to_some(project: Project) -> None:
    made, kwargs = feed(
        project,
        f"{FILE}, batch: 8, split: {{by: writer, val: 0.2, seed: 3}}, limit: {{groups: 120}}",
    )
    assert made.feed.build.target == "expc_runtime.data.feed:Feed"
    assert kwargs == {
        "columns": ("image", "digit"),
        "batch": ("batch", 8),
        "val": ("split_val", 0.2),
        "by": "writer",
        "limit_groups": ("limit_groups", 120),
        "split_seed": ("split_seed", 3),
    }
    assert ("stages", "read", "data", "split", "by") in made.structural


def test_a_stream_is_another_feed_with_the_same_words(project: Project) -> None:
    data = f"{FILE}, batch: 8, split: {{by: writer, val: 0.2}}, limit: {{rows: 9}}"
    made, kwargs = feed(project, f"{data}, stream: {{window: 100, threads: 0}}")
    assert made.feed.build.target == "expc_runtime.data.stream:Stream"
    _, plain = feed(project, data)
    streamed = {"window": ("stream_window", 100), "threads": ("stream_threads", 0)}
    assert kwargs == plain | streamed


def test_nothing_is_no_limit_and_no_group(project: Project) -> None:
    _, kwargs = feed(project, f"{FILE}, batch: 8, split: {{by: null}}, limit: null, stream: null")
    assert kwargs.keys() == {"columns", "batch"}


def test_a_group_is_no_column_of_a_batch(project: Project) -> None:
    data = "use: arrays, file: a.npz, columns: {writer: group, image: features, digit: class}, batch: 8"
    _, kwargs = feed(project, data)
    assert kwargs["columns"] == ("image", "digit")
    found = project.findings(of(project, data.replace("digit: class", "digit: group")))
    assert {each.code for each in found} == {"XC304"}
    assert "no column `digit`" in found[0].message


def test_a_swept_limit_is_one_file_and_a_swept_group_is_two(project: Project) -> None:
    data = f"{FILE}, batch: 8, split: {{by: writer, val: 0.2}}, limit: {{groups: 5}}"
    limits = "sweep: {grid: {read.data.limit.groups: [60, 120]}}\n"
    assert len(project.compile(of(project, data) + limits).space.variants) == 1
    groups = "sweep: {grid: {read.data.split.by: [writer, digit]}}\n"
    assert len(project.compile(of(project, data) + groups).space.variants) == 2


@pytest.mark.parametrize(
    ("data", "updates"),
    [
        ("use: digits, batch: 64, split: {val: 0.2}", 23),  # 1,797 - 359 = 1,438 rows
        ("use: digits, batch: 64, split: {val: 0.2}, drop_last: true", 22),
        ("use: digits, batch: 64, split: {val: 0.2}, limit: {rows: 100}", 2),
        ("use: digits, batch: 64, limit: {rows: 5000}", 29),
        ("use: digits, batch: 64, limit: {rows: 5000}, stream: {window: 9}", 29),
        ("use: digits, batch: 64, split: {by: loop}", 29),
        ("use: digits, batch: 64, split: {by: loop, val: 0.2}", None),
        ("use: digits, batch: 64, split: {by: loop}, limit: {groups: 5}", None),
        (f"{FILE}, batch: 64", None),
    ],
)
def test_updates_of_an_epoch_are_known_where_rows_are_and_no_group_is_left_out(
    project: Project, data: str, updates: int | None
) -> None:
    spec = project.write(project.spec, of(project, data))
    assert epoch_updates(resolve(document(spec, project.root)).stages["read"]) == updates


@pytest.mark.parametrize(
    ("data", "knobs"),
    [
        ("split: {by: writer, seed: 3}", ["seed", "by"]),
        ("split: {by: writer, seed: 3}, limit: {rows: 9}", ["by"]),
        ("split: {by: writer, seed: 3}, limit: {groups: 9}", []),
        ("split: {by: writer, seed: 3, test: 0.2}", []),
    ],
)
def test_a_group_and_a_seed_that_nothing_is_drawn_by_are_dead_knobs(
    project: Project, data: str, knobs: list[str]
) -> None:
    (project.root / "a.npz").touch()
    text = of(project, f"{FILE}, batch: 8, {data}").replace(
        "    monitor: {best: val/accuracy}\n", ""
    )
    found = lint_files([project.write(project.spec, text)], cache=False)[0].findings
    dead = [each.message.split("`")[1] for each in found if each.code == "XC407"]
    assert sorted(dead) == sorted(knobs)
