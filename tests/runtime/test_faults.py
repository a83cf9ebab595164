"""Faults that a test orders by the environment, each with the end that it has."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from expc_runtime.clocks import Updates
from expc_runtime.data.feed import Feed
from expc_runtime.diagnosis.faults import Fault, parsed
from expc_runtime.errors import BadValue
from expc_runtime.fit import fit
from expc_runtime.flags import Run
from expc_runtime.gates import Until
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive
from expc_runtime.state import read_status

torch.set_num_threads(1)


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/line/lr=0.1,seed=3/fit"


class Points:
    def tensors(self) -> dict[str, Tensor]:
        x = torch.linspace(-1, 1, 64)[:, None]
        return {"x": x, "y": 2 * x[:, 0]}


class Line(Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.body = nn.Linear(1, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return y[:, 0]

    def update(self, batch: Batch) -> None:
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.record(loss=loss)
        self.step("model", loss)

    def measure(self, batch: Batch) -> None:
        self.record(loss=(self(batch[0]) - batch[1]).square().mean())

    def drives(self) -> dict[str, Drive]:
        return {"model": Drive(torch.optim.SGD(self.parameters(), lr=0.01))}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def run(root: Path, build: Callable[[Config], Module] = Line) -> int:
    feed = Feed(Points(), columns=("x", "y"), batch=8)
    file = str(root / "fit.py")
    return fit(build, Config(), feed, until=Until(Updates(16)), file=file, program="p")


def in_child(work: Callable[[], int]) -> int:
    """Exit code of ``work`` in a process of its own; negative for the signal that killed it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = work()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_they_are_read_from_the_right_for_names_of_runs_hold_signs() -> None:
    assert parsed("runs/*/lr=0.1,seed=?/fit=nan:body.0@7#2; *=kill@3") == [
        Fault("runs/*/lr=0.1,seed=?/fit", "nan", "body.0", 7, 2),
        Fault("*", "kill", "", 3, None),
    ]


@pytest.mark.parametrize("text", ["*=nan:body", "kill@3", "*=burn@3", "*=kill@soon", "=kill@3"])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(BadValue, match="is not GLOB=KIND@UPDATE"):
        parsed(text)


@pytest.mark.parametrize(
    ("kind", "code", "label"),
    [
        ("nan:body", 65, "failed(diverged)"),
        ("oom", 71, "failed(oom)"),
        ("raise", 1, "failed(crash)"),
        ("exit:9", 9, "running"),
        ("kill", -9, "running"),
    ],
)
def test_each_kind_ends_the_run_at_its_update(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int, label: str
) -> None:
    monkeypatch.setenv("EXPC_FAULTS", f"runs/line/*seed=3/*={kind}@11")
    assert in_child(lambda: run(root)) == code
    status = read_status(root / Config().out)
    assert status is not None and status.label == label


class Backbone(nn.Sequential):
    """Has a child, and its fault none of the child's."""


class Deep(Line):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.backbone = Backbone(self.body, nn.Identity())
        self.digit_head = nn.Sequential(nn.Identity(), self.head)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.digit_head(self.backbone(x))
        return y[:, 0]


def test_a_nan_is_blamed_on_the_module_that_it_was_ordered_of(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPC_FAULTS", "*=nan:backbone@5")
    assert run(root, Deep) == 65
    status = read_status(root / Config().out)
    assert status is not None
    assert "`backbone` (Backbone) gave 32 NaN of 32 values (float32)" in status.reason
    assert "digit_head" not in status.reason
    assert "called at expc_runtime/diagnosis/faults.py:" in status.reason


def test_a_leak_that_was_ordered_is_found_as_any_other(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPC_FAULTS", "*=leak:2000000@0; *=oom@14")
    assert run(root) == 72
    status = read_status(root / Config().out)
    assert status is not None and status.label == "failed(leak)"
    assert "list `leaked` in a forward pre-hook (diagnosis/faults.py:" in status.reason


def test_what_is_slow_arrives(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPC_FAULTS", "*=slow:0.001@3")
    assert run(root) == 0


def test_another_run_and_another_attempt_are_spared(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPC_FAULTS", "*seed=4*=raise@0;*seed=3*=raise@5#1")
    assert run(root) == 1
    assert run(root) == 0


def test_a_module_that_is_not_there_is_said(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXPC_FAULTS", "*=nan:boddy@0")
    assert run(root) == 2
    assert "EXPC_FAULTS" in capsys.readouterr().out
