"""What a training has said is said once, over all its attempts, and none of it is lost."""

from pathlib import Path

from expc_runtime.log import Log
from expc_runtime.progress import Silent
from expc_runtime.training.words import Words


def test_what_an_attempt_said_before_it_took_up_a_checkpoint_stays_said(tmp_path: Path) -> None:
    """A retry that halves the microbatch has a warning of its own; the checkpoint has the earlier ones."""
    words = Words(Log(tmp_path), Silent())
    words.warn("microbatch 0.5")
    words.load_state_dict({"warned": ["a gap"], "told": ["modes"]})
    words.warn("microbatch 0.5")
    words.warn("another gap", once="modes")
    assert words.warned == ["a gap", "microbatch 0.5"]
    assert words.state_dict()["told"] == ["modes"]
