"""`expc profile`: every figure against numpy, the same bytes each time, and what happens when the data can't be had."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import torch

from expc.cli import main
from expc.facts import Facts, StageFacts, parsed, text_of
from expc_runtime.data.arrays import Arrays
from expc_runtime.data.feed import Feed

GAMES = """\
expc: 1
name: games
about: What is true of this data?
stages:
  rows:
    kind: supervised
    data:
      use: arrays
      file: data/games.npz
      columns: {board: features, odd: features, move: class, reply: class_probs, tags: prob, won: prob, sure: prob, mask: prob, game: group}
      batch: 64
      split: {val: 0.25, test: 0.1}
      inputs: {features: board}
    model:
      trunk: {use: mlp, in_features: 6}
    heads: {move: {use: linear_head, out: 9}, reply: {use: linear_head, out: 5}, tags: {use: linear_head, out: 7}, won: {use: linear_head, out: 1}, sure: {use: linear_head, out: 1}, mask: {use: linear_head, out: 1}}
    loss: {move: {use: cross_entropy}, reply: {use: kl_div}, tags: {use: bce}, won: {use: bce}, sure: {use: mse}, mask: {use: bce}}
    metrics:
      top: {use: accuracy, of: move}
      right: {use: accuracy, of: won}
      brier: {use: brier, of: won}
      each: {use: accuracy, of: tags}
      sample: {use: sample_f1, of: tags}
    optim: {use: adamw, lr: 1.0e-3}
    until: {epochs: 1}
    monitor: {best: val/move}
  held:
    kind: supervised
    data: {use: arrays, file: data/games.npz, columns: {board: features, won: prob, game: group}, batch: 64, split: {by: game, val: 0.3}, limit: {groups: 20}}
    model:
      trunk: {use: mlp, in_features: 6}
    heads: {won: {use: linear_head, out: 1}}
    loss: {won: {use: bce}}
    optim: {use: adamw, lr: 1.0e-3}
    until: {epochs: 1}
sweep:
  grid:
    held.loss.won.use: [bce, mse]
    held.data.split.val: [0.25, 0.5]  # and never 0.3
    held.optim.lr: [1.0e-3, 1.0e-2]
"""
N = 1200


def games() -> dict[str, np.ndarray]:
    """40 games of 30 rows; every tenth row is there twice; some rows ask for nothing."""
    draw = np.random.default_rng(7)
    board = draw.normal(size=(N, 2, 3)).astype(np.float32)
    board[:, 1, 2] = 3.5
    board[10::10] = board[9:-1:10]
    game = np.repeat(np.arange(40), 30)
    reply = draw.dirichlet(np.ones(5), size=N).astype(np.float32)
    reply[:50] = 0
    reply[50:60] *= 2
    tags = (draw.random((N, 7)) < 0.15).astype(np.float32)
    tags[:, 4] = 0
    return {
        "board": board,
        "odd": board[:, 0, 0],
        "move": draw.choice(9, size=N, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.06, 0.04, 0]),
        "reply": reply,
        "tags": tags,
        "won": np.where(game % 5 == 0, 0.5, (game % 3 == 0)).astype(np.float32),
        "sure": draw.beta(6, 6, size=N).astype(np.float32),
        "mask": np.ones(N, dtype=np.float32),
        "game": game,
    }


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Facts]]:
    """A project whose spec was profiled."""
    root = tmp_path_factory.mktemp("games")
    (root / "pyproject.toml").write_text("")
    (root / "specs").mkdir()
    (root / "data").mkdir()
    (root / "specs/games.yaml").write_text(GAMES)
    np.savez(root / "data/games.npz", **games())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["profile", "specs/games.yaml"]) == 0
        yield root, parsed((root / "specs/games.facts.json").read_text())


def parts(**held: Any) -> dict[str, np.ndarray]:
    """Rows of each split, as a training on them takes them."""
    feed = Feed(Arrays("data/games.npz"), columns=("board",), batch=64, **held)
    feed.setup(torch.device("cpu"), 0)
    return {name: feed.rows(name).numpy() for name in ("train", "val", "test")}


@pytest.fixture(scope="module")
def rows(profiled: tuple[Path, Facts]) -> StageFacts:
    return next(each for each in profiled[1].stages if each.stage == "rows")


@pytest.fixture(scope="module")
def split(profiled: tuple[Path, Facts]) -> dict[str, np.ndarray]:
    return parts(val=0.25, test=0.1)


# ----------------------------------------------------------------------------------------------- the figures


def test_what_data_it_is(profiled: tuple[Path, Facts], rows: StageFacts) -> None:
    raw = Path("data/games.npz").read_bytes()
    (file,) = rows.files
    assert (file.path, file.bytes) == ("data/games.npz", len(raw))
    assert file.sha256 == hashlib.sha256(raw).hexdigest()
    assert rows.data.use == "arrays" and rows.data.params["file"] == "data/games.npz"
    assert rows.data.settings == {
        "inputs": {"features": "board"},
        "split": {"val": 0.25, "test": 0.1},
    }
    assert rows.inputs == ("board",)
    text = (profiled[0] / "specs/games.facts.json").read_text()
    assert str(profiled[0]) not in text


def test_rows_that_are_there_twice_and_games_on_both_sides(
    rows: StageFacts, split: dict[str, np.ndarray]
) -> None:
    held = games()
    keys = [row.tobytes() for row in held["board"]]
    train = {keys[i] for i in split["train"]}
    assert rows.rows == N and rows.distinct == len(set(keys)) == N - 119
    in_train = set(held["game"][split["train"]])
    for name in ("val", "test"):
        here = set(held["game"][split[name]])
        told = rows.splits[name]
        assert told.rows == len(split[name])
        assert told.repeated == sum(keys[i] in train for i in split[name]) > 0
        assert told.groups == {"game": len(here)}
        assert told.shared == {"game": len(here & in_train)}
    assert rows.splits["train"].repeated == len(split["train"]) - len(train)


def test_a_split_by_game_shares_none(profiled: tuple[Path, Facts]) -> None:
    """And a limit leaves games out; each share of a sweep over the data has facts of its own."""
    halves = [each for each in profiled[1].stages if each.stage == "held"]
    assert [each.data.settings["split"]["val"] for each in halves] == [0.25, 0.5]
    for facts, val in zip(halves, (5, 10), strict=True):
        assert facts.rows == 600
        assert facts.splits["val"].groups == {"game": val}
        assert facts.splits["val"].shared == {"game": 0}
        assert [(f.figure, f.use) for f in facts.floors] == [("won", "bce"), ("won", "mse")]


def test_probabilities(rows: StageFacts) -> None:
    for name in ("won", "sure"):
        held = games()[name].astype(np.float64)
        told = rows.columns[name].shares
        assert told is not None
        counts = np.histogram(games()[name], bins=np.linspace(0, 1, 11).astype(np.float32))[0]
        np.testing.assert_allclose(told.histogram, counts / N, rtol=1e-5)
        centred = held - held.mean()
        variance = (centred**2).mean()
        skew, kurtosis = (centred**3).mean() / variance**1.5, (centred**4).mean() / variance**2
        np.testing.assert_allclose(told.mean, held.mean(), rtol=1e-5)
        np.testing.assert_allclose(told.variance, variance, rtol=1e-5)
        np.testing.assert_allclose(told.bimodality, (skew**2 + 1) / kurtosis, rtol=1e-5)
        ends = (held < 0.1).mean(), (held > 0.9).mean(), (held == 0.5).mean()
        np.testing.assert_allclose((told.below, told.above, told.half), ends, rtol=1e-5)
    assert rows.columns["won"].shares.two_peaked  # type: ignore[union-attr]
    assert not rows.columns["sure"].shares.two_peaked  # type: ignore[union-attr]


def test_labels_classes_and_distributions(rows: StageFacts) -> None:
    held = games()
    yes, tags = held["tags"].sum(1), rows.columns["tags"]
    assert tags.labels is not None and tags.shares is not None
    assert (tags.labels.fewest, tags.labels.most) == (yes.min(), yes.max())
    assert tags.labels.mean == pytest.approx(yes.mean(), rel=1e-5)
    assert (tags.labels.empty, tags.labels.never) == ((yes == 0).sum(), 1)
    assert tags.shares.mean == pytest.approx(held["tags"].mean(), rel=1e-5)
    counts = np.bincount(held["move"], minlength=9) / N
    seen = counts[counts > 0]
    move = rows.columns["move"].classes
    assert move is not None
    assert (move.seen, move.highest, move.common) == (8, 7, counts.argmax())
    assert move.share == pytest.approx(counts.max(), rel=1e-5)
    assert move.entropy == pytest.approx(-(seen * np.log(seen)).sum(), rel=1e-5)
    sums = rows.columns["reply"].sums
    assert sums is not None
    assert (sums.zero, sums.off, sums.lowest) == (50, 10, 0.0)
    assert sums.highest == pytest.approx(2, rel=1e-5)


def test_what_never_varies(rows: StageFacts) -> None:
    held = {name: (column.constant, column.elements) for name, column in rows.columns.items()}
    assert held["board"] == (1, 6)
    assert held["tags"] == (1, 7)
    assert held["mask"] == (1, 1)
    assert held["won"] == (0, 1)
    assert "odd" not in held  # no loss, no metric and no net reads it
    assert rows.columns["board"].highest == pytest.approx(games()["board"].max(), rel=1e-5)


def floor(rows: StageFacts, figure: str) -> float:
    return next(each.values["val"] for each in rows.floors if each.figure == figure)


def test_floors(rows: StageFacts, split: dict[str, np.ndarray]) -> None:
    """The constant answers of `expc_runtime.floors`, made from train and measured on val, in float64."""
    held = {name: column.astype(np.float64) for name, column in games().items()}
    train = {name: column[split["train"]] for name, column in held.items()}
    val = {name: column[split["val"]] for name, column in held.items()}
    p, t = train["won"].mean(), val["won"]
    assert floor(rows, "won") == pytest.approx(
        -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(), rel=5e-5
    )
    assert floor(rows, "brier") == pytest.approx(((p - t) ** 2).mean(), rel=5e-5)
    yes = (t >= 0.5).mean()
    assert floor(rows, "right") == pytest.approx(max(yes, 1 - yes), rel=5e-5)
    prior = np.bincount(train["move"].astype(int), minlength=9) / len(train["move"])
    ids = val["move"].astype(int)
    assert floor(rows, "move") == pytest.approx(-np.log(prior[ids]).mean(), rel=5e-5)
    assert floor(rows, "top") == pytest.approx((ids == prior.argmax()).mean(), rel=5e-5)
    assert floor(rows, "each") == pytest.approx(1 - val["tags"].mean(), rel=5e-5)
    counts = val["tags"].sum(1)
    all_yes = (2 * counts / (counts + 7)).mean()
    assert all_yes * (1 - 1e-5) <= floor(rows, "sample") < 1
    total = train["reply"].sum(0)
    priors = total / total.sum(), (total + 1) / (total.sum() + 5), np.full(5, 0.2)
    best = min(_kl(val["reply"], prior) for prior in priors)
    assert floor(rows, "reply") == pytest.approx(best, rel=1e-4)


def _kl(rows: np.ndarray, prior: np.ndarray) -> float:
    """As it is logged: a batch is the mean of its live rows, an epoch that of its batches by their rows."""
    logged = 0.0
    for batch in np.split(rows, range(64, len(rows), 64)):
        asked = batch[batch.sum(1) > 0]
        ratio = np.log(np.maximum(asked, 1e-30)) - np.log(prior)
        logged += len(batch) * np.where(asked > 0, asked * ratio, 0).sum(1).mean()
    return float(logged / len(rows))


# ----------------------------------------------------------------------------------------------- the command


def test_again_it_is_the_same_to_the_byte(
    profiled: tuple[Path, Facts], capfd: pytest.CaptureFixture[str]
) -> None:
    path = profiled[0] / "specs/games.facts.json"
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert text_of(profiled[1]).encode() == before
    assert main(["profile", "specs/games.yaml"]) == 0
    said = capfd.readouterr()
    assert path.read_bytes() == before and path.stat().st_mtime_ns == stamp
    assert "unchanged: specs/games.facts.json" in said.out
    assert "  rows.each " in said.out and "of `game`" in said.out
    assert not list((profiled[0] / "specs").glob(".*"))


def test_plan_prints_the_floors_in_columns(
    profiled: tuple[Path, Facts], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "specs/games.yaml"]) == 0
    out = capsys.readouterr().out
    lines = out.partition("Floors: what a constant answer reaches\n")[2].splitlines()[:16]
    assert lines[0].split() == ["val", "test"]
    assert "  held.won (bce)" in out and "  held.won (mse)" in out
    ends = {len(line) for line in lines[:12]}
    assert len(ends) == 1  # aligned


def test_lint_reasons_from_them(
    profiled: tuple[Path, Facts], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", "--no-cache", "--format", "json", "specs/games.yaml"]) == 1
    out = capsys.readouterr().out
    found = {(each := json.loads(line))["code"]: each["message"] for line in out.splitlines()}
    assert "50 rows of column `reply` are all zero" in found["XC604"]
    assert found["XC605"] == "10 rows of column `reply` do not sum to 1"
    assert found["XC606"] == "column `mask` is the same in all 1,200 rows: 1"
    assert "of the rows of `test` have inputs that train has too" in found["XC607"]
    assert "XC609" not in found and "XC603" not in found


def test_changed_data_is_noticed_also_by_a_remembered_answer(
    profiled: tuple[Path, Facts], capsys: pytest.CaptureFixture[str]
) -> None:
    path = profiled[0] / "data/games.npz"
    raw, stamp = path.read_bytes(), path.stat()
    main(["lint", "specs/games.yaml"])
    assert "XC609" not in capsys.readouterr().out
    try:
        path.write_bytes(raw[:-1] + b"x")
        assert main(["lint", "specs/games.yaml"]) == 1
        out = capsys.readouterr().out
        assert "`data/games.npz` has changed since it was profiled" in out
        assert "run `expc profile specs/games.yaml`" in out and "XC604" not in out
        path.unlink()  # facts are for machines that lack the data, too
        main(["lint", "specs/games.yaml"])
        assert "XC604" in (out := capsys.readouterr().out) and "XC609" not in out
    finally:
        path.write_bytes(raw)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


# ------------------------------------------------------------------------------------------------- no answer

OWN = """\
import os, time

class Mine:
    columns = {"image": "features", "digit": "class"}

    def tensors(self):
        BODY
"""


@pytest.fixture
def mine(project: Path, edit) -> Path:
    """A spec on the user's own source, with facts from before."""
    (project / "lab.py").write_text(OWN)
    edit("{use: digits,", "{use: 'lab:Mine',")
    (project / "specs/small.facts.json").write_text("from before\n")
    return project


def body(root: Path, text: str) -> None:
    (root / "lab.py").write_text(OWN.replace("BODY", text))


@pytest.mark.parametrize(
    ("does", "code", "says"),
    [
        ("import no_such_package", 1, "read: No module named 'no_such_package'"),
        ("raise RuntimeError('out of tune')", 2, "RuntimeError: out of tune"),
    ],
)
def test_what_is_there_stays_when_the_data_can_not_be_read(
    mine: Path, capfd: pytest.CaptureFixture[str], does: str, code: int, says: str
) -> None:
    body(mine, does)
    assert main(["profile", "specs/small.yaml"]) == code
    said = capfd.readouterr()
    assert says in said.err and "the facts stay as they were" in said.err
    assert (mine / "specs/small.facts.json").read_text() == "from before\n"


def test_a_stop_from_the_keyboard_leaves_nothing_behind(mine: Path) -> None:
    body(mine, "open('reading', 'w').close(); time.sleep(60)")
    running = subprocess.Popen(
        [sys.executable, "-m", "expc", "profile", "specs/small.yaml"],
        cwd=mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (mine / "reading").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert running.returncode == 130, err
    assert "Traceback" not in err and out == ""
    assert (mine / "specs/small.facts.json").read_text() == "from before\n"


def test_a_file_that_is_not_there(project: Path, expc, edit) -> None:
    edit("{use: digits,", "{use: arrays, file: no.npz, columns: {image: features, digit: class},")
    said = expc("profile", "specs/small.yaml")
    assert said.code == 1
    assert said.err == "expc: specs/small.yaml: read: no.npz: No such file or directory\n"
    assert not (project / "specs/small.facts.json").exists()


def test_a_spec_that_reads_no_data(project: Path, expc) -> None:
    study = Path(__file__).parents[2] / "specs" / "pinpad_vta.yaml"
    (project / "specs/small.yaml").write_text(study.read_text())
    said = expc("profile", "specs/small.yaml")
    assert said.code == 1 and "there is nothing to profile" in said.err


def test_without_the_runtime_it_says_what_to_install(
    project: Path, expc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expc.cli.needs.find_spec", lambda name: None)
    said = expc("profile", "specs/small.yaml")
    assert said.code == 2 and "pip install 'expc[runtime]'" in said.err
