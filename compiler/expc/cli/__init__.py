"""The command line. `expc --help` imports click alone: a command's module is imported when it runs."""

from __future__ import annotations

import gc
import os
import sys

from expc.cli.group import Commands
from expc.cli.trouble import guarded

COMMANDS = Commands(
    name="expc",
    help="Compile machine-learning experiments: one YAML spec in, readable PyTorch Lightning out.",
    table={
        "Start": {
            "new": "make a project that lints, compiles, tests and runs",
        },
        "Write": {
            "lint": "say what is wrong with specs before an hour of compute is spent",
            "profile": "read the data once: what lint and plan then know of it",
            "show": "print a spec with everything filled in, and where each value is from",
            "schema": "print what a spec may hold, as JSON Schema for editors",
            "rule": "explain a rule of lint",
        },
        "Compile": {
            "compile": "write the modules and scripts of a spec",
            "check": "fail if generated files are not what their specs compile to",
            "plan": "say what would run, what an edit makes out of date, and why",
            "where": "find the place in the spec behind a generated line, or the reverse",
            "own": "take a generated file over: expc will not touch it again",
        },
        "Run": {
            "run": "run a sweep; whatever is proved done is not run again",
            "status": "show where runs stand and what they reached",
            "monitor": "watch a sweep while it runs",
            "report": "write an experiment's results as one HTML file",
            "export": "write trained weights as safetensors or ONNX",
            "clean": "delete leftovers of compiling, or an experiment's results",
        },
    },
)


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 clean, 1 findings or failed runs, 2 usage or crash."""
    os.environ.setdefault(
        "PYDANTIC_DISABLE_PLUGINS", "__all__"
    )  # looking for them is start-up time
    gc.set_threshold(100_000, 20, 20)  # a command lives for less than a second
    return guarded(COMMANDS, sys.argv[1:] if argv is None else argv)
