"""What a person reads of a sweep: a bar on a terminal, lines under nohup and tee."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import expc_runtime

STAGE = """
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from expc_runtime.flags import Run, parse
from expc_runtime.state import Result, claim, identity

PROGRAM = "0123456789ab"


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/lines/by_hand/read"


if __name__ == "__main__":
    cfg = parse(Config)
    with claim(Path(cfg.out), identity(PROGRAM, asdict(cfg), {}), program=PROGRAM) as stage:
        stage.beat(step=3, steps_target=10, epoch=0, force=True)
        while not Path("go").exists():
            time.sleep(0.05)
        stage.finish(Result(metrics={"test/accuracy": 0.9}))
"""

SCRIPT = """#!/usr/bin/env bash
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." || exit 2
experiment=lines
folder=generated/lines
runs() {
  run "" 0
  stage read read.py -- --seed 0
}
runner=$("${PYTHON:-python}" -m expc_runtime.sweep) || exit 2
source "$runner" && sweep "$@"
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[list[str]]:
    """The command of a sweep of one stage, which ends when there is a file `go`."""
    folder = tmp_path / "generated/lines"
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (folder / "read.py").write_text(STAGE)
    (folder / "sweep.sh").write_text(SCRIPT)
    yield ["bash", str(folder / "sweep.sh"), "--no-smoke"]
    (tmp_path / "go").touch()


@pytest.fixture
def env() -> dict[str, str]:
    return os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(Path(expc_runtime.__file__).parent.parent),
        "EXPC_LAUNCHER": "0",
        "TERM": "xterm",
    }


def test_in_a_log_every_event_is_a_line_and_so_is_progress_now_and_then(
    sweep: list[str], env: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        sweep,
        env=env | {"EXPC_PROGRESS": "0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        seen = until(process.stdout.fileno(), lambda text: "] Run " in text)
        (tmp_path / "go").touch()
        seen += process.communicate(timeout=60)[0].decode()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0
    assert "\r" not in seen and "\x1b" not in seen and "#" not in seen
    assert re.search(
        r"^\[[-0-9]+ [:0-9]+\] Run     seed=0/read \(1/1\)  30%  step=3/10  ", seen, re.MULTILINE
    )
    words = re.findall(r"^\[[-0-9]+ [:0-9]+\] (\w+)", seen, re.MULTILINE)
    assert [word for word in words if word != "Run"] == ["Sweep", "Start", "Done", "End"]


def test_on_a_terminal_a_bar_is_renewed_in_place(
    sweep: list[str], env: dict[str, str], tmp_path: Path
) -> None:
    pid, fd = pty.fork()
    if pid == 0:  # pragma: no cover
        os.execvpe("bash", sweep, env | {"EXPC_PROGRESS": "0.1"})
    seen = until(fd, lambda text: "step=3/10" in text)
    assert "\r[#########---------------------] 30% seed=0 (1/1) step=3/10" in seen
    (tmp_path / "go").touch()
    seen += until(fd, lambda text: "] End " in text)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "] Run " not in seen
    assert "\r" not in (tmp_path / "runs/lines/sweep.log").read_text()


def until(fd: int, enough: Callable[[str], bool]) -> str:
    """Read ``fd`` until it is enough, or over."""
    seen, end = "", time.monotonic() + 60
    while not enough(seen):
        assert time.monotonic() < end, seen
        if select.select([fd], [], [], 1.0)[0]:
            try:
                data = os.read(fd, 4096)
            except OSError:
                break
            if not data:
                break
            seen += data.decode(errors="replace")
    return seen
