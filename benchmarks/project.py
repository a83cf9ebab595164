"""Projects to measure in: folders of their own, so that nothing of this one is written or cached."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def compile_in(folder: Path, name: str, text: str) -> Path:
    """Compile the spec ``text`` called ``name`` in a project at ``folder``; its generated folder."""
    file = write_spec(folder, name, text)
    command = [sys.executable, "-m", "expc", "compile", str(file.relative_to(folder))]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "generated" / name


def write_spec(folder: Path, name: str, text: str) -> Path:
    """A spec in the specs/ of a project at ``folder``."""
    (folder / "specs").mkdir(exist_ok=True)
    (folder / "pyproject.toml").touch()
    file = folder / "specs" / f"{name}.yaml"
    file.write_text(text)
    return file
