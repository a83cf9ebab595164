"""pytest plugin: generated folders are compared with what their specs compile to.

    def test_mine(expc_snapshot):
        expc_snapshot("specs/mine.yaml", "generated/mine")

`pytest --expc-update` writes them anew. The compiler is imported by the first test that asks for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from expc.testing.snapshot import Snapshot


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--expc-update`."""
    parser.getgroup("expc").addoption(
        "--expc-update", action="store_true", help="write generated folders anew"
    )


@pytest.fixture
def expc_snapshot(request: pytest.FixtureRequest) -> Snapshot:
    """`expc_snapshot(spec, folder)` fails with a diff when `folder` is not what `spec` compiles to.

    Paths are relative to pytest's root.
    """
    from expc.testing.snapshot import Snapshot

    root = Path(request.config.rootpath)
    return Snapshot(root, update=bool(request.config.getoption("--expc-update")))
