"""Ask a process that has torch: JSON in, JSON out. The compiler itself never imports it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class ChildFailed(Exception):
    """The process gave no answer. The message is one line for a person."""


def ask(module: str, question: Any, root: Path, *, progress: bool = False) -> Any:
    """Run `python -m MODULE` from the project root with `question` on its standard input; returns its answer.

    Both are JSON. The answer is the last line of its standard output: a user's own code, which it may import, can print
    what it likes before that. `-P` keeps files of the project from standing in for installed modules; the child
    itself puts the root on the path where own code needs it. With `progress`, what it says on its standard error is
    passed on as it comes.

    Raises `ChildFailed`: it ended without an answer (killed, no memory, a package that is broken).
    """
    told = subprocess.run(
        [sys.executable, "-P", "-m", module],
        check=False,
        input=json.dumps(question),
        stdout=subprocess.PIPE,
        stderr=None if progress else subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=root,
    )
    last = _last(told.stdout)
    try:
        if told.returncode == 0:
            return json.loads(last)
    except ValueError:
        pass
    said = "what it said stands above" if progress else _last(told.stderr)
    raise ChildFailed(f"`python -m {module}` {_ended(told.returncode)}: {said}")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _ended(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with {code} and no answer"
