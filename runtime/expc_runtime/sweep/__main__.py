"""The entry of sweep.bash: ``python -m expc_runtime.sweep``.

Called without words by every sweep.sh, before anything else: it imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expc_runtime.state.plan import Layout

__all__ = ["main"]


def _list(layout: Layout, plan: BinaryIO, only: str) -> int:
    """Print the command of every stage instance once."""
    import fnmatch
    import shlex

    from expc_runtime.state.plan import tasks

    seen: set[str] = set()
    for task in tasks(plan, layout):
        if task.key not in seen and not task.skip and fnmatch.fnmatchcase(task.run, only):
            print(shlex.join(task.argv))
        seen.add(task.key)
    return 0


def _status(layout: Layout, plan: BinaryIO, only: str) -> int:
    """Print the table of what is there."""
    import fnmatch

    from expc_runtime.state.plan import tasks
    from expc_runtime.state.table import table

    chosen = (task for task in tasks(plan, layout) if fnmatch.fnmatchcase(task.run, only))
    print(table(chosen, layout.root), end="")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        print(os.path.join(os.path.dirname(os.path.abspath(__file__)), "sweep.bash"))
        return 0
    import argparse

    from expc_runtime.errors import MissingInput
    from expc_runtime.state.plan import Layout

    parser = argparse.ArgumentParser(prog="sweep", description="Called by sweep.bash.")
    parser.add_argument("mode", choices=["clerk", "list", "status"])
    parser.add_argument("experiment")
    parser.add_argument("folder")
    parser.add_argument("python")
    parser.add_argument("--only", default="*")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--grace", type=float, default=60.0)
    parser.add_argument("--notify", nargs="+", metavar=("FORM", "VARIABLE"))
    args = parser.parse_args(words)
    layout = Layout(args.experiment, args.folder, args.python, args.smoke)
    if args.mode == "clerk":
        from expc_runtime.sweep.serve import serve

        return serve(layout, args)
    show = _list if args.mode == "list" else _status
    try:
        return show(layout, sys.stdin.buffer, args.only)
    except MissingInput as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `| head` has seen enough
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
