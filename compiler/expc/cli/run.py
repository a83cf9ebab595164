"""`expc run`: a generated `sweep.sh`, `slurm.sh` or `ray.sh`, as it stands."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click


@click.command(short_help="run a sweep")
@click.argument("what", metavar="FOLDER|SPEC", type=click.Path(path_type=Path))
@click.option("--only", metavar="GLOB", help="Only runs whose name matches, such as 'loop=bce,*'.")
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at a time; 1 if not given."
)
@click.option(
    "--smoke/--no-smoke",
    default=None,
    help="Two updates of each run, in a folder of their own; or none of any. If neither is said, every module that has "
    "never run makes two updates before the first run starts.",
)
@click.option(
    "--backend",
    type=click.Choice(["local", "slurm", "ray"]),
    default="local",
    show_default=True,
    help="This machine, or a cluster that the spec declares.",
)
@click.option(
    "--wait",
    is_flag=True,
    help="With Slurm: wait for the last job, and exit as a local sweep does.",
)
def command(
    what: Path, only: str | None, jobs: int | None, smoke: bool | None, backend: str, wait: bool
) -> int:
    """Run the sweep of a generated FOLDER, or compile SPEC and run that.

    This is FOLDER/sweep.sh (slurm.sh, ray.sh) and nothing else; the command is printed. What a
    result.json proves done is not run again. Exits with 0 when all is done, 1 if anything failed or
    was blocked; with Slurm, unless it is to wait, with 0 when all is in the queue.
    """
    from expc.cli.needs import cluster, runtime

    runtime()
    if wait and backend != "slurm":
        raise click.UsageError("`--wait` is for `--backend slurm`; the others wait anyway.")
    if backend != "local":
        cluster(backend)
    folder = _compiled(what) if what.suffix in (".yaml", ".yml") else _folder(what)
    if folder is None:
        return 1
    script = folder / _SCRIPTS[backend]
    if not script.is_file():
        raise click.UsageError(_undeclared(folder, backend))
    words = ["--only", only] if only else []
    words += ["--jobs", str(jobs)] if jobs else []
    words += [] if smoke is None else ["--smoke" if smoke else "--no-smoke"]
    words += ["--wait"] if wait else []
    return _become([str(script), *words])


_SCRIPTS = {"local": "sweep.sh", "slurm": "slurm.sh", "ray": "ray.sh"}


def _undeclared(folder: Path, backend: str) -> str:
    from expc.cli.project import generated

    spec = _relative(generated(folder).spec)
    return (
        f"`{folder}` has no {_SCRIPTS[backend]}: its spec declares no {backend.capitalize()}. "
        f"Add `run: {{{backend}: {{}}}}` to {spec} and compile it: "
        f"expc compile {shlex.quote(str(spec))}"
    )


def _compiled(spec: Path) -> Path | None:
    """The folder of a spec, up to date; None when the spec does not compile."""
    from expc.build import folder_of, load
    from expc.cli.compile import command as compile_

    code = compile_.main([str(spec)], standalone_mode=False)
    return _relative(folder_of(load(spec)[1])) if code == 0 else None


def _folder(given: Path) -> Path | None:
    """A generated folder; None when its spec has errors. An out-of-date folder runs as it is, with a warning."""
    from expc.cli.project import generated
    from expc.cli.told import refuse

    folder = generated(given)
    if not (given / "sweep.sh").is_file():
        raise click.UsageError(f"`{given}` has lost its sweep.sh: expc compile writes it anew.")
    if folder.orphaned:
        click.echo(f"{given}: its spec {folder.spec.name} is gone; running what is there", err=True)
    elif refuse(folder.spec):
        return None
    elif _stale(folder.spec, folder.path):
        click.echo(
            f"{given} is not what its spec compiles to; running what is there "
            f"(to mend that: expc compile {shlex.quote(str(_relative(folder.spec)))})",
            err=True,
        )
    return given


def _stale(spec: Path, folder: Path) -> bool:
    """Whether a folder is out of date. An edited file is refused: results of other code would count as its own."""
    from expc.build import compiled, shown
    from expc.emit.render import render
    from expc.emit.write import refuse_edited, stale

    made = compiled(spec)
    name = shown(folder, made.experiment.root)
    rendered = render(made.experiment, made.plan, name)
    refuse_edited(rendered, folder, name)
    return bool(stale(rendered, folder))


def _relative(path: Path) -> Path:
    return Path(os.path.relpath(path))


def _become(argv: list[str]) -> int:
    """Turn into the script: its signals, its terminal and its exit code are then nobody's business but its own."""
    argv = [f"./{argv[0]}" if "/" not in argv[0] else argv[0], *argv[1:]]
    environment = {"PYTHON": sys.executable, **os.environ}
    click.echo(f"$ {shlex.join(argv)}")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe("bash", ["bash", *argv], environment)
