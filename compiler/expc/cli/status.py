"""`expc status`: where runs stand, beside the floors that a constant answer reaches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click


@click.command(short_help="show where runs stand and what they reached")
@click.argument("experiment", required=False)
def command(experiment: str | None) -> int:
    """Show the table of EXPERIMENT, or of every experiment that has runs.

    One row for each condition: states, figures as mean and deviation over seeds, and in brackets
    the floor that a constant answer reaches.
    """
    from expc.cli.project import near, project

    root = project()
    known = list(dict.fromkeys(_experiments(root)))
    if experiment is None:
        if not known:
            click.echo("nothing has run yet")
        for name in known:
            click.echo(_table(root, name))
        return 0
    name = Path(experiment).name
    if name not in known and not _script(root, name).is_file():
        raise click.UsageError(f"There is no experiment `{name}` under runs/.{near(name, known)}")
    click.echo(_table(root, name), nl=False)
    return 0


def _experiments(root: Path) -> Iterator[str]:
    for folder in sorted((root / "runs").glob("*")):
        if folder.is_dir() and not folder.name.startswith("."):
            yield folder.name


def _script(root: Path, name: str) -> Path:
    return root / "generated" / name.removesuffix(".smoke") / "sweep.sh"


def _table(root: Path, name: str) -> str:
    script = _script(root, name)
    body = _of_plan(script, name) if script.is_file() else _of_disk(root, name)
    return f"{name}\n\n{body}" if body.strip() else f"{name}\n\nno runs of a sweep\n"


def _of_plan(script: Path, name: str) -> str:
    """Every run of the sweep, those that have not begun among them: the script knows its own plan."""
    words = ["bash", str(script), "--status", *(["--smoke"] if name.endswith(".smoke") else [])]
    environment = {"PYTHON": sys.executable, **os.environ}
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        return done.stderr or f"{script} --status ended with {done.returncode}\n"
    return done.stdout


def _of_disk(root: Path, name: str) -> str:
    """What is there, when no generated folder says what should be."""
    from expc_runtime.state.plan import Task
    from expc_runtime.state.records import read_status
    from expc_runtime.state.table import table

    runs = root / "runs" / name
    tasks = []
    folders = sorted(file.parent for file in runs.glob("*/*/status.json"))
    for index, folder in enumerate(folders, start=1):
        run, stage = folder.parent.name, folder.name
        condition, _, seed = run.rpartition("seed=")
        status = read_status(folder)
        if status is not None and ".was-" not in stage:
            key = status.key
            tasks.append(Task(index, run, condition.strip(",") or run, seed, stage, key=key))
    return table(tasks, runs) if tasks else ""
