"""What a command needs beside the compiler, said before it starts."""

from __future__ import annotations

from importlib.util import find_spec

import click


def runtime() -> None:
    """Raises `click.UsageError` when torch and Lightning are not installed. They are looked for, not imported."""
    _installed("runtime", "torch", "pytorch_lightning", "torchmetrics")


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
