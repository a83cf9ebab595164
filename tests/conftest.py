"""What every test may ask for."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Children see SIGINT and SIGHUP, which a shell's background and nohup have them ignore."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: lambda *_: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
