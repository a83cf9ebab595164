"""What is never kept: weights that are no numbers, a best that is none, a stage without room."""

import math
import os
import shutil
import signal
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from expc_runtime.checkpoint import Checkpoint, Store
from expc_runtime.clocks import Epochs
from expc_runtime.data.feed import Feed
from expc_runtime.errors import DiskFull
from expc_runtime.fit import fit
from expc_runtime.flags import Run
from expc_runtime.gates import Until
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive
from expc_runtime.state import read_result, read_status
from expc_runtime.training.measuring import Figures
from expc_runtime.training.saving import Saves

torch.set_num_threads(1)


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/line/seed=0/fit"


class Points:
    def tensors(self) -> dict[str, Tensor]:
        x = torch.linspace(-1, 1, 64)[:, None]
        return {"x": x, "y": 2 * x[:, 0]}


class Line(Module):
    """What it measures by epoch is told beforehand."""

    score: tuple[float, ...] = (0.0,)

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.body = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y[:, 0]

    def update(self, batch: Batch) -> None:
        self.step("model", (self(batch[0]) - batch[1]).square().mean())

    def measure(self, batch: Batch) -> None:
        self.record(score=torch.tensor(self.score[self.epoch]))

    def drives(self) -> dict[str, Drive]:
        return {"model": Drive(torch.optim.Adam(self.parameters(), lr=0.01))}


def run(root: Path, epochs: int = 1) -> int:
    (root / "pyproject.toml").touch()
    file, monitor = str(root / "fit.py"), {"best": "val/score"}
    feed = Feed(Points(), columns=("x", "y"), batch=8, val=0.25)
    until = Until(Epochs(epochs))
    return fit(Line, Config(), feed, until=until, monitor=monitor, file=file, program="p")


@pytest.mark.parametrize("when", [(Feed, "setup"), (Figures, "test")])
def test_a_request_to_save_ends_nothing_before_the_first_update_or_after_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: tuple[type, str]
) -> None:
    do = getattr(*when)

    def asked(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return do(*given)

    monkeypatch.setattr(*when, asked)
    child = os.fork()
    if not child:
        code = 70
        try:
            code = run(tmp_path)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_result(tmp_path / Config().out) is not None


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((math.nan, 3.0, 2.0), 2),
        ((2.0, math.nan, 3.0), 0),
        ((3.0, 2.0, math.nan), 1),
        ((math.inf, 3.0, math.nan), 1),
    ],
)
def test_a_figure_that_is_no_number_is_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: tuple[float, ...], best: int
) -> None:
    monkeypatch.setattr(Line, "score", scores)
    assert run(tmp_path, epochs=3) == 0
    result = read_result(tmp_path / Config().out)
    assert result is not None
    assert result.extra["best"]["best"]["epoch"] == best + 1
    assert result.metrics["val/score"] == scores[best]


def test_where_every_figure_is_none_there_is_no_best_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Line, "score", (math.nan, math.nan))
    assert run(tmp_path, epochs=2) == 67
    status = read_status(tmp_path / Config().out)
    assert status is not None and "val/score was never a number" in status.reason


def test_weights_that_are_no_numbers_are_not_saved_over_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: Line, batch: Batch) -> None:
        with torch.no_grad():
            self.body.weight.fill_(math.nan)

    monkeypatch.setattr(Line, "update", spoil)  # past every check of a step
    monkeypatch.setattr(Line, "measure", lambda self, batch: self.record(score=torch.tensor(1.0)))
    assert run(tmp_path) == 65
    loaded = Store(tmp_path / Config().out / "checkpoints").load()
    assert loaded is not None and all(v.isfinite().all() for v in loaded[0]["model"].values())
    assert not list((tmp_path / Config().out / "checkpoints").glob("best-*.pt"))


Usage = namedtuple("Usage", ("total", "used", "free"))


def test_room_is_asked_for_with_the_moments_that_adam_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Line(Config())
    net.body = nn.Linear(1000, 1000, bias=False)  # 4 MB
    net.start("32", total_updates=1, updates_per_epoch=1)
    saves = Saves(tmp_path / "tell", Checkpoint(keep=2))
    need = 3 * (4 + 8) * 10**6 + 2 * 4 * 10**6
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, need))
    saves.require_room(net, tags=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, need - 1))
    with pytest.raises(DiskFull, match="44 MB are needed for 2 checkpoints of 12 MB"):
        saves.require_room(net, tags=1)


def test_a_stage_without_room_ends_before_its_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 30))
    steps: list[int] = []
    monkeypatch.setattr(Line, "update", lambda self, batch: steps.append(1))
    assert run(tmp_path) == 74
    assert steps == []
    status = read_status(tmp_path / Config().out)
    assert status is not None and status.label == "failed(disk_full)"
