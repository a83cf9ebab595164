"""What leaves a command: an exit code, and for every kind of failure one clear message."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

import click

from expc.cli.group import ReaderGone

if TYPE_CHECKING:
    from expc.findings import SpecError

CLEAN, FINDINGS, USAGE = 0, 1, 2
_INTERRUPTED, _PIPE = 130, 141


def guarded(command: click.Command, argv: list[str]) -> int:
    """Run a command; no traceback and no broken pipe reaches a person."""
    try:
        code = command.main(list(argv), prog_name="expc", standalone_mode=False)
        return code if isinstance(code, int) else CLEAN
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("expc: stopped", err=True)
        return _INTERRUPTED
    except ReaderGone:
        _silence()
        return _PIPE
    except Exception as error:  # noqa: BLE001  # a person must never see a traceback
        return _failed(error)


def _silence() -> None:
    """Nobody reads any more: what is still buffered goes nowhere, not into an error at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(error: Exception) -> int:
    from expc.findings import SpecError

    if isinstance(error, SpecError):
        return _refused(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"expc: {place}{error.strerror or error}", err=True)
        return USAGE
    if os.environ.get("EXPC_DEBUG") == "1":
        raise error
    said = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    click.echo(
        f"expc: this is a bug in expc, please report it: {said} (in {_place(error.__traceback__)}); "
        "EXPC_DEBUG=1 shows the traceback",
        err=True,
    )
    return USAGE


def _place(trace: TracebackType | None) -> str:
    """The deepest line of ours: what a report needs most."""
    place = "expc"
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.split(".")[0] in ("expc", "expc_runtime"):
            place = f"{module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _refused(error: SpecError) -> int:
    from expc.cli.told import tell

    tell(error.findings)
    return FINDINGS
