"""Where the runs of a local sweep go: the machine's GPUs, or so many places on its processor."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Slot", "Slots", "gpus"]

_MIG = re.compile(r"^\s+MIG .*\(UUID: (MIG-[^)]+)\)")
_GPU = re.compile(r"^GPU (\d+):")


@dataclass(eq=False)
class Slot:
    """One GPU, or one place where there is none."""

    name: str
    gpu: str = ""  # as CUDA_VISIBLE_DEVICES has it
    places: int = 1  # runs at the same time
    used: int = 0
    out: bool = False  # of service: what runs there fails


class Slots:
    """The slots of a sweep.

    Args:
        gpus: as CUDA_VISIBLE_DEVICES names them; empty for a machine without.
        jobs: stages at a time; one for each GPU, or one, if not given. Several share a GPU only where
            there are more jobs than GPUs.
    """

    def __init__(self, gpus: Sequence[str], jobs: int | None) -> None:
        self.jobs = jobs or max(1, len(gpus))
        share = -(-self.jobs // len(gpus)) if gpus else 1
        self.all = [Slot(f"GPU {gpu}", gpu, share) for gpu in gpus] or [
            Slot(f"slot {number}") for number in range(1, self.jobs + 1)
        ]
        self.gpus = len(gpus)

    @property
    def good(self) -> list[Slot]:
        """Those in service."""
        return [slot for slot in self.all if not slot.out]

    def wanted(self, devices: int, *, cpu: bool) -> int:
        """How many slots a run on ``devices`` takes."""
        return (0 if cpu else devices) if self.gpus else 1

    def take(self, count: int, avoid: Slot | None = None) -> tuple[Slot, ...] | None:
        """``count`` slots with a place left, the emptiest first, ``avoid`` last; None if there are not."""
        free = [slot for slot in self.good if slot.used < slot.places]
        if len(free) < count:
            return None
        free.sort(key=lambda slot: (slot is avoid, slot.used))
        taken = tuple(sorted(free[:count], key=self.all.index))
        for slot in taken:
            slot.used += 1
        return taken

    def give(self, slots: Sequence[Slot]) -> None:
        """They are free again."""
        for slot in slots:
            slot.used -= 1

    def threads(self, ranks: int) -> int:
        """The share of the cores for each process: threads that share one wait for each other."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        at_once = max(1, min(self.jobs, self.gpus // ranks)) if self.gpus else self.jobs
        return max(1, (cores or 1) // (at_once * ranks))


def gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that runs may use: GPUS, else CUDA_VISIBLE_DEVICES, else what nvidia-smi lists.

    Where a GPU is split into instances, they are what is listed.
    """
    for name in ("GPUS", "CUDA_VISIBLE_DEVICES"):
        if name in environment:
            return _visible(environment[name])
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return _listed(listed)


def _visible(text: str) -> list[str]:
    """CUDA ignores what follows a device that is not there, such as -1."""
    found: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        if not name or name.startswith("-") or name == "NoDevFiles":
            break
        found.append(name)
    return list(dict.fromkeys(found))


def _listed(text: str) -> list[str]:
    """A GPU by its number; one with instances by theirs."""
    found: list[str] = []
    for line in text.splitlines():
        if (gpu := _GPU.match(line)) is not None:
            found.append(gpu[1])
        elif (instance := _MIG.match(line)) is not None:
            if found and found[-1].isdigit():
                found.pop()
            found.append(instance[1])
    return found
