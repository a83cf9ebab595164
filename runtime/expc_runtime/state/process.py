"""Is the process that wrote a status still the one alive under that number?"""

import os
from pathlib import Path

__all__ = ["alive", "process_start"]


def process_start(pid: int) -> int:
    """Start time of ``pid`` in clock ticks since boot; 0 where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # The command's name, in brackets, may hold blanks; field 22 counts from the pid.
    return int(stat.rpartition(")")[2].split()[19])


def alive(pid: int, start: int) -> bool:
    """Whether ``pid`` runs and began at ``start``, so that a reused number does not count."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, yet alive
    return process_start(pid) == start
