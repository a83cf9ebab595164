"""State of experiments as plain files: who runs, how far, with what result. Standard library only.

One folder holds one stage instance, ``runs/<experiment>/<run>/<stage>``:

- ``status.json``: where it stands now; rewritten whole, never in place (`Status`)
- ``result.json``: written once, last; the only proof that a stage is done (`Result`)
- ``metrics.jsonl``, ``checkpoints/``, ``log``: the stage's own; ``attempt-<n>.log``: its console in a sweep
- ``.lock``: held by the kernel for as long as a process works here, so nothing goes stale

How a stage uses it (`expc_runtime.fit` does)::

    key = identity(program, asdict(cfg), {"read": parent_key(out, "read")})  # parents by stage name
    with claim(root / cfg.out, key, program=program, module=file) as stage:  # Locked if held
        if stage.verdict == "done":              # proved by result.json with this key
            return 0
        if stage.verdict == "resume":            # same key, unfinished: go on from checkpoints/
            ...
        stage.beat(step=0, steps_target=640, epoch=0)   # status "running"; at most one write a second
        ...
        stage.finish(Result(metrics={"test/accuracy": 0.97}, floors={"test/accuracy": 0.11}))

    stage.fail("diverged", "loss is NaN", code=65, source="specs/x.yaml:41:9 (read.loss.loop)")
    stage.interrupt("asked to stop at step 320; saved")    # the same command goes on from there

A sibling's product (``stage:read``) is in ``sibling(out, "read")``, since a stage shared by several
runs is kept by one of them. Leaving the block without one of these marks the stage failed(crash) with
the exception's text. A folder that holds another key is renamed aside to ``<stage>.was-<key>`` before a
fresh start, and taken back when that key is wanted again.
"""

from expc_runtime.state.claim import Claim, claim
from expc_runtime.state.files import append_line, read_env, read_json, write_env, write_json
from expc_runtime.state.identity import SMOKE, identity, parent_key, resolve, run_name, sibling
from expc_runtime.state.process import alive, process_start
from expc_runtime.state.records import Result, Status, read_result, read_status, write_status

__all__ = [
    "SMOKE",
    "Claim",
    "Result",
    "Status",
    "alive",
    "append_line",
    "claim",
    "identity",
    "parent_key",
    "process_start",
    "read_env",
    "read_json",
    "read_result",
    "read_status",
    "resolve",
    "run_name",
    "sibling",
    "write_env",
    "write_json",
    "write_status",
]
