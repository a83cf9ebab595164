"""How long a sweep still takes."""

__all__ = ["Pace"]


class Pace:
    """How long is left, from the seconds that stages of each name took."""

    def __init__(self) -> None:
        self._took: dict[str, tuple[int, float]] = {}
        self._left: dict[str, int] = {}

    def expect(self, stage: str, count: int = 1) -> None:
        """``count`` more of ``stage`` are to come (or, below zero, are not)."""
        self._left[stage] = self._left.get(stage, 0) + count

    def took(self, stage: str, seconds: float) -> None:
        """One of ``stage`` is done, in ``seconds``."""
        count, total = self._took.get(stage, (0, 0.0))
        self._took[stage] = (count + 1, total + seconds)

    def left(self, jobs: int) -> float | None:
        """Seconds until all that is expected has run on ``jobs`` slots; None if none ever has."""
        count = sum(n for n, _ in self._took.values())
        if not count:
            return None
        mean = sum(total for _, total in self._took.values()) / count
        means = {stage: total / n for stage, (n, total) in self._took.items()}
        return sum(n * means.get(stage, mean) for stage, n in self._left.items()) / jobs
