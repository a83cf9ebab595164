"""What every test may ask for."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def as_in_a_terminal() -> Iterator[None]:
    """SIGINT is not ignored, as it is in a shell's background, where children would ignore it too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def need() -> Callable[[str, bool, str], None]:
    """``need("slurm", there, why)``: skip where something big is not installed.

    EXPC_TESTS_NEED="slurm ray chromium" names what must be there: without it a test fails.
    """

    def need(name: str, there: bool, why: str) -> None:
        if there:
            return
        if name in os.environ.get("EXPC_TESTS_NEED", "").split():
            pytest.fail(f"EXPC_TESTS_NEED names {name}, but {why}")
        pytest.skip(why)

    return need
