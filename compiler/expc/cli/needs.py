"""What a command needs beside the compiler, said before it starts."""

from __future__ import annotations

from importlib.util import find_spec
from shutil import which

import click


def runtime() -> None:
    """Raises `click.UsageError` when torch and Lightning are not installed. They are looked for, not imported."""
    _installed("runtime", "torch", "pytorch_lightning", "torchmetrics")


def cluster(backend: str) -> None:
    """Raises `click.UsageError` when what `slurm` or `ray` needs is not on this machine."""
    if backend == "ray":
        _installed("ray", "ray")
    elif which("sbatch") is None:
        raise click.UsageError(
            "This needs Slurm's `sbatch`, which is not on this machine: submit from a login node."
        )


def scaffold() -> None:
    """Raises `click.UsageError` when cookiecutter is not installed."""
    _installed("new", "cookiecutter")


def _installed(extra: str, *modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise click.UsageError(
            f"This needs {', '.join(missing)}: install expc[{extra}], "
            f"for instance with `pip install 'expc[{extra}]'`."
        )
