"""From what a stage asks for, in the words of a spec, to the options of sbatch."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from expc_runtime.errors import MissingInput

__all__ = ["Ask"]

_MARGIN = 120  # seconds before the time limit at which a stage is asked to save and end


@dataclass(frozen=True)
class Ask:
    """What a job of one stage asks of Slurm."""

    partition: str = ""
    time: float | None = None  # seconds
    memory_gb: float | None = None  # of the host
    cpus: int | None = None  # of each device, or of the run on a CPU
    account: str = ""
    qos: str = ""
    constraint: str = ""
    at_once: int = 0  # tasks of the array at a time; 0: no limit
    requeue: bool = True
    devices: int = 1  # GPUs, where the partition has any; processes, where it has none

    @classmethod
    def read(cls, words: Sequence[str]) -> "Ask":
        """From ``--partition gpu --time 43200 ...``.

        Raises:
            MissingInput: they are no such options.
        """
        parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
        for name in ("partition", "account", "qos", "constraint"):
            parser.add_argument(f"--{name}", default="")
        for name in ("time", "memory_gb"):
            parser.add_argument(f"--{name}", type=float)
        parser.add_argument("--cpus", type=int)
        parser.add_argument("--at_once", type=int, default=0)
        parser.add_argument("--devices", type=int, default=1)
        parser.add_argument("--requeue", type=lambda word: word == "true", default=True)
        try:
            asked, unknown = parser.parse_known_args(words)
        except argparse.ArgumentError as error:
            raise MissingInput(f"slurm.sh: {error}; compile its spec again") from None
        if unknown:
            raise MissingInput(f"slurm.sh knows no {unknown[0]}; compile its spec again")
        return cls(**vars(asked))

    def words(self, *, gpus: bool) -> list[str]:
        """The options of sbatch for an array; ``gpus``: whether the partition has any."""
        words = self.place()
        if self.time is not None:
            words.append(f"--time={_clock(self.time)}")
        if self.memory_gb is not None:
            words.append(f"--mem={max(1, round(self.memory_gb * 1000**3 / 1024**2))}M")
        if self.cpus is not None:
            words.append(f"--cpus-per-task={self.cpus * self.devices}")
        if gpus:
            words.append(f"--gres=gpu:{self.devices}")
        words.append("--requeue" if self.requeue else "--no-requeue")
        words.append(f"--signal=B:TERM@{self._margin}")
        return words

    def place(self) -> list[str]:
        """Where a job goes, and on whose account."""
        named = ("partition", "account", "qos", "constraint")
        return [f"--{name}={getattr(self, name)}" for name in named if getattr(self, name)]

    @property
    def _margin(self) -> int:
        """Seconds to save in; a quarter of a short limit."""
        return _MARGIN if self.time is None else int(min(_MARGIN, max(1.0, self.time // 4)))


def _clock(seconds: float) -> str:
    """``HOURS:MINUTES:SECONDS``, as sbatch reads it."""
    whole = max(1, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
