"""Makes monitor.svg: `expc monitor` in the midst of a real sweep, some of whose runs fail.

    python docs/pictures/make_monitor.py [OUT.svg]

The sweep is compiled and run in a folder of its own: it takes a minute on two cores and leaves nothing behind. One run
is killed and one gets a NaN on order (EXPC_FAULTS); the others fail by themselves.
"""

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from expc.cli import main
from expc.monitor.planned import Held, Source
from expc.monitor.screen import frame
from expc.monitor.snapshot import Snapshot
from expc.monitor.watch import Watch

SPEC = """\
expc: 1
name: zeros_first
about: Does a net that has learned what a zero looks like learn digits faster?

model:
  backbone: {use: conv_net, channels: [16, 32]}

stages:
  zeros:
    kind: supervised
    data: {use: digits, batch: 64, split: {val: 0.2}}
    heads: {zero: {use: linear_head, out: 1}}
    loss: {zero: {use: bce}}
    metrics: {f1: {use: f1, of: zero}}
    optim: {use: adamw, lr: 3.0e-3}
    until: {metric: f1, at_least: 0.5, budget: {epochs: 6}, otherwise: fail}
  digits:
    kind: supervised
    init: {backbone: {from: zeros}}
    data: {use: digits, batch: 64, split: {val: 0.2}}
    heads: {digit: {use: linear_head, out: 10}}
    loss: {digit: {use: cross_entropy}}
    metrics: {accuracy: {use: accuracy, of: digit}}
    optim: {use: adamw, lr: 3.0e-3}
    precision: bf16-mixed
    until: {epochs: 12}
    run: {retry: {diverged: {precision: 32}}}

sweep:
  seeds: [0, 1, 2, 3]
  conditions:
    zeros_first: {}
    cold: {zeros: skip, digits.init: {}}
    small_batch: {digits.data.batch: 16}
    much_too_fast: {zeros.optim.lr: 1.0e+30}
    strict: {zeros.until.at_least: 0.9999, zeros.until.budget: {epochs: 1}}
    wide: {model.backbone.channels: [24, 48]}
"""
FAULTS = (
    "*/zeros_first,seed=1/digits=kill@9",
    "*/small_batch,seed=*/digits=nan:backbone@30#1",
    "*/small_batch,seed=3/digits=slow:0.2@0#2",
    "*/wide,seed=*/*=slow:0.2@0",
)


def ready(snapshot: Snapshot) -> bool:
    """Whether there is something of everything to see: a stage that runs again with a changed setting, too."""
    count = snapshot.counts
    told = [one for one in snapshot.running if one.percent >= 15 and one.last]
    changed = any(one.changed for one in told)
    return changed and len(told) == 3 and all(count[s] for s in ("pending", "blocked", "skipped"))


def sweep(root: Path) -> Snapshot:
    """Run the sweep until there is enough to see, then stop it."""
    os.chdir(root)
    (root / "pyproject.toml").touch()
    (root / "specs").mkdir()
    (root / "specs/zeros_first.yaml").write_text(SPEC)
    if main(["compile", "specs/zeros_first.yaml"]):
        raise SystemExit("the spec of the picture does not compile")
    script = root / "generated/zeros_first/sweep.sh"
    environment = {**os.environ, "PYTHON": sys.executable, "EXPC_FAULTS": ";".join(FAULTS)}
    source = Source(root, "zeros_first", script)
    watch, held = Watch(source, each=True), Held(source)
    command = ["bash", str(script), "--no-smoke", "--jobs", "3"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            while not ready(snapshot := watch.look(held.tasks())):
                if process.poll() is not None:
                    raise SystemExit("the sweep was over before there was enough to see")
                time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGTERM)
    return snapshot


def picture(snapshot: Snapshot, out: Path, width: int = 126) -> None:
    """The screen as a terminal of that width shows it."""
    nowhere = io.StringIO()
    console = Console(record=True, width=width, file=nowhere, force_terminal=True, highlight=False)
    console.print(frame(snapshot, width))
    fonts_of_others = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)  # they need a network
    code_format = fonts_of_others.sub("", CONSOLE_SVG_FORMAT)
    title = "expc monitor zeros_first"
    console.save_svg(str(out), title=title, code_format=code_format, unique_id="monitor")


if __name__ == "__main__":
    target = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).with_name("monitor.svg"))
    target = target.resolve()
    with tempfile.TemporaryDirectory() as folder:
        picture(sweep(Path(folder).resolve()), target)
    print(target)
