"""What `expc` costs before and while it works, in CPU seconds beside `python -c "import click"`.

Each command runs as the installed `expc` does, a process each, in a project of its own that holds
specs/digits.yaml: help; lint without a cache, and with one; compile where nothing has changed (and
nothing may be written). Then 1,000 different specs in one process of lint, and the peak memory, by
tracemalloc, of planning a grid of 1,000,000 points beside a line of as many values.

python -m benchmarks.startup    # about a minute and a half
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.project import ROOT, compile_in, write_spec
from benchmarks.ratios import Verdict, at_most, cpu_of, in_turn, ratio, report

EXPC = [sys.executable, "-c", "import sys; from expc.cli import main; sys.exit(main())"]
CLICK = [sys.executable, "-c", "import click"]
DIGITS = (ROOT / "specs/digits.yaml").read_text()
EVEN = (ROOT / "benchmarks/even.yaml").read_text()
SPECS = 1000

PEAK = """
import sys, tracemalloc
from pathlib import Path
from expc.build import compiled, folder_of, shown
from expc.emit.render import render

def planned(path):
    made = compiled(Path(path))
    render(made.experiment, made.plan, shown(folder_of(made.experiment), made.experiment.root))
    return made.plan.runs

planned(sys.argv[1])  # imports and caches
tracemalloc.start()
print(planned(sys.argv[2]), tracemalloc.get_traced_memory()[1])
"""


def commands(folder: Path, rounds: int) -> list[Verdict]:
    """Help, lint and compile of one spec, as ratios."""
    made = compile_in(folder, "digits", DIGITS)
    before = _written(made)

    def expc(*words: str) -> Callable[[], float]:
        return lambda: cpu_of([*EXPC, *words], folder)

    costs = in_turn(
        {
            "click": lambda: cpu_of(CLICK, folder),
            "help": expc("--help"),
            "cold": expc("lint", "--no-cache", "specs/digits.yaml"),
            "cached": expc("lint", "specs/digits.yaml"),
            "compile": expc("compile", "specs/digits.yaml"),
        },
        rounds,
    )
    if _written(made) != before:
        raise RuntimeError("compiling an unchanged spec has written a file")
    return [
        ratio("expc --help / import click", costs["help"], costs["click"], 1.5),
        ratio("expc lint, no cache / import click", costs["cold"], costs["click"], 5),
        ratio("expc lint, cached / import click", costs["cached"], costs["click"], 2),
        ratio("expc compile, unchanged / import click", costs["compile"], costs["click"], 5),
    ]


def _written(folder: Path) -> dict[Path, tuple[int, int]]:
    """Which file was written when; a file that is written and put in place is another inode."""
    return {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.rglob("*")}


def many(folder: Path, rounds: int) -> list[Verdict]:
    """Milliseconds of each of many specs: without a sweep, and with the sweep of the digits."""
    kinds = {"even": EVEN, "digits": DIGITS}
    for name, text in kinds.items():
        project = folder / name
        project.mkdir()
        for n in range(SPECS):
            other = text.replace(f"name: {name}", f"name: {name}{n}")
            write_spec(project, f"{name}{n}", other.replace("lr: 3.0e-3", f"lr: {3 + n / 1000}e-3"))

    def each(project: Path) -> Callable[[], float]:
        words = [*EXPC, "lint", "--no-cache", "specs"]
        return lambda: 1000 * cpu_of(words, project) / SPECS

    costs = in_turn({name: each(folder / name) for name in kinds}, rounds, warm_up=0)
    return [
        at_most(f"expc lint of {SPECS:,} specs, each", costs["even"], 3, "ms", note="no sweep"),
        at_most("the same", costs["digits"], 3, "ms", note="sweeps of 8 conditions"),
    ]


def grid(folder: Path) -> list[Verdict]:
    """Peak memory of planning: it may grow with the values that are written, not with the points."""
    line = _peak(folder, rates=298, decays=1, seeds=1)
    cube = _peak(folder, rates=100, decays=100, seeds=100)
    peaks = f"{cube / 2**20:.2f} / {line / 2**20:.2f} MiB"
    return [ratio("peak of a grid, 1,000,000 points / 298", [cube], [line], 1.1, note=peaks)]


def _peak(folder: Path, rates: int, decays: int, seeds: int) -> int:
    """Bytes at the peak of planning and rendering a grid."""
    text = f"{EVEN}\nsweep:\n  seeds: {list(range(seeds))}\n  grid:\n"
    text += f"    tell.optim.lr: {[round(1e-3 + n * 1e-5, 5) for n in range(rates)]}\n"
    text += f"    tell.optim.weight_decay: {[round(1e-2 + n * 1e-4, 5) for n in range(decays)]}\n"
    file = write_spec(folder, "even", text)
    plain = write_spec(folder, "plain", EVEN.replace("name: even", "name: plain"))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(plain), str(file)],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    planned, peak = map(int, done.stdout.split())
    if planned != rates * decays * seeds:
        raise RuntimeError(f"{planned:,} points are planned, not {rates * decays * seeds:,}")
    return peak


def main() -> int:
    parser = argparse.ArgumentParser(description="Start-up and size of the compiler's work.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as made:
        folders = [Path(made, name) for name in ("one", "many", "grid")]
        for folder in folders:
            folder.mkdir()
        verdicts = [
            *commands(folders[0], rounds),
            *many(folders[1], max(1, rounds // 5)),
            *grid(folders[2]),
        ]
    return report("The command line, CPU time", verdicts)


if __name__ == "__main__":
    raise SystemExit(main())
