"""Training that is killed and stopped at random goes on bit for bit: weights, samples, draws of a replay.

The unbroken run and the broken one are children of this process, which has torch loaded. Each update
notes what it was given; an update that is done again, after a kill, must be given the same.
"""

import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from expc_runtime.checkpoint import Checkpoint
from expc_runtime.clocks import Epochs, Updates
from expc_runtime.gates import Until
from expc_runtime.module import Batch

Work = Callable[[], int]


def _tests_of(name: str) -> ModuleType:
    """The small modules of the tests of a kind."""
    path = Path(__file__).parents[1] / "runtime" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"faults_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fits, replays = _tests_of("test_fit"), _tests_of("test_replay")


def noting(build: type, file: Path, term_at: int | None = None, pause: float = 0.0) -> type:
    """Modules that note every batch in ``file``, and may be asked to stop in an update."""

    class Noting(build):  # type: ignore[misc, valid-type]
        def update(self, batch: Batch) -> None:
            if not self.rehearses:
                crc = 0
                for tensor in batch:
                    crc = zlib.crc32(tensor.contiguous().numpy().tobytes(), crc)
                with file.open("a") as notes:
                    notes.write(f"{self.updates} {crc}\n")
                time.sleep(pause)
                if self.updates == term_at:
                    os.kill(os.getpid(), signal.SIGTERM)
            super().update(batch)

    return Noting


def noted(file: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    for line in file.read_text().splitlines():
        update, crc = map(int, line.split())
        assert found.setdefault(update, crc) == crc, f"update {update} was given another batch"
    return found


def child(work: Work, elsewhere: bool = False) -> int:
    """A process of its own that runs ``work``; its pid. ``elsewhere``: with another $TMPDIR."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        if elsewhere:
            os.environ["TMPDIR"], tempfile.tempdir = "/dev/shm", None
        code = work()
    finally:
        os._exit(code)


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def broken(
    run: Callable[[int | None], int], updates: int, draw: random.Random, elsewhere: bool
) -> int:
    """Kill and stop a run at random until it is done; how often it was."""
    hits = 0
    for _ in range(4):
        if draw.random() < 0.5:
            at = draw.randrange(updates)
            code = code_of(child(lambda at=at: run(at), elsewhere))
            assert code in (0, 75)  # 0: it was past that update
        else:
            pid = child(lambda: run(None), elsewhere)
            time.sleep(draw.uniform(0.1, 0.8))
            os.kill(pid, signal.SIGKILL)
            code = code_of(pid)
            assert code in (0, -signal.SIGKILL)
        hits += code != 0
        if code == 0:
            break
    assert code_of(child(lambda: run(None), elsewhere)) == 0
    return hits


CASES = [pytest.param(n, marks=[pytest.mark.slow] * (n > 0)) for n in range(8)]


@pytest.mark.parametrize("seed", CASES)
def test_a_supervised_training_goes_on_with_the_same_samples(seed: int, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "generated").mkdir()
    one, two = tmp_path / "whole", tmp_path / "broken"
    whole = fits.Config(out="runs/whole/x/tell", seed=seed)
    cut = replace(whole, out="runs/broken/x/tell")

    def train(cfg: Any, notes: Path, at: int | None, pause: float) -> int:
        return int(
            fits.train(
                tmp_path,
                cfg,
                build=noting(fits.Tell, notes, at, pause),
                until=Until(Epochs(3)),
                checkpoint=Checkpoint(every=Updates(5)),
                monitor={"best": "val/even"},
            )
        )

    assert code_of(child(lambda: train(whole, one, None, 0.0))) == 0
    draw = random.Random(seed)
    hits = broken(lambda at: train(cut, two, at, 0.01), 48, draw, elsewhere=seed % 2 == 1)
    assert hits
    assert noted(one) == noted(two)
    assert len(noted(one)) == 48
    first, second = fits.final(tmp_path, whole), fits.final(tmp_path, cut)
    for state in ("model", "progress", "random"):
        fits.assert_same(first[state], second[state])
    best = [fits.final(tmp_path, cfg, "best") for cfg in (whole, cut)]
    fits.assert_same(*best)
    for split in ("floor", "val", "test"):  # of train a stop ends a window of averages early
        assert fits.lines(tmp_path, split, whole) == fits.lines(tmp_path, split, cut)


@pytest.mark.parametrize("seed", CASES)
def test_a_replay_goes_on_with_the_same_steps_and_the_same_draws(seed: int, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "generated").mkdir()
    one, two = tmp_path / "whole", tmp_path / "broken"
    whole = replays.Config(out="runs/whole/x/play", seed=seed)
    cut = replace(whole, out="runs/broken/x/play")

    def train(cfg: Any, notes: Path, at: int | None, pause: float) -> int:
        how = {"checkpoint": Checkpoint(every=Updates(4))}
        return int(replays.train(tmp_path, cfg, noting(replays.Small, notes, at, pause), **how))

    assert code_of(child(lambda: train(whole, one, None, 0.0))) == 0
    draw = random.Random(seed)
    hits = broken(lambda at: train(cut, two, at, 0.01), 31, draw, elsewhere=seed % 2 == 1)
    assert hits
    assert noted(one) == noted(two)
    replays.assert_goes_on(tmp_path, tmp_path, whole, cut)
