"""A project with a sweep of light stages, and clusters to run it on: a real Slurm, a real Ray."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

import expc_runtime
from expc_runtime.state import Result, Status, read_result, read_status

RUNTIME = Path(expc_runtime.__file__).parent
LAB = Path(__file__).with_name("slurm_single_node.sh")

STAGE = '''
"""A stage that does as its flags say. No torch."""

import json, os, signal, sys, time
from dataclasses import asdict, dataclass
from pathlib import Path

from expc_runtime.errors import MissingInput
from expc_runtime.flags import Run, parse
from expc_runtime.state import Result, claim, identity, parent_key
from expc_runtime.state.identity import planned

PROGRAM = "0123456789ab"


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/fake/by_hand/read"
    do: str = "finish"
    lr: float = 0.001
    precision: str = "16-mixed"
    parent: str = ""
    seconds: float = 0.0


def main(cfg):
    if cfg.do == "crash":
        raise ValueError("no such column: digit")
    out = Path(cfg.out)
    parents = {cfg.parent: parent_key(out, cfg.parent)} if cfg.parent else {}
    if cfg.do == "miss":
        print(MissingInput("weights/backbone.safetensors is not there"))
        return MissingInput.code
    changed = {name: getattr(cfg, name) for name in planned(asdict(cfg))}
    key = identity(PROGRAM, asdict(cfg), parents)
    with claim(out, key, program=PROGRAM, module="generated/fake/stage.py", changed=changed) as stage:
        (out / "checkpoints").mkdir(exist_ok=True)
        asked = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: asked.append(1))
        step = stage.status.step
        stage.beat(step=step, steps_target=10, epoch=0, force=True)
        if cfg.do == "diverge" and cfg.precision != "32":
            stage.fail("diverged", "loss is NaN at step 3", code=65, source="specs/x.yaml:4:9")
            return 65
        if cfg.do == "gate":
            stage.fail("gate", "val/accuracy 0.42, needs 0.9", code=3)
            return 3
        if cfg.do == "preempted" and step == 0:
            stage.beat(step=5, steps_target=10, epoch=0, force=True)
            stage.interrupt("asked to stop at step 5; saved")
            return 75
        if cfg.do == "hang" and step == 0:
            (out / "hangs").write_text(str(os.getpid()))
            while not asked:
                time.sleep(0.05)
            stage.beat(step=5, steps_target=10, epoch=0, force=True)
            stage.interrupt("asked to stop at step 5; saved")
            return 75
        time.sleep(cfg.seconds)
        state = "smoke" if cfg.smoke else "done"
        stage.finish(Result(
            state=state,
            parents=parents,
            metrics={"test/accuracy": 0.9 + cfg.seed / 100 + cfg.lr},
            floors={"test/accuracy": 0.1},
            step=10,
            extra={"devices": os.environ.get("CUDA_VISIBLE_DEVICES", "")},
        ))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(parse(Config)))
'''

SCRIPT = """#!/usr/bin/env bash
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." || exit 2

experiment=fake
folder=generated/fake
%s
"""


class Project:
    """A project in a folder of its own with one sweep of light stages."""

    def __init__(self, root: Path, env: dict[str, str]) -> None:
        self.root = root
        self.folder = root / "generated/fake"
        self.folder.mkdir(parents=True)
        (root / "pyproject.toml").touch()
        (self.folder / "stage.py").write_text(STAGE)
        self.env = {
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": str(RUNTIME.parent),
            "EXPC_LAUNCHER": "0",
            "EXPC_GRACE": "20",
            "RAY_USAGE_STATS_ENABLED": "0",
            **env,
        }
        self.begun: list[subprocess.Popen[str]] = []

    def plan(self, *lines: str, policy: tuple[str, ...] = ()) -> None:
        """What sweep.sh, slurm.sh and ray.sh run; ``policy`` are its limits and retries."""
        functions = [_function("policy", policy)] if policy else []
        functions.append(_function("runs", lines))
        runner = 'source "$("${PYTHON:-python}" -m expc_runtime.sweep)" && sweep "$@"'
        self._write("sweep.sh", [*functions, runner])
        self.ask()

    def ask(self, *slurm: str, ray: tuple[str, ...] = ()) -> None:
        """What each stage asks of Slurm and of Ray, as lines of their scripts."""
        for name, call, lines in (("slurm", "submit", slurm), ("ray", "drive", ray)):
            source = f'source "$("${{PYTHON:-python}}" -m expc_runtime.sweep.{name})"'
            body = [_function("jobs", lines or (":",)), f'{source} && {call} "$@"']
            self._write(f"{name}.sh", body)

    def _write(self, name: str, pieces: list[str]) -> None:
        (self.folder / name).write_text(SCRIPT % "\n".join(pieces))

    def start(self, script: str, *args: str, **env: str) -> "subprocess.Popen[str]":
        smoke = () if {"--smoke", "--rehearse"} & set(args) else ("--no-smoke",)
        words = [word for word in args if word != "--rehearse"]
        process = subprocess.Popen(
            ["bash", str(self.folder / script), *smoke, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.env | env,
            start_new_session=True,
        )
        self.begun.append(process)
        return process

    def run(self, script: str, *args: str, **env: str) -> tuple[int, str]:
        """Run a script to its end; its exit code and what it printed."""
        process = self.start(script, *args, **env)
        out, _ = process.communicate(timeout=180)
        return process.returncode, out

    def stage(self, name: str) -> Path:
        return self.root / "runs/fake" / name

    def label(self, name: str) -> str:
        """The state of ``<run>/<stage>``; empty if nobody has begun it."""
        status = read_status(self.stage(name))
        return status.label if status else ""

    def status(self, name: str) -> Status:
        status = read_status(self.stage(name))
        assert status is not None, name
        return status

    def result(self, name: str) -> Result:
        result = read_result(self.stage(name))
        assert result is not None, name
        return result

    def started(self) -> list[str]:
        """``run/stage`` of every attempt so far, in order."""
        lines = (self.root / "runs/fake/events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [f"{e['run']}/{e['stage']}" for e in events if e["event"] == "start"]

    def close(self) -> None:
        for process in self.begun:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _function(name: str, lines: tuple[str, ...]) -> str:
    return "\n".join([f"{name}() {{", *(f"  {line}" for line in lines), "}"])


class Slurm:
    """A Slurm of one node in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.env = {
            "SLURM_LAB": str(folder),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "CTLD_PORT": str(_port()),
            "SLURMD_PORT": str(_port()),
        }

    def lab(self, verb: str) -> None:
        """``start``, ``stop``, ``restart-controller``, ``fail-node``, ``resume-node``."""
        done = subprocess.run(
            ["bash", str(LAB), verb],
            env=os.environ | self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    def call(self, *words: str) -> str:
        return subprocess.run(
            words, env=os.environ | self.env, capture_output=True, text=True, check=True
        ).stdout


def _port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def slurm_cluster(need: Callable[[str, bool, str], None]) -> Iterator[Slurm]:
    there = all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch")))
    need("slurm", there, "Debian's slurm-wlm and munge are not installed")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    slurm = Slurm(folder)
    try:
        slurm.lab("start")
        yield slurm
    finally:
        slurm.lab("stop")
        shutil.rmtree(folder)


@pytest.fixture
def slurm(slurm_cluster: Slurm) -> Iterator[Slurm]:
    """A Slurm with an empty queue."""
    yield slurm_cluster
    slurm_cluster.call("scancel", "--user", str(os.getuid()))
    _wait_for(lambda: not slurm_cluster.call("squeue", "-h"), "empty queue")


@pytest.fixture
def ray(need: Callable[[str, bool, str], None]) -> None:
    need("ray", find_spec("ray") is not None, "expc[ray] is not installed")


@pytest.fixture(scope="session")
def project_at() -> Callable[[Path], Project]:
    """Makes a project for this machine alone."""
    return lambda root: Project(root, {})


@pytest.fixture
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Project]:
    """With the environment of Slurm where the test has one."""
    names = request.fixturenames
    env = request.getfixturevalue("slurm").env if "slurm" in names else {}
    project = Project(tmp_path, env)
    yield project
    project.close()


@pytest.fixture
def wait_for() -> Callable[..., None]:
    return _wait_for


def _wait_for(there: Callable[[], object], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.1)
