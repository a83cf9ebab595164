"""The entry of ray.sh: ``python -m expc_runtime.sweep.ray``."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from expc_runtime.errors import DiskFull, MissingInput, StageError, known
from expc_runtime.state.plan import Layout

__all__ = ["main"]

_PLAN, _JOBS = 3, 4  # descriptors that cluster.bash opens


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        print(Path(__file__).parent.with_name("cluster.bash"))
        return 0
    args = _parse(words)
    if find_spec("ray") is None:
        print("sweep: Ray is not installed here: pip install 'expc[ray]'", file=sys.stderr)
        return 2
    from expc_runtime.sweep.ray.driver import drive

    layout = Layout(args.experiment, args.folder, args.python, bool(args.smoke))
    try:
        with open(_JOBS, "rb") as jobs, open(_PLAN, "rb") as plan:
            return drive(layout, args, jobs, plan)
    except MissingInput as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except (OSError, StageError) as error:
        told = known(error) or DiskFull(str(error))
        print(f"sweep: {type(told).__name__}: {told}", file=sys.stderr)
        return told.code


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ray.sh", description="A sweep on Ray.")
    for name in ("experiment", "folder", "python"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.usage = "ray.sh [--only RUN-GLOB] [--jobs N] [--smoke | --no-smoke]"
    parser.add_argument("--only", default="*", metavar="RUN-GLOB", help="only runs that match")
    parser.add_argument("--jobs", type=_count, metavar="N", help="stages at a time")
    parser.add_argument(
        "--smoke",
        action=argparse.BooleanOptionalAction,
        help="two updates of each run; or none of any before the sweep",
    )
    parser.add_argument("--address", default="", help=argparse.SUPPRESS)
    parser.add_argument("--notify", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    args.rehearse = args.smoke is None
    args.grace = float(os.environ.get("EXPC_GRACE", "60"))
    return args


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
