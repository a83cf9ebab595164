"""A sweep to break: light stages that do all that a training does to files, and nothing else.

A stage takes steps, each of them in a chain of CRCs: one left out, done twice or taken from another
run shows in its last figure. It saves each step as a verified generation, keeps two, goes on from
the newest, saves when it is asked to stop, and leaves a result. No torch.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import expc_runtime
from expc_runtime.state import Status, process_start, read_result, read_status

RUNTIME = Path(expc_runtime.__file__).parent

STAGE = """
import json, os, signal, sys, time, zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from expc_runtime.flags import Run, parse
from expc_runtime.state import Result, claim, identity, parent_key
from expc_runtime.state.files import read_json, write_json
from expc_runtime.state.identity import planned

PROGRAM = "0123456789ab"


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/fake/by_hand/train"
    steps: int = 12
    pause: float = 0.02  # seconds of work a step
    do: str = ""  # what goes wrong, in the first attempt
    precision: str = "16-mixed"
    parent: str = ""


def main(cfg):
    out = Path(cfg.out)
    parents = {cfg.parent: parent_key(out, cfg.parent)} if cfg.parent else {}
    changed = {name: getattr(cfg, name) for name in planned(asdict(cfg))}
    key = identity(PROGRAM, asdict(cfg), parents)
    with claim(out, key, program=PROGRAM, module=__file__, changed=changed) as stage:
        if stage.verdict == "done":
            return 0
        asked = []
        signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
        say("begin", out)
        step, total = load(out)
        while step < cfg.steps:
            if cfg.do and stage.status.attempt == 1 and step == cfg.steps // 2:
                go_wrong(cfg.do, stage)
            time.sleep(cfg.pause)
            step += 1
            total = zlib.crc32(f"{cfg.seed} {step}".encode(), total)
            save(out, step, total)
            say("step", out, step)
            stage.beat(step=step, steps_target=cfg.steps, epoch=0, force=True)
            if asked:
                stage.interrupt("asked to stop; saved")
                return 75
        stage.finish(Result(step=step, metrics={"total": total}))
        say("finish", out)
    return 0


def go_wrong(what, stage):
    kind, _, argument = what.partition(":")
    if kind == "exit":
        os._exit(int(argument))
    if kind == "signal":
        os.kill(os.getpid(), int(argument))
    if kind == "raise":
        raise ValueError("no such column: digit")
    if kind == "fail":
        code, failure = argument.split(",")
        stage.fail(failure, f"told to end as {failure}", code=int(code))
        sys.exit(int(code))
    if kind == "hang":
        if argument == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(60)
        asked = []
        signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
        while not asked:
            time.sleep(0.02)
        stage.interrupt("asked to stop; saved")
        sys.exit(75)
    if kind == "silent":
        os._exit(0)


def save(out, step, total):
    folder = out / "checkpoints"
    folder.mkdir(exist_ok=True)
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink()
    held = {"step": step, "total": total, "crc": zlib.crc32(f"{step} {total}".encode())}
    path = folder / f"last-{step:04d}.json"
    write_json(path, held, durable=True)
    assert whole(path), path
    for old in sorted(folder.glob("last-*.json"))[:-2]:
        old.unlink()


def whole(path):
    held = read_json(path)
    if held and held.get("crc") == zlib.crc32(f"{held['step']} {held['total']}".encode()):
        return held["step"], held["total"]


def load(out):
    saved = [whole(path) for path in sorted((out / "checkpoints").glob("last-*.json"))]
    return max((one for one in saved if one), default=(0, 0))


def say(*words):
    with open("work.log", "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")


if __name__ == "__main__":
    raise SystemExit(main(parse(Config)))
"""

SWEEP = """#!/usr/bin/env bash
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." || exit 2  # the project root

experiment=fake
folder=generated/fake

policy() {
%s
}

runs() {
%s
}

source "$("${PYTHON:-python}" -m expc_runtime.sweep)" && sweep "$@"
"""

# A machine's clock, as somebody sets it: seconds to add are in a file. And a death by SIGKILL at the
# n-th call into the file system that touches the runs, of whoever has a word in its command.
CUSTOM = """
import os, signal, sys, time
_real = time.time
def _set():
    try:
        with open(os.environ["EXPC_TEST_CLOCK"]) as file:
            return float(file.read() or 0)
    except (KeyError, OSError):
        return 0.0
time.time = lambda: _real() + _set()
_word, _, _count = os.environ.get("EXPC_TEST_DIE", "").partition("@")
if _word:
    _left = [int(_count)]
    with open("/proc/self/cmdline", "rb") as file:
        _ours = _word.encode() in file.read()
    def _die(event, args):
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
            if "runs/" in str(args[0]) and "/proc/" not in str(args[0]):
                _left[0] -= 1
                if _left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
    if _ours:
        sys.addaudithook(_die)
"""


class Sweep:
    """A project with ``runs`` runs of two stages, and what is asked of it after each fault."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.draw = random.Random(seed)
        self.token = uuid.uuid4().hex
        self.folder = root / "generated/fake"
        self.folder.mkdir(parents=True)
        (root / "pyproject.toml").touch()
        (self.folder / "stage.py").write_text(STAGE)
        library = root / "library"  # sets the clock, and has no torch: the launcher loads fast
        library.mkdir()
        (library / "sitecustomize.py").write_text(CUSTOM)
        for name in ("torch", "pytorch_lightning", "numpy", "rich"):
            (library / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
        self.env = os.environ | {
            "PYTHON": sys.executable,
            "PYTHONPATH": f"{library}{os.pathsep}{RUNTIME.parent}",
            "EXPC_LAUNCHER": "0",
            "EXPC_GRACE": "2",
            "JOBS": "2",
            "EXPC_TEST_TOKEN": self.token,
            "EXPC_TEST_CLOCK": str(root / "clock"),
        }
        self.runs: dict[str, tuple[int, int]] = {}  # seed and steps, by run
        self._newest: dict[Path, int] = {}

    def plan(
        self, runs: int, flags: str = "", policy: tuple[str, ...] = (), steps: int = 12
    ) -> None:
        """``flags`` are of the training of the first run."""
        lines = []
        for seed in range(runs):
            more = flags if seed == 0 else ""
            lines += [
                f"run n={seed} {seed}",
                f"stage train stage.py -- --seed {seed} --steps {steps} {more}".rstrip(),
                f"stage judge stage.py --after train -- --parent train --seed {seed} --steps 2",
            ]
            self.runs[f"n={seed},seed={seed}"] = (seed, steps)
        text = SWEEP % ("\n".join(policy) or "  :", "\n".join(lines))
        (self.folder / "sweep.sh").write_text(text)

    def start(self, *words: str, prefix: tuple[str, ...] = (), **env: str) -> "Process":
        command = [*prefix, "bash", str(self.folder / "sweep.sh"), "--no-smoke", *words]
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, **how: str) -> tuple[int, str]:
        process = self.start(*words, **how)
        out, _ = process.communicate(timeout=120)
        self.observe()
        return process.returncode, out

    def work(self) -> list[str]:
        try:
            return (self.root / "work.log").read_text().splitlines()
        except FileNotFoundError:
            return []

    def progress(self, process: "Process", steps: int) -> bool:
        """Wait until so many more lines of work are there; whether the sweep still runs."""
        target = len(self.work()) + steps
        wait_for(lambda: len(self.work()) >= target or process.poll() is not None, "progress")
        time.sleep(self.draw.uniform(0, 0.04))
        return process.poll() is None

    def processes(self, *words: str) -> list[int]:
        """Those of ours whose command has all ``words``."""
        found = []
        mark = f"EXPC_TEST_TOKEN={self.token}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes():
                    command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if command and all(word in command for word in words):
                        found.append(int(path.name))
            except OSError:
                continue  # gone
        return found

    def stage_process(self) -> int | None:
        """A stage's process, whoever started it."""
        running = [
            status.pid
            for path in sorted((self.root / "runs/fake").glob("*/*/status.json"))
            if (status := read_status(path.parent)) is not None
            and status.state == "running"
            and process_start(status.pid) == status.process
        ]
        return self.draw.choice(running) if running else None

    def settled(self, process: "Process") -> str:
        """Wait until nothing of ours is left, as must be soon after a fault; the output."""
        out, _ = process.communicate(timeout=60)
        wait_for(lambda: not self.processes(), f"end of {self.processes()}")
        self.observe()
        return out

    def observe(self) -> None:
        """The newest whole checkpoint of each stage is never older than it was."""
        for folder in (self.root / "runs/fake").glob("*/*/checkpoints"):
            newest = max((step(path) for path in folder.glob("last-*.json")), default=0)
            assert newest >= self._newest.get(folder, 0), folder
            self._newest[folder] = newest
            assert len(list(folder.glob(".*.tmp"))) <= 1

    def status(self, name: str) -> Status:
        status = read_status(self.root / "runs/fake" / name)
        assert status is not None, name
        return status

    def finish(self) -> None:
        """Run again until done, as a person would; then nothing is lost, doubled or left over."""
        for _ in range(4):
            code, out = self.run()
            if code == 0:
                break
        assert code == 0, out
        self.assert_done()
        before = self.work()
        assert self.run()[0] == 0
        assert self.work() == before  # what is proved is not done again

    def assert_done(self) -> None:
        for run, (seed, steps) in self.runs.items():
            for stage, count in (("train", steps), ("judge", 2)):
                result = read_result(self.root / "runs/fake" / run / stage)
                assert result is not None and result.state == "done", f"{run}/{stage}"
                assert result.metrics["total"] == chain(seed, count), f"{run}/{stage}"
                assert self.status(f"{run}/{stage}").label == "done"
        self.assert_clean()
        begun: Counter[str] = Counter()
        for line in self.work():
            word, name, *_ = line.split()
            assert not begun[name], f"{line} after it had finished"
            begun[name] += word == "finish"
        events = (self.root / "runs/fake/events.jsonl").read_text().splitlines()
        told = Counter(
            (e["run"], e["stage"]) for e in map(parsed, events) if e.get("event") == "done"
        )
        assert not told or max(told.values()) == 1, told

    def assert_clean(self) -> None:
        assert self.processes() == []
        # Of the sweep's own folder, where others may write, what is old goes with the next start.
        assert list((self.root / "runs/fake").glob("*/**/.*.tmp")) == []
        young = list((self.root / "runs/fake").glob(".*.tmp"))
        for path in young:
            os.utime(path, (1, 1))
        if young:
            assert self.run()[0] == 0
            assert list((self.root / "runs/fake").glob(".*.tmp")) == []

    def table(self) -> str:
        return self.run("--status")[1]

    def end(self) -> None:
        for pid in self.processes():
            kill(pid)


Process = subprocess.Popen[str]


def parsed(line: str) -> dict[str, str]:
    try:
        event: dict[str, str] = json.loads(line)
    except ValueError:
        return {}  # torn
    return event


def chain(seed: int, steps: int) -> int:
    """The figure of a stage that did each of its steps once, in order."""
    total = 0
    for number in range(1, steps + 1):
        total = zlib.crc32(f"{seed} {number}".encode(), total)
    return total


def step(path: Path) -> int:
    """The step of a whole generation, 0 of a damaged one."""
    match = re.fullmatch(
        r'\{\s*"step": (\d+),\s*"total": (\d+),\s*"crc": (\d+)\s*\}\s*', path.read_text()
    )
    if match is None:
        return 0
    number, total, crc = map(int, match.groups())
    return number if zlib.crc32(f"{number} {total}".encode()) == crc else 0


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_for(there: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.01)


@pytest.fixture
def sweep(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sweep]:
    seed = zlib.crc32(request.node.name.encode())
    print(f"seed {seed} of {request.node.name}")
    sweep = Sweep(tmp_path, seed)
    yield sweep
    sweep.end()
