"""A short run that goes wrong as its flags say: what `python -m benchmarks.sweep` sweeps over. No torch."""

import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from expc_runtime.flags import Run, parse
from expc_runtime.state import Result, claim, identity
from expc_runtime.state.identity import planned

PROGRAM = "5eed5eed5eed"


@dataclass(frozen=True)
class Config(Run):
    """What a run does: ``fault`` is none, or a class of failure."""

    out: str = "runs/trial/by_hand/train"
    fault: str = ""
    seconds: float = 0.05
    precision: str = "16-mixed"
    microbatch: float = 1.0


def main(cfg: Config) -> int:
    """Work for ``seconds``, or fail; returns the exit code."""
    out = Path(cfg.out)
    changed = {name: getattr(cfg, name) for name in planned(asdict(cfg))}
    key = identity(PROGRAM, asdict(cfg), {})
    with claim(out, key, program=PROGRAM, module="stage.py", changed=changed) as stage:
        if stage.verdict == "done":
            return 0
        (out / "checkpoints").mkdir(exist_ok=True)
        step = stage.status.step + 1
        stage.beat(step=step, steps_target=10, epoch=0, force=True)
        if cfg.fault == "crash":
            raise ValueError("no such column: digit")
        if cfg.fault == "diverged" and cfg.precision != "32":
            stage.fail("diverged", "loss is NaN at step 1", code=65)
            return 65
        if cfg.fault == "oom" and cfg.microbatch > 0.25:
            stage.fail("oom", f"no room for {cfg.microbatch} of a batch", code=71)
            return 71
        if cfg.fault == "killed" and stage.status.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while cfg.fault == "timed_out":  # and deaf
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        time.sleep(cfg.seconds)
        stage.finish(Result(step=10, metrics={"val/loss": 1.0 / (1 + cfg.seed)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(parse(Config)))
