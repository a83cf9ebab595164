"""The entry of slurm.sh and of its jobs: ``python -m expc_runtime.sweep.slurm``."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from expc_runtime.errors import DiskFull, MissingInput, StageError, known
from expc_runtime.state.plan import Layout
from expc_runtime.sweep.console import Console
from expc_runtime.sweep.slurm.settle import settle
from expc_runtime.sweep.slurm.submission import Submission
from expc_runtime.sweep.slurm.submit import submit
from expc_runtime.sweep.slurm.task import run

__all__ = ["main"]

_PLAN, _JOBS = 3, 4  # descriptors that cluster.bash opens


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    match sys.argv[1:] if argv is None else list(argv):
        case []:
            print(Path(__file__).parent.with_name("cluster.bash"))
            return 0
        case ["task", folder, array]:
            job, number = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
            return _told(lambda: run(Path(folder), array, int(number), f"{job}_{number}"))
        case ["settle", folder]:
            return _told(lambda: _settle(Path(folder)))
        case words:
            return _told(lambda: _submit(words))


def _submit(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="slurm.sh", description="A sweep as jobs of Slurm.")
    parser.add_argument("experiment", help=argparse.SUPPRESS)
    parser.add_argument("folder", help=argparse.SUPPRESS)
    parser.add_argument("python", help=argparse.SUPPRESS)
    parser.usage = "slurm.sh [--only RUN-GLOB] [--jobs N] [--smoke | --no-smoke] [--wait]"
    parser.add_argument("--only", default="*", metavar="RUN-GLOB", help="only runs that match")
    parser.add_argument(
        "--jobs", type=_count, dest="at_once", metavar="N", help="tasks of an array at a time"
    )
    parser.add_argument(
        "--smoke",
        action=argparse.BooleanOptionalAction,
        help="two updates of each run; or none of any before the sweep",
    )
    parser.add_argument(
        "--wait", action="store_true", help="wait for the last job, and exit as sweep.sh does"
    )
    parser.add_argument("--notify", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    args.rehearse = args.smoke is None
    layout = Layout(args.experiment, args.folder, args.python, bool(args.smoke))
    with open(_JOBS, "rb") as jobs, open(_PLAN, "rb") as plan:
        return submit(layout, args, jobs, plan)


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def _settle(folder: Path) -> int:
    submission = Submission.read(folder)
    root = submission.layout.root if submission else folder
    return settle(folder, Console(1, root / "sweep.log"))


def _told(work: Callable[[], int]) -> int:
    """``work``, with what went wrong told in a line."""
    try:
        return work()
    except MissingInput as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except (OSError, StageError) as error:
        told = known(error) or DiskFull(str(error))
        print(f"sweep: {type(told).__name__}: {told}", file=sys.stderr)
        return told.code


if __name__ == "__main__":
    raise SystemExit(main())
