"""The command line as a whole: its names, its help, and what it says when something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from expc import __version__
from expc.cli import COMMANDS, main
from expc.findings import Finding, Span, SpecError

NAMES = (
    *(
        "new",
        "lint",
        "profile",
        "show",
        "schema",
        "rule",
        "compile",
        "check",
        "plan",
        "where",
        "own",
    ),
    *("run", "status", "monitor", "report", "export", "clean"),
)


def test_the_names_of_the_commands_are_frozen() -> None:
    assert sorted(COMMANDS.list_commands(None)) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_page_with_its_arguments(name: str, expc) -> None:
    said = expc(name, "--help")
    assert said.code == 0
    assert said.out.startswith(f"Usage: expc {name} ")
    about = said.out.split("\n\n")[1]
    assert about.strip().endswith((".", ":")) or "." in about


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_what_the_command_says_of_itself(name: str) -> None:
    table = {key: text for part in COMMANDS.table.values() for key, text in part.items()}
    command = COMMANDS.get_command(None, name)
    assert isinstance(command, click.Command)
    assert table[name].startswith(command.short_help.split(",")[0])


def test_help_lists_every_command_and_no_other(expc) -> None:
    said = expc("--help")
    listed = [
        line.split()[0]
        for line in said.out.splitlines()
        if line.startswith("  ") and line[2:3].isalpha()
    ]
    assert said.code == 0
    assert [name for name in listed if name in NAMES] == COMMANDS.list_commands(None)
    assert all(name in said.out for name in NAMES)


def test_help_fits_a_narrow_terminal(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "expc", "--help"],
        env={**os.environ, "COLUMNS": "60"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert max(len(line) for line in done.stdout.splitlines()) <= 60


def test_a_mistyped_command_is_answered_with_the_nearest_name(expc) -> None:
    said = expc("complie")
    assert said.code == 2
    assert "no command `complie`" in said.err and "Did you mean `compile`?" in said.err


def test_a_mistyped_option_is_answered_with_the_nearest_name(expc) -> None:
    said = expc("compile", "--forse", "specs/small.yaml")
    assert said.code == 2
    assert "--force" in said.err


def test_version(expc) -> None:
    assert expc("--version").out == f"expc {__version__}\n"


# ------------------------------------------------------------------------------------------- when it breaks


class Broken(click.Command):
    """A command that raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("broken")
        self.error = error

    def invoke(self, ctx: click.Context) -> None:
        raise self.error


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch):
    """Make `expc lint` raise."""

    def use(error: BaseException) -> None:
        monkeypatch.setattr(type(COMMANDS), "get_command", lambda *_: Broken(error))

    return use


def test_a_crash_is_one_line_that_asks_for_a_report(broken, expc, monkeypatch) -> None:
    monkeypatch.delenv("EXPC_DEBUG", raising=False)
    broken(KeyError("no such\nthing"))
    said = expc("lint")
    assert said.code == 2
    assert len(said.err.splitlines()) == 1
    assert "report" in said.err and "KeyError" in said.err and "EXPC_DEBUG=1" in said.err


def test_the_traceback_of_a_crash_is_there_for_who_asks(broken, monkeypatch) -> None:
    monkeypatch.setenv("EXPC_DEBUG", "1")
    broken(KeyError("x"))
    with pytest.raises(KeyError):
        main(["lint"])


def test_a_full_disk_is_no_bug_of_ours(broken, expc) -> None:
    broken(OSError(28, "No space left on device", "generated/small/read.py"))
    said = expc("lint")
    assert said.code == 2
    assert said.err == "expc: generated/small/read.py: No space left on device\n"


def test_findings_end_a_command_with_one(broken, expc, project: Path) -> None:
    finding = Finding("XC101", "`rl` is not a key", Span("specs/small.yaml", 3, 1, 3, 6))
    broken(SpecError(finding))
    said = expc("lint")
    assert said.code == 1
    assert "XC101: `rl` is not a key" in said.out and "specs/small.yaml:3:1" in said.out


def test_a_keyboard_interrupt_is_quiet(broken, expc) -> None:
    broken(KeyboardInterrupt())
    said = expc("lint")
    assert said.code == 130 and "Traceback" not in said.err


@pytest.mark.parametrize("argv", [("schema",), ("show", "specs/small.yaml"), ("--help",)])
def test_a_reader_that_goes_away_is_no_error(project: Path, argv: tuple[str, ...]) -> None:
    """`expc schema | head`: nobody takes what is printed."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "expc", *argv], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert err == ""
    assert process.returncode == 141


@pytest.mark.skipif(find_spec("torch") is None, reason="here it is the command that says so")
def test_a_missing_extra_is_named(project: Path, expc, monkeypatch) -> None:
    monkeypatch.setattr("expc.cli.needs.find_spec", lambda name: None)
    for argv in (("run", "generated/small"), ("export", "runs/x", "-o", "x.onnx")):
        said = expc(*argv)
        assert said.code == 2
        assert "expc[runtime]" in said.err and "torch" in said.err
    said = expc("new", "demo")
    assert said.code == 2 and "expc[new]" in said.err
    assert not (project / "demo").exists()
