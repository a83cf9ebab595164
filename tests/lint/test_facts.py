"""Facts as a file, as an identity of data, and as what a gate is held against."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from expc.facts import Damaged, Facts, parsed, read, text_of
from expc.identity import HASHED, changed, files, identity
from expc.lint.check import check
from expc.lint.reach import too_near
from expc.resolve import document, resolve

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "specs" / "digits.facts.json").read_text(encoding="utf-8")

MANY = """\
expc: 1
name: many
about: Which labels are yes?
model: {trunk: {use: mlp, in_features: 4}}
stages:
  tag:
    kind: supervised
    data: {use: arrays, file: data/tags.npz, columns: {x: features, tags: prob}, batch: 64, split: {val: 0.2}}
    heads: {tags: {use: linear_head, out: 1496}}
    loss: {tags: {use: bce}}
    metrics: {each: {use: accuracy, of: tags}, rows: {use: sample_f1, of: tags}}
    optim: {use: adamw, lr: 1.0e-3}
    until: {metric: each, at_least: 0.95, budget: {epochs: 12}}
"""


def stage_of(root: Path, text: str) -> Any:
    (root / "pyproject.toml").write_text("")
    (root / "spec.yaml").write_text(text)
    return next(iter(resolve(document(root / "spec.yaml", root)).stages.values()))


# ------------------------------------------------------------------------------------------------------ form


def test_a_file_is_what_it_was_made_of() -> None:
    facts = parsed(TEXT)
    assert text_of(facts) == TEXT
    assert json.loads(TEXT) == json.loads(json.dumps(json.loads(TEXT), sort_keys=True))
    assert "\\" not in TEXT and str(ROOT) not in TEXT


def test_no_file_is_no_facts(tmp_path: Path) -> None:
    assert read(tmp_path / "none.facts.json") is None
    (tmp_path / "folder.facts.json").mkdir()
    with pytest.raises(Damaged):
        read(tmp_path / "folder.facts.json")


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [at, *(path for key, item in below for path in paths(item, (*at, key)))]


PLACES = [
    path for path in paths(json.loads(TEXT)) if path and path[-1] not in ("params", "settings")
]
FREE = ("params", "settings", "tests", "values", "groups", "shared", "columns", "splits")
"""Maps that hold what they like: names of splits, columns and keys."""


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), st.sampled_from(["drop", "null", "odd", "extra"]))
def test_a_damaged_file_is_told_and_never_half_read(path: tuple[Any, ...], how: str) -> None:
    """Whatever is missing, of another type or beside what there should be: an answer or `Damaged`, nothing else."""
    data = json.loads(TEXT)
    *above, last = path
    holder = data
    for key in above:
        holder = holder[key]
    if how == "drop":
        del holder[last]
    elif how == "extra" and isinstance(holder[last], dict):
        holder[last]["unheard_of"] = [1]
    else:
        holder[last] = None if how == "null" else {"odd": [True]}
    try:
        assert isinstance(parsed(json.dumps(data)), Facts)
    except Damaged as error:
        assert str(error) and "Traceback" not in str(error)
    else:
        free = any(key in FREE for key in path) or isinstance(last, int)
        optional = holder is not data and last in (
            "shares",
            "labels",
            "classes",
            "sums",
            "bimodality",
            "code",
        )
        assert free or optional or how == "extra", (path, how)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, len(TEXT) - 2))
def test_a_file_that_was_cut_off_is_damaged(end: int) -> None:
    with pytest.raises(Damaged):
        parsed(TEXT[:end])


# -------------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("batch: 64", "batch: 32", True),
        ("batch: 64", "batch: 64, drop_last: true", True),
        ("split: {val: 0.2}", "split: {val: 0.2, seed: 0}", True),
        ("split: {val: 0.2}", "split: {val: 0.2, seed: 1}", False),
        ("split: {val: 0.2}", "split: {val: 0.3}", False),
        ("split: {val: 0.2}", "split: {val: 0.2}, limit: {rows: 100}", False),
        ("tags.npz", "other.npz", False),
        ("lr: 1.0e-3", "lr: 2.0e-3", True),
        ("tags: prob", "tags: real", False),
    ],
)
def test_what_makes_data_another(tmp_path: Path, old: str, new: str, same: bool) -> None:
    assert old in MANY
    one, other = (identity(stage_of(tmp_path, text)) for text in (MANY, MANY.replace(old, new)))
    assert one is not None and other is not None
    assert (one.canonical() == other.canonical()) is same


def test_a_pattern_names_the_files_that_are_there(tmp_path: Path) -> None:
    text = MANY.replace("use: arrays, file: data/tags.npz", 'use: feather, files: "data/*.feather"')
    stage = stage_of(tmp_path, text)
    assert files(stage, tmp_path) == []
    (tmp_path / "data").mkdir()
    for name in ("b.feather", "a.feather", "c.txt"):
        (tmp_path / "data" / name).write_text("")
    assert files(stage, tmp_path) == ["data/a.feather", "data/b.feather"]


def test_a_large_file_is_compared_by_its_size(tmp_path: Path) -> None:
    stage, data = stage_of(tmp_path, MANY), tmp_path / "data" / "tags.npz"
    data.parent.mkdir()
    facts = tagged(data_bytes=HASHED + 1)
    with data.open("wb") as file:
        file.truncate(HASHED + 1)  # a hole: no byte is written
    assert changed(facts.stages[0], stage, tmp_path) == ""
    os.truncate(data, HASHED + 2)
    assert changed(facts.stages[0], stage, tmp_path) == "`data/tags.npz`"
    os.truncate(data, 5)
    assert changed(tagged(data_bytes=5).stages[0], stage, tmp_path) == "`data/tags.npz`"
    data.unlink()
    assert changed(facts.stages[0], stage, tmp_path) == ""


# ----------------------------------------------------------------------------------------------------- gates


def tagged(data_bytes: int = 9, floor: float = 0.9531) -> Facts:
    """Facts of 1,496 labels of which 4.69 % are yes: the constants of the game records."""
    column = json.loads(TEXT)["stages"][0]["columns"]["loop"]
    column |= {"shape": [1496], "elements": 1496}
    column["labels"] = {"fewest": 1, "mean": 70.2, "most": 457, "empty": 0, "never": 12}
    column["shares"]["mean"] = 0.0469
    board = {**json.loads(TEXT)["stages"][0]["columns"]["image"], "shape": [4], "elements": 4}
    data = {
        "use": "arrays",
        "params": {"file": "data/tags.npz", "columns": {"x": "features", "tags": "prob"}},
        "settings": {"split": {"val": 0.2}},
        "code": "",
    }
    edge = {"params": {}, "reads": "Prob", "column": "tags"}
    floors = [
        {**edge, "figure": "tags", "use": "bce", "reads": "BinaryLogits", "values": {"val": 0.15}},
        {**edge, "figure": "each", "use": "accuracy", "values": {"val": floor}},
        {**edge, "figure": "rows", "use": "sample_f1", "values": {"val": 0.29}},
    ]
    stage = {
        **json.loads(TEXT)["stages"][0],
        "stage": "tag",
        "data": data,
        "files": [{"path": "data/tags.npz", "bytes": data_bytes, "sha256": "0" * 64}],
        "inputs": ["x"],
        "columns": {"x": board, "tags": column},
        "floors": floors,
    }
    return parsed(json.dumps({"facts": 1, "tests": {}, "stages": [stage]}))


def found(root: Path, text: str, facts: Facts) -> list[Any]:
    stage_of(root, text)
    (root / "spec.facts.json").write_text(text_of(facts))
    every = check(root / "spec.yaml", root).findings
    return [finding for finding in every if finding.code != "XC205"]  # the file is not there


def test_the_gate_that_opened_on_nothing(tmp_path: Path) -> None:
    """Element accuracy 0.95 where `no` is right 95.31 times in a hundred: the figures of both sets of games."""
    (told,) = found(tmp_path, MANY, tagged())
    assert told.code == "XC602"
    assert told.message == (
        "a constant answer passes the gate: it reaches 0.9531 on `val/each`, and `at_least` is 0.95"
    )
    assert told.why.startswith("95.31 % of the labels in column `tags` are no")
    assert told.help.endswith("or gate on `rows`, whose floor is `0.290`")


def test_a_constant_that_passes_f1_is_not_the_one_that_says_no(tmp_path: Path) -> None:
    gate = "{metric: rows, at_least: 0.3, budget: {epochs: 1}}"
    text = MANY.replace("{metric: each, at_least: 0.95, budget: {epochs: 12}}", gate)
    (told,) = found(tmp_path, text, tagged())
    assert told.why == (
        "it says yes to the most frequent labels of column `tags`, and no to the rest"
    )


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        ("{metric: each, at_least: 0.957, budget: {epochs: 1}}", True),
        ("{metric: each, at_least: 0.99, budget: {epochs: 1}}", False),
        ("{metric: rows, at_least: 0.3, budget: {epochs: 1}}", True),
        ("{metric: rows, at_least: 0.5, budget: {epochs: 1}}", False),
        ("{metric: tags, at_most: 0.149, budget: {epochs: 1}}", True),
        ("{metric: tags, at_most: 0.1, budget: {epochs: 1}}", False),
        ("{epochs: 1}", False),
    ],
)
def test_a_threshold_must_lie_well_beyond_the_floor(tmp_path: Path, gate: str, told: bool) -> None:
    text = MANY.replace("{metric: each, at_least: 0.95, budget: {epochs: 12}}", gate)
    assert [each.code for each in found(tmp_path, text, tagged())] == ["XC602"] * told


def test_a_metric_with_another_threshold_has_no_floor_until_it_is_measured(tmp_path: Path) -> None:
    text = MANY.replace("{use: accuracy, of: tags}", "{use: accuracy, of: tags, threshold: 0.3}")
    assert found(tmp_path, text, tagged()) == []
    facts = tagged()
    fresh = [
        replace(f, params={"threshold": 0.3}) if f.figure == "each" else f
        for f in facts.stages[0].floors
    ]
    again = replace(facts, stages=(replace(facts.stages[0], floors=tuple(fresh)),))
    assert [each.code for each in found(tmp_path, text, again)] == ["XC602"]


@given(st.floats(0, 1), st.floats(0, 1))
@example(5e-324, 5e-324)  # nine tenths of the smallest number is that number
@example(1 - 2**-53, 1 - 2**-53)
def test_what_passes_is_said_to_pass(bound: float, floor: float) -> None:
    for word in ("at_least", "above"):
        assert (too_near(word, bound, floor) == "passes the gate") is (
            bound <= floor < 1 or bound < floor
        )
    for word in ("at_most", "below"):
        assert (too_near(word, bound, floor) == "passes the gate") is (
            bound >= floor > 0 or bound > floor
        )


def test_the_shipped_facts_of_the_games_are_those_of_their_source() -> None:
    """908 games of 96,648 plies with 66.6 legal moves each, counted when the games were made."""
    facts = read(ROOT / "specs" / "maou_as_reported.facts.json")
    assert facts is not None
    stages = {each.stage: each for each in facts.stages}
    legal, last = stages["legal"], stages["policy_value"]
    assert (legal.rows, legal.splits["train"].groups) == (96_648, {"game": 908})
    labels, shares = legal.columns["legal"].labels, legal.columns["legal"].shares
    assert labels is not None and shares is not None
    assert labels.mean == pytest.approx(66.6, abs=0.05)
    assert shares.mean == pytest.approx(labels.mean / 1496, rel=1e-5)
    assert last.splits["val"].shared["game"] > 0  # a split by rows, as was reported
    reachable = stages["reachable"]
    assert reachable.rows == reachable.distinct == 1105
    known = reachable.columns["reachable"].shares
    assert known is not None and known.mean == pytest.approx(0.0979, abs=5e-5)
    (accuracy,) = (floor for floor in reachable.floors if floor.figure == "accuracy")
    assert accuracy.values["train"] == pytest.approx(0.9021, abs=5e-5)
