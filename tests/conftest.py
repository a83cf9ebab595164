"""What every test may ask for."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def as_in_a_terminal() -> Iterator[None]:
    """SIGINT is not ignored, as it is in a shell's background, where children would ignore it too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
