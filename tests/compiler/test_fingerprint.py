"""A user's code is part of the program: another model is another result, another comment is not."""

from pathlib import Path

import pytest

from expc.build import compiled
from expc.fingerprint import fingerprint, sources

MODEL = '''\
"""A net."""

from lab.layers import width  # where sizes live


class Net:
    def __init__(self, scale: float = 1.0) -> None:
        self.out_features = width

    def forward(self, image): return image
'''

SPEC = """\
expc: 1
name: mine
about: Does it?
stages:
  read:
    kind: supervised
    data: {use: digits, batch: 64}
    model: {net: {use: "lab.models:Net"}}
    heads: {digit: {use: linear_head, out: 10}}
    loss: {digit: {use: cross_entropy}}
    optim: {use: adam, lr: 1.0e-3}
    until: {epochs: 1}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    for name, text in {
        "lab/__init__.py": "",
        "lab/models.py": MODEL,
        "lab/layers.py": "from . import sizes\nwidth = sizes.small\n",
        "lab/sizes.py": "small = 8\n",
        "lab/other.py": "unused = True\n",
        "specs/mine.yaml": SPEC,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def program(root: Path) -> str:
    return compiled(root / "specs/mine.yaml").plan.modules[0].digest


def test_what_a_module_imports_from_the_project_belongs_to_it(lab: Path) -> None:
    names = [file.relative_to(lab).as_posix() for file in sources("lab.models", lab)]
    assert names == ["lab/__init__.py", "lab/layers.py", "lab/models.py", "lab/sizes.py"]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("lab/models.py", "scale: float = 1.0", "scale: float = 2.0"),
        ("lab/layers.py", "sizes.small", "sizes.small * 2"),
        ("lab/sizes.py", "8", "9"),
    ],
)
def test_an_edit_to_own_code_is_another_program(lab: Path, file: str, old: str, new: str) -> None:
    before = program(lab)
    edit(lab / file, old, new)
    assert program(lab) != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("lab/models.py", "# where sizes live", "# somewhere"),
        ("lab/models.py", "\n\n\nclass", "\n\n# A class.\n\n\nclass"),
        ("lab/sizes.py", "small = 8\n", "small = 8  # enough\n\n"),
        ("lab/other.py", "True", "False"),
    ],
)
def test_comments_blank_lines_and_strangers_change_nothing(
    lab: Path, file: str, old: str, new: str
) -> None:
    before = program(lab)
    edit(lab / file, old, new)
    assert program(lab) == before


def test_an_installed_module_has_no_fingerprint(lab: Path) -> None:
    assert fingerprint("json.decoder", lab) == ""


def test_a_file_that_is_no_python_is_named_all_the_same(lab: Path) -> None:
    before = fingerprint("lab.sizes", lab)
    (lab / "lab/sizes.py").write_text("small = (")
    assert fingerprint("lab.sizes", lab) not in ("", before)
