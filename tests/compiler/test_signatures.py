"""Signatures of users' code, read from text: nothing is imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expc.signatures import NotFound, Signature, signature

if TYPE_CHECKING:
    from tests.compiler.conftest import Project


def of(tmp_path: Path, text: str, target: str = "lab:It") -> Signature:
    module = target.partition(":")[0].replace(".", "/")
    path = tmp_path / f"{module}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"raise SystemExit('imported')\n{text}", encoding="utf-8")
    found = signature(target, tmp_path)
    assert target.partition(":")[0] not in sys.modules
    return found


def told(found: Signature) -> str:
    return " ".join(
        f"{'*' if p.keyword_only else ''}{p.name}"
        + (f":{p.annotation}" if p.annotation else "")
        + ("" if p.required else f"={p.default!r}")
        for p in found.parameters
    )


def test_a_function(tmp_path: Path) -> None:
    found = of(
        tmp_path,
        "def It(pred, target: 'Tensor', /, q: float = -0.5, *, reduction: str = 'mean', k): ...",
    )
    assert told(found) == "pred target:'Tensor' q:float=-0.5 *reduction:str='mean' *k"
    assert not found.open


def test_a_class(tmp_path: Path) -> None:
    found = of(
        tmp_path,
        "class It:\n"
        "    columns: ClassVar[dict[str, str]] = {'x': 'features'}\n"
        "    higher_is_better = True\n"
        "    made = Other()\n"
        "    def __init__(self, width: int, dropout=0.0): ...\n"
        "    def forward(self, x, mask=None): ...\n",
    )
    assert told(found) == "width:int dropout=0.0"
    assert [p.name for p in found.methods["forward"]] == ["x", "mask"]
    assert found.attributes == {"columns": {"x": "features"}, "higher_is_better": True}
    assert not found.open


def test_a_default_that_is_no_literal_is_a_default_all_the_same(tmp_path: Path) -> None:
    assert told(of(tmp_path, "def It(a=WIDTH, b=(1, 2), c=f()): ...")) == "a=None b=(1, 2) c=None"


def test_bases_in_the_same_file_are_read(tmp_path: Path) -> None:
    found = of(
        tmp_path,
        "class Base:\n    rate = 1\n    def __init__(self, a, b=2): ...\n    def forward(self, x): ...\n"
        "class Middle(Base):\n    rate = 2\n"
        "class It(Middle): pass\n",
    )
    assert told(found) == "a b=2"
    assert found.attributes["rate"] == 2
    assert "forward" in found.methods
    assert not found.open


def test_bases_from_elsewhere_leave_the_signature_open(tmp_path: Path) -> None:
    assert of(tmp_path, "class It(Elsewhere): pass").open
    assert of(tmp_path, "class B(Elsewhere): pass\nclass It(B): pass").open
    assert not of(tmp_path, "class It(Elsewhere):\n    def __init__(self, a): ...").open


def test_keywords_leave_the_signature_open(tmp_path: Path) -> None:
    assert of(tmp_path, "def It(a, **rest): ...").open
    found = of(tmp_path, "class It:\n    def __init__(self, a, *args, **rest): ...")
    assert found.open and told(found) == "a"


def test_dataclasses_have_their_fields_for_parameters(tmp_path: Path) -> None:
    found = of(
        tmp_path,
        "@dataclass(frozen=True)\nclass Base:\n    a: int\n    kind: ClassVar[str] = 'x'\n"
        "@dataclasses.dataclass\nclass It(Base):\n    b: list[int] = field(default_factory=list)\n"
        "    a: int = 3\n",
    )
    assert told(found) == "a:int=3 b:list[int]=None"


def test_modules_and_packages_are_found_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").write_text("def It(here): ...")
    assert told(signature("lab:It", tmp_path)) == "here"
    assert told(of(tmp_path, "def It(deep): ...", "lab.inner.most:It")) == "deep"
    assert told(of(tmp_path, "def It(alone): ...", "space.name:It")) == "alone"


def test_installed_modules_are_found() -> None:
    found = signature("dataclasses:field", Path("/nowhere"))
    assert "default" in {parameter.name for parameter in found.parameters}


@pytest.mark.parametrize(
    ("target", "says", "near"),
    [
        ("gone:It", "there is no module `gone`", ()),
        ("lab.gone:It", "there is no module `lab.gone`", ()),
        ("lab:Ti", "`lab` defines no `Ti`", ("It",)),
        ("lab:", "`lab` defines no ``", ("It",)),
        ("broken:It", "`broken.py` is not valid Python", ()),
        ("bytes_:It", "`bytes_.py` is not valid Python", ()),
        (":It", "there is no module ``", ()),
        ("..:It", "there is no module `..`", ()),
        ("lab..x:It", "there is no module `lab..x`", ()),
    ],
)
def test_what_is_not_there_is_said(
    tmp_path: Path, target: str, says: str, near: tuple[str, ...]
) -> None:
    (tmp_path / "lab.py").write_text("def It(): ...")
    (tmp_path / "broken.py").write_text("def It(: ...")
    (tmp_path / "bytes_.py").write_bytes(b"x = '\xff'")
    with pytest.raises(NotFound) as caught:
        signature(target, tmp_path)
    assert str(caught.value).startswith(says)
    assert caught.value.near == near


def test_an_edit_of_the_file_is_seen(tmp_path: Path) -> None:
    """The watch mode and tests compile twice in one process."""
    assert told(of(tmp_path, "def It(a): ...")) == "a"
    assert told(of(tmp_path, "def It(a, bb): ...")) == "a bb"


# ----------------------------------------------------------------------------------------- in a spec

LAB = """
class Net:
    def __init__(self, width: int, scale: float = 1.0, names: tuple[str, ...] = ()): ...
    def forward(self, image): ...
"""


def own(project: Project, use: str) -> str:
    project.write("lab.py", LAB)
    return project.changed("{use: conv_net, channels: [4, 8]}", use)


def test_own_code_is_checked_like_any_component(project: Project) -> None:
    project.compile(own(project, "{use: 'lab:Net', width: 3, names: [a]}"))


@pytest.mark.parametrize(
    ("use", "says"),
    [
        ("{use: 'lab:Net'}", "`lab:Net` needs `width`"),
        ("{use: 'lab:Net', width: 3, scael: 2}", "`scael` is not a key of `lab:Net`"),
        ("{use: 'lab:Net', width: 3.5}", "`width` takes a whole number, not `3.5`"),
        ("{use: 'lab:Net', width: 3, names: [1]}", "an entry of `names` takes text, not `1`"),
        ("{use: 'lab:Ned', width: 3}", "`lab` defines no `Ned`"),
        ("{use: 'lib:Net', width: 3}", "there is no module `lib`"),
    ],
)
def test_what_own_code_does_not_take_is_found(project: Project, use: str, says: str) -> None:
    found = project.findings(own(project, use))
    assert any(finding.message.startswith(says) for finding in found), found
