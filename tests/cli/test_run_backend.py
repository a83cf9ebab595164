"""`expc run --backend`: which script becomes the process, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

DECLARED = "run: {slurm: {partition: gpu}, ray: {cpus: 2}}\n\nsweep:"


@pytest.fixture
def became(monkeypatch: Any) -> list[list[str]]:
    """The commands that `expc run` turned into, on a machine that has everything."""
    found: list[list[str]] = []
    monkeypatch.setattr("expc.cli.needs.find_spec", lambda name: True)
    monkeypatch.setattr("expc.cli.needs.which", lambda name: name)
    monkeypatch.setattr("os.execvpe", lambda file, argv, env: found.append(argv))
    return found


def test_the_script_of_the_back_end_is_what_runs(
    project: Path, expc: Any, edit: Any, became: list[list[str]]
) -> None:
    edit("sweep:", DECLARED)
    expc("compile", "specs/small.yaml")
    expc("run", "generated/small", "--backend", "slurm", "--wait", "--only", "lr=*", "--jobs", "3")
    expc("run", "specs/small.yaml", "--backend", "ray", "--no-smoke")
    expc("run", "generated/small", "--backend", "local")
    assert became == [
        ["bash", "generated/small/slurm.sh", "--only", "lr=*", "--jobs", "3", "--wait"],
        ["bash", "generated/small/ray.sh", "--no-smoke"],
        ["bash", "generated/small/sweep.sh"],
    ]


@pytest.mark.parametrize(("backend", "name"), [("slurm", "Slurm"), ("ray", "Ray")])
def test_an_experiment_that_declares_no_such_back_end(
    project: Path, expc: Any, became: list[list[str]], backend: str, name: str
) -> None:
    expc("compile", "specs/small.yaml")
    said = expc("run", "generated/small", "--backend", backend)
    assert said.code == 2 and not became
    assert f"has no {backend}.sh: its spec declares no {name}" in said.err
    assert f"`run: {{{backend}: {{}}}}`" in said.err
    assert "expc compile specs/small.yaml" in said.err


def test_what_a_back_end_needs_is_said_first(
    project: Path, expc: Any, became: list[list[str]], monkeypatch: Any
) -> None:
    monkeypatch.setattr("expc.cli.needs.which", lambda name: None)
    said = expc("run", "specs/small.yaml", "--backend", "slurm")
    assert said.code == 2 and "`sbatch`, which is not on this machine" in said.err
    monkeypatch.setattr("expc.cli.needs.find_spec", lambda name: None if name == "ray" else True)
    said = expc("run", "specs/small.yaml", "--backend", "ray")
    assert said.code == 2 and "expc[ray]" in said.err
    said = expc("run", "specs/small.yaml", "--wait")
    assert said.code == 2 and "`--wait` is for `--backend slurm`" in said.err
    assert not became
