"""200 short runs, a tenth of them with failures of five classes, here, on Slurm and on Ray.

The tables of all must be equal, times aside; then what each run costs beside GNU parallel and a bare
Slurm array of the same commands. Those start each command once, know no result, retry nothing and
write no table. Slurm and Ray are real, of one node on this machine, with eight places, as here.

python -m benchmarks.sweep                     # several minutes; leaves out what is not installed
python -m benchmarks.sweep --runs 50 --only local parallel
"""

import argparse
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import expc_runtime
from benchmarks.project import ROOT
from benchmarks.ratios import machine
from expc_runtime.state import read_status

RUNTIME = Path(expc_runtime.__file__).parent
LAB = ROOT / "tests/cluster/slurm_single_node.sh"
PLACES = 8
TIMEOUT = 10  # seconds of an attempt
CLASSES = ("crash", "diverged", "oom", "timed_out", "killed")
POLICY = (
    f"limit train --timeout {TIMEOUT}",
    "retry train diverged --times 1 -- --precision 32",
    "retry train oom --times 2 -- --microbatch half",
    "retry train killed --times 1",
)
# A class of failure and what must come of it: the state, and the attempts.
EXPECTED = {
    "": ("done", 1),
    "crash": ("failed(crash)", 1),
    "diverged": ("done", 2),
    "oom": ("done", 3),
    "timed_out": ("failed(timed_out)", 1),
    "killed": ("done", 2),
}
_TIME = re.compile(r"\s+(time|-|\d+(\.\d)? s|\d+ min \d\d s)$")


def fault(number: int) -> str:
    """Of run ``number``: every tenth has one, the classes in turn."""
    return CLASSES[number // 10 % len(CLASSES)] if number % 10 == 9 else ""


def flags(number: int) -> list[str]:
    given = fault(number)
    return ["--seed", str(number), *(["--fault", given] if given else [])]


class Trial:
    """A project in a folder of its own with one sweep."""

    def __init__(self, root: Path, runs: int, env: dict[str, str]) -> None:
        self.root, self.runs = root, runs
        self.folder = root / "generated/trial"
        self.folder.mkdir(parents=True)
        (root / "pyproject.toml").touch()
        shutil.copy(Path(__file__).with_name("sweep_stage.py"), self.folder / "stage.py")
        self.env = os.environ | {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(RUNTIME.parent),
            "EXPC_GRACE": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            **env,
        }
        lines = []
        for number in range(runs):
            lines += [
                f"run 'n={number // 10}' {number}",
                f"stage train stage.py -- {shlex.join(flags(number))}",
            ]
        sourced = 'source "$("${PYTHON:-python}" -m expc_runtime.sweep'
        self._script("sweep.sh", {"policy": POLICY, "runs": lines}, f'{sourced})" && sweep "$@"')
        self._script("slurm.sh", {"jobs": [":"]}, f'{sourced}.slurm)" && submit "$@"')
        self._script(
            "ray.sh", {"jobs": ["job train --cpus 0.25"]}, f'{sourced}.ray)" && drive "$@"'
        )

    def _script(
        self, name: str, functions: "dict[str, list[str] | tuple[str, ...]]", end: str
    ) -> None:
        head = [
            "#!/usr/bin/env bash",
            "set -uo pipefail",
            'cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." || exit 2',
            "experiment=trial",
            "folder=generated/trial",
        ]
        body = [f"{name}() {{\n" + "\n".join(lines) + "\n}" for name, lines in functions.items()]
        (self.folder / name).write_text("\n".join([*head, *body, end, ""]))

    def command(self, number: int) -> list[str]:
        """What a run starts, as one would write it by hand, with its time limit."""
        out = f"runs/trial/by_hand/{number}/train"
        limit = ["timeout", "--kill-after", "1", str(TIMEOUT)]
        return [*limit, sys.executable, "generated/trial/stage.py", *flags(number), "--out", out]

    def call(self, *words: str, **env: str) -> str:
        done = subprocess.run(
            words, cwd=self.root, env=self.env | env, capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{words} exits {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def table(self) -> list[str]:
        out = self.call("bash", "generated/trial/sweep.sh", "--status")
        return [_TIME.sub("", line) for line in out.splitlines()]

    def outcomes(self) -> dict[str, tuple[str, int, str]]:
        """State, attempts and changed settings of every run."""
        found = {}
        for path in sorted(self.root.glob("runs/trial/*/train/status.json")):
            status = read_status(path.parent)
            assert status is not None, path
            changed = ", ".join(f"{k}={v}" for k, v in sorted(status.changed.items()))
            found[path.parent.parent.name] = (status.label, status.attempt, changed)
        return found


def _script(name: str, *words: str, **env: str) -> Callable[[Trial], None]:
    def run(trial: Trial) -> None:
        trial.call("bash", f"generated/trial/{name}", "--no-smoke", *words, **env)

    return run


def _parallel(trial: Trial) -> None:
    commands = "\n".join(shlex.join(trial.command(n)) for n in range(trial.runs))
    subprocess.run(
        ["parallel", "-j", str(PLACES), "--will-cite", "--joblog", "joblog"],
        input=commands,
        cwd=trial.root,
        env=trial.env,
        text=True,
        check=False,  # it exits with the number of failures
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _array(trial: Trial) -> None:
    commands = "\n".join(shlex.join(trial.command(n)) for n in range(trial.runs))
    (trial.root / "commands").write_text(commands + "\n")
    script = '#!/bin/bash\neval "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" commands)"\n'
    (trial.root / "array.sh").write_text(script)
    last = trial.runs - 1
    subprocess.run(  # exits with the highest code of its tasks
        ["sbatch", "--wait", "--output=/dev/null", f"--array=0-{last}", "array.sh"],
        cwd=trial.root,
        env=trial.env,
        check=False,
        stdout=subprocess.DEVNULL,
    )


@dataclass(frozen=True)
class Way:
    """A way to run them."""

    run: Callable[[Trial], None]
    ours: bool = True
    needs: tuple[str, ...] = ()


WAYS = {
    "local": Way(_script("sweep.sh", "--jobs", str(PLACES), EXPC_LAUNCHER="0")),
    "launcher": Way(_script("sweep.sh", "--jobs", str(PLACES))),
    "slurm": Way(_script("slurm.sh", "--wait"), needs=("sbatch", "slurmctld", "munged")),
    "ray": Way(_script("ray.sh", "--jobs", str(PLACES)), needs=("ray",)),
    "parallel": Way(_parallel, ours=False, needs=("parallel",)),
    "array": Way(_array, ours=False, needs=("sbatch", "slurmctld", "munged")),
}


def there(name: str) -> bool:
    return all(find_spec(n) if n == "ray" else shutil.which(n) for n in WAYS[name].needs)


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A Slurm of one node; what the environment must hold to reach it."""
    env = {
        "SLURM_LAB": str(folder),
        "SLURM_CONF": str(folder / "slurm.conf"),
        "CTLD_PORT": str(_port()),
        "SLURMD_PORT": str(_port()),
        "NODE_CPUS": str(PLACES),
    }

    def lab(verb: str) -> None:
        with (folder.parent / "lab.log").open("w+") as log:  # a pipe would be held by its daemons
            code = subprocess.call(
                ["bash", str(LAB), verb],
                env=os.environ | env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            if code:
                raise RuntimeError(f"{LAB.name} {verb} exits {code}:\n{log.seek(0) or log.read()}")

    lab("start")
    try:
        yield env
    finally:
        lab("stop")


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def trials(folder: Path, runs: int, names: list[str]) -> dict[str, tuple[Trial, float]]:
    """Each way's project after its sweep, and the seconds that it took."""
    made: dict[str, tuple[Trial, float]] = {}
    with ExitStack() as stack:
        env: dict[str, str] = {}
        if any("sbatch" in WAYS[name].needs for name in names):
            env = stack.enter_context(slurm(folder / "lab"))
        for name in names:
            trial = Trial(folder / name, runs, env)
            began = time.perf_counter()
            WAYS[name].run(trial)
            made[name] = trial, time.perf_counter() - began
            print(f"  {name:<10} {made[name][1]:7.1f} s", flush=True)
    return made


def differences(made: dict[str, tuple[Trial, float]], runs: int) -> list[str]:
    """Where a way of ours says something else than it should, or than another one."""
    wrong = []
    tables = {name: trial.table() for name, (trial, _) in made.items() if WAYS[name].ours}
    for name in tables:
        outcomes = made[name][0].outcomes()
        if len(outcomes) != runs:
            wrong.append(f"{name}: {len(outcomes)} of {runs} runs have a status")
        for run, (label, attempt, _) in outcomes.items():
            expected = EXPECTED[fault(int(run.rpartition("=")[2]))]
            if (label, attempt) != expected:
                wrong.append(f"{name}: {run} is {(label, attempt)}, not {expected}")
    first = next(iter(tables), "")
    for name, table in tables.items():
        same = outcomes_of(made, first) == outcomes_of(made, name)
        if table != tables[first] or not same:
            wrong.append(f"the table of {name} is not that of {first}")
    return wrong


def outcomes_of(made: dict[str, tuple[Trial, float]], name: str) -> dict[str, tuple[str, int, str]]:
    return made[name][0].outcomes()


def main() -> int:
    parser = argparse.ArgumentParser(description="A sweep with failures on every back end.")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    names = [name for name in args.only if there(name)]
    for name in set(args.only) - set(names):
        print(f"  {name} is left out: not installed")
    faults = Counter(fault(n) for n in range(args.runs))
    attempts = sum(EXPECTED[what][1] * count for what, count in faults.items())
    print(
        f"{args.runs} runs, {args.runs - faults['']} with a failure, {attempts} attempts  [{machine()}]"
    )
    with tempfile.TemporaryDirectory(prefix="expc.") as made_in:
        made = trials(Path(made_in), args.runs, names)
        wrong = differences(made, args.runs)
    for line in wrong:
        print(f"  WRONG {line}")
    each = {n: took / (attempts if WAYS[n].ours else args.runs) for n, (_, took) in made.items()}
    for name, seconds in each.items():
        beside = [
            f"{seconds / each[o]:.2f}x {o}"
            for o in ("parallel", "array")
            if o in each and o != name
        ]
        print(f"  {name:<10} {1000 * seconds:6.0f} ms an attempt  {', '.join(beside)}")
    if not wrong:
        print(f"  equal tables: {', '.join(n for n in names if WAYS[n].ours)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
