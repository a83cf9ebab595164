"""How runs are carried out, in words: for the folder's README and for `expc plan`."""

from __future__ import annotations

from collections.abc import Iterator

from expc.ir import Backend, Option, Plan, Policy, Retry
from expc.spec import HALF
from expc.sweep import number


def told(plan: Plan) -> dict[str, str]:
    """What is said of each stage, of notices and of each cluster; nothing where the spec says nothing."""
    rows = {policy.stage: "; ".join(_stage(policy)) for policy in plan.policies}
    if plan.notify is not None:
        when = ", ".join(_WHEN[word] for word in plan.notify.on)
        rows["notice"] = f"{plan.notify.form}, to the address in ${plan.notify.webhook}: {when}"
    rows.update({f"{each.name}.sh": _cluster(each) for each in plan.backends})
    return rows


_WHEN = {"failed": "each failure", "done": "each stage that is done", "end": "the end"}


def _stage(policy: Policy) -> Iterator[str]:
    if policy.timeout is not None:
        yield f"{span(policy.timeout)} an attempt"
    if policy.devices > 1:
        yield f"{policy.devices} devices a run"
    if policy.retries:
        yield f"tried again after {', '.join(map(_retry, policy.retries))}"


def _retry(retry: Retry) -> str:
    how = [_change(*change) for change in retry.changes]
    how += [f"{retry.times} times"] if retry.times > 1 else []
    how += [f"{span(retry.delay)} later"] if retry.delay is not None else []
    return f"{retry.failure} ({', '.join(how)})" if how else retry.failure


def _change(flag: str, value: str) -> str:
    name = flag.removeprefix("--")
    return f"{name} halved" if value == HALF else f"{name} {value}".rstrip()


def _cluster(backend: Backend) -> str:
    stages = [f"{name} {_asked(options)}" for name, options in backend.stages]
    return "; ".join([*(f"{key} {value}" for key, value in backend.whole), *stages])


def _asked(options: tuple[Option, ...]) -> str:
    return ", ".join(f"{key} {_amount(key, value)}" for key, value in options)


def _amount(key: str, value: object) -> str:
    return span(value) if key == "time" and isinstance(value, int | float) else number(value)


def span(seconds: float) -> str:
    """A span of time in the largest unit that it is a whole number of."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds % size == 0:
            return f"{seconds // size:g} {unit}"
    return f"{seconds:g} s"
