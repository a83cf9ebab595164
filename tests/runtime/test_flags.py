"""A field of the config is a flag."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

torch = pytest.importorskip("torch")

from expc_runtime.flags import Run, parse, start


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/x"
    split_val: float = 0.2
    batch: int = 64
    channels: tuple[int, ...] = (16, 32)
    rates: tuple[float, ...] = (0.1,)
    clip: float | None = None
    augment: bool = True
    precision: str = "32"
    order: Literal["rows", "files"] = "rows"


def test_defaults() -> None:
    assert parse(Config, []) == Config()


def test_every_kind_of_flag() -> None:
    argv = "--seed 3 --split-val 1e-1 --batch 8 --channels 8,16,32 --rates 1,2e-1 --clip 0.5 "
    argv += "--no-augment --precision bf16-mixed --order files --smoke --out runs/y --device cpu"
    assert parse(Config, argv.split()) == Config(
        seed=3,
        split_val=0.1,
        batch=8,
        channels=(8, 16, 32),
        rates=(1.0, 0.2),
        clip=0.5,
        augment=False,
        precision="bf16-mixed",
        order="files",
        smoke=True,
        out="runs/y",
        device="cpu",
    )


def test_none_and_equals_and_last_one_wins() -> None:
    assert parse(Config, ["--clip=0.5", "--clip", "none"]).clip is None
    assert parse(Config, ["--batch=3", "--batch=4"]).batch == 4


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        ("--split-vall 0.1", "did you mean --split-val?"),
        ("--bach 3", "did you mean --batch?"),
        ("--xyzzy 1", "no flag --xyzzy"),
        ("--split 0.1", "no flag --split"),  # no abbreviations: a new field must not change them
        ("--batch many", "invalid int value"),
        ("--channels 8,x", "8,x"),
        ("--clip lots", "invalid float value"),
        ("--order columns", "none of rows, files"),
        ("stray", "'stray' belongs to no flag"),
    ],
)
def test_a_wrong_flag_ends_with_2_and_says_so(
    argv: str, match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Config, argv.split())
    assert ended.value.code == 2
    assert match in capsys.readouterr().err


def test_help_shows_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Config, ["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "A field of the config is a flag." in told
    for word in ("16,32 unless given", "0.2 unless given", "--no-augment", "none unless given"):
        assert word.lower() in told.lower()


def test_a_field_that_no_flag_can_say_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd(Run):
        table: dict[str, int] | None = None

    with pytest.raises(TypeError, match="table"):
        parse(Odd, [])


def test_a_module_runs_from_the_project_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a value that can't be used is told in a line."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "generated").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "argv", ["../generated/read.py"])

    def main(cfg: Run) -> int:
        assert Path.cwd() == tmp_path
        raise ValueError("batch=0: must be at least 1")

    assert start(main, Run) == 2
    assert capsys.readouterr().err == "read.py: batch=0: must be at least 1\n"
