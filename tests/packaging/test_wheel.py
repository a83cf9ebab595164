"""What ships: everything under templates/ that git knows, types, the runner in bash, and nothing of ours alone."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from expc.project import project_root

ROOT = project_root(Path(__file__))

builders = pytest.importorskip("hatchling.builders.wheel")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel as hatchling builds it; no network, no isolation."""
    folder = tmp_path_factory.mktemp("dist")
    (built,) = builders.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return zipfile.ZipFile(built)


def tracked(folder: str) -> set[str]:
    """Files under a folder that git has, or would take."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", folder]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    names = done.stdout.decode().split("\0")
    return {name for name in names if name and (ROOT / name).is_file()}


@pytest.mark.parametrize(
    ("root", "package"),
    [
        ("templates", "expc_templates"),
        ("compiler", "expc"),
        ("runtime", "expc_runtime"),
    ],
)
def test_the_wheel_holds_exactly_what_git_knows(
    wheel: zipfile.ZipFile, root: str, package: str
) -> None:
    """A pattern in .gitignore that is not anchored would drop files of the scaffold in silence."""
    shipped = {name for name in wheel.namelist() if name.startswith(f"{package}/")}
    assert shipped == {name.removeprefix(f"{root}/") for name in tracked(f"{root}/{package}")}


@pytest.mark.parametrize(
    "name",
    [
        "expc/py.typed",
        "expc_runtime/py.typed",
        "expc_runtime/sweep/sweep.bash",
        "expc_templates/__init__.py",
        "expc_templates/module.py.j2",
        "expc_templates/project/cookiecutter.json",
        "expc_templates/project/{{cookiecutter.name}}/.gitignore.j2",
    ],
)
def test_what_is_not_python_ships_too(wheel: zipfile.ZipFile, name: str) -> None:
    assert name in wheel.namelist()


def test_nothing_is_installed_under_a_name_that_is_not_ours(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    packages = {name for name in top if not name.endswith(".dist-info")}
    assert packages == {"expc", "expc_runtime", "expc_templates"}


def test_the_wheel_names_its_command_its_plugin_and_its_licence(wheel: zipfile.ZipFile) -> None:
    (info,) = {n.split("/")[0] for n in wheel.namelist() if ".dist-info/" in n}
    entries = wheel.read(f"{info}/entry_points.txt").decode()
    assert "[console_scripts]\nexpc = expc.cli:main\n" in entries
    assert "[pytest11]\nexpc = expc.testing.plugin\n" in entries
    licence = wheel.read(f"{info}/licenses/LICENSE").decode()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


def test_installing_the_compiler_asks_for_no_torch(wheel: zipfile.ZipFile) -> None:
    (info,) = {n.split("/")[0] for n in wheel.namelist() if ".dist-info/" in n}
    metadata = wheel.read(f"{info}/METADATA").decode().splitlines()
    plain = [
        line for line in metadata if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert plain and not any("torch" in line or "lightning" in line for line in plain)


def test_the_scaffold_holds_no_file_that_tools_would_read_as_code() -> None:
    files = [Path(name) for name in tracked("templates/expc_templates/project")]
    assert files
    assert {path.suffix for path in files} == {".j2", ".json"}
