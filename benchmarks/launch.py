"""What it costs to start a run: CPU seconds, everything that works for it counted.

A smoke run of the small net of benchmarks/even.yaml is nearly all start: two updates, one batch
measured, a checkpoint, a result.

- cold: `python tell.py --smoke`, which loads torch and Lightning;
- forked: the same through a running launcher: caller, server and the forked process;
- in a sweep: what each further run adds to `sweep.sh --smoke` (launcher, state and bash included);
- 32 of them: a whole `sweep.sh --smoke`, with the launcher and without (EXPC_LAUNCHER=0).

The row "with nothing to do" is an empty script: what the launcher itself costs.

python -m benchmarks.launch     # Linux; five minutes, four of them for the 32 without
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import expc_runtime
from benchmarks.project import ROOT, compile_in
from benchmarks.ratios import at_most, cpu_of, in_turn, report, speed_up

LAUNCH = Path(expc_runtime.__file__).with_name("launch.py")
# One thread: a second one mostly spins while so small a net is at work, and that is no start.
ENV = os.environ | {
    "PYTHON": sys.executable,
    "PYTHONPATH": str(LAUNCH.parent.parent),
    "JOBS": "1",
    "OMP_NUM_THREADS": "1",
}
BUDGET = 0.3
FEW, MANY = 2, 10
TINY = 32
TICK = os.sysconf("SC_CLK_TCK")


def spec(seeds: int) -> str:
    text = (ROOT / "benchmarks/even.yaml").read_text()
    return f"{text}\nsweep:\n  seeds: [{', '.join(map(str, range(seeds)))}]\n"


@contextmanager
def server(folder: Path) -> Iterator[tuple[list[str], Callable[[], float]]]:
    """A launcher; gives the words that stand for `python`, and the CPU seconds spent on its side."""
    socket = folder / "socket"
    command = [sys.executable, "-m", "expc_runtime.launch", "serve", str(socket), str(os.getpid())]
    with subprocess.Popen(command, env=ENV, start_new_session=True) as process:

        def spent() -> float:
            """Of the server and of the runs that it has seen end: user and system, /proc's 14 to 17."""
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            return sum(map(int, stat[11:15])) / TICK

        try:
            yield [sys.executable, "-I", "-S", str(LAUNCH), "run", str(socket), "--"], spent
        finally:
            process.terminate()


def starts(folder: Path, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a start, cold and forked."""
    file = compile_in(folder, "even", spec(1)) / "tell.py"
    empty = file.with_name("empty.py")
    empty.touch()
    fresh = (str(folder / "runs" / str(n) / "tell") for n in itertools.count())

    with server(folder) as (python, spent):

        def cold() -> float:
            return cpu_of([sys.executable, str(file), "--smoke", "--out", next(fresh)], folder, ENV)

        def forked(script: Path) -> Callable[[], float]:
            def run() -> float:
                before = spent()
                callers = sum(
                    cpu_of([*python, str(script), "--smoke", "--out", next(fresh)], folder, ENV)
                    for _ in range(MANY)
                )
                return (callers + spent() - before) / MANY

            return run

        forked(empty)()  # the first one waits for the server to load
        variants = {"cold": cold, "forked": forked(file), "empty": forked(empty)}
        return in_turn(variants, rounds, warm_up=0)


def sweeps(folder: Path, rounds: int) -> list[float]:
    """CPU seconds that each further run adds to a sweep."""

    def sweep(seeds: int) -> Callable[[], float]:
        project = folder / str(seeds)
        project.mkdir()
        made = compile_in(project, "even", spec(seeds))

        def run() -> float:
            shutil.rmtree(project / "runs", ignore_errors=True)
            return cpu_of(["bash", str(made / "sweep.sh"), "--smoke"], project, ENV)

        return run

    costs = in_turn({"few": sweep(FEW), "many": sweep(MANY)}, rounds, warm_up=0)
    return [
        (many - few) / (MANY - FEW) for few, many in zip(costs["few"], costs["many"], strict=True)
    ]


def whole(folder: Path) -> tuple[float, float]:
    """CPU seconds of a sweep of `TINY` runs, with the launcher and without; each run is proved done."""
    made = compile_in(folder, "even", spec(TINY))

    def run(launcher: str) -> float:
        shutil.rmtree(folder / "runs", ignore_errors=True)
        command = ["bash", str(made / "sweep.sh"), "--smoke"]
        cost = cpu_of(command, folder, ENV | {"EXPC_LAUNCHER": launcher})
        proved = len(list((folder / "runs").glob("*/*/*/result.json")))
        if proved != TINY:
            raise RuntimeError(f"{proved} of {TINY} runs have a result")
        return cost

    return run("1"), run("0")


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU seconds of starting a run.")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    # Short, since the path of a socket holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="expc.") as made:
        alone, swept, tiny = (Path(made, name) for name in ("alone", "swept", "tiny"))
        for folder in (alone, swept, tiny):
            folder.mkdir()
        costs = starts(alone, rounds)
        added = sweeps(swept, rounds)
        with_, without = whole(tiny)
    return report(
        "Start of a run, CPU seconds",
        [
            at_most("one start through the launcher", costs["forked"], BUDGET, "s"),
            at_most("the same with nothing to do", costs["empty"], BUDGET, "s"),
            at_most("a further run of a sweep", added, BUDGET, "s"),
            speed_up("cold start / start through the launcher", costs["cold"], costs["forked"], 1),
            at_most(f"a sweep of {TINY} runs, each run's share", [with_ / TINY], BUDGET, "s"),
            speed_up(f"{TINY} runs: without / with the launcher", [without], [with_], 1),
        ],
    )


if __name__ == "__main__":
    raise SystemExit(main())
