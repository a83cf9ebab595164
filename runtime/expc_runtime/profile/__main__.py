"""`python -m expc_runtime.profile`: a request as JSON on stdin, facts as JSON on stdout, progress on stderr.

The answer is `{"stages": [...]}`, or `{"failed": ..., "stage": ...}` where the data can't be had.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from expc_runtime.errors import StageError
from expc_runtime.profile.job import Sources, answer
from expc_runtime.progress import progress


def main() -> None:
    """Answer the request on stdin."""
    asked = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a user's own code prints is no answer
    sys.path.append(os.getcwd())  # a user's own classes are imported from the root
    torch.manual_seed(0)
    told = _answered(asked)
    with out:
        json.dump(told, out, allow_nan=False)


def _answered(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The answer. What is not foreseen is raised: its traceback is for whoever mends it."""
    shown, sources, facts = progress(asked["spec"]), Sources(), []
    try:
        for job in asked["jobs"]:
            try:
                with torch.no_grad():
                    facts.append(answer(job, sources, shown))
            except (StageError, ModuleNotFoundError, ValueError) as error:
                return {"failed": str(error), "stage": job["stage"]}
    finally:
        shown.close()
    return {"stages": facts}


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
