"""The shape of a spec that every kind shares: header, stages, runs, sweep. Kinds add the shape of their stages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from expc.components.core import Family, Params


class Shape(BaseModel):
    """A closed, strict shape: unknown keys and silent conversions are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True
    )


Raw = dict[str, Any]
"""A component as written: `use:` and its siblings, validated by the component's own parameters."""


@dataclass(frozen=True, slots=True)
class Named:
    """An entry that a map of components has by name, of a family of its own; `default` is used where it is left out."""

    name: str
    family: Family
    default: str = ""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one component, or for a map of them; `shape` is what the place itself adds.

    A map is open (`many`), or has the entries that `named` lists and no others. With `brought`, components of the stage add
    entries of their own, whose `use` need not be written.
    """

    family: Family
    shape: type[Params] | None = None
    many: bool = False
    named: tuple[Named, ...] = ()
    brought: bool = False

    @property
    def is_map(self) -> bool:
        """Whether it holds several components."""
        return self.many or bool(self.named)

    @property
    def keys(self) -> list[str]:
        """What the place itself adds to a component."""
        return list(self.shape.model_fields) if self.shape is not None else []

    def takes(self, entry: str) -> bool:
        """Whether a map that lists its entries has one of this name."""
        return any(each.name == entry for each in self.named)

    def family_of(self, entry: str) -> Family:
        """The family of one entry of a map."""
        return next((each.family for each in self.named if each.name == entry), self.family)


class Clock(Shape):
    """A span of training on one named clock."""

    epochs: Annotated[int, Field(ge=1)] | None = Field(None, description="passes over the data")
    updates: Annotated[int, Field(ge=1)] | None = Field(None, description="batches trained on")
    minutes: Annotated[float, Field(gt=0)] | None = Field(None, description="wall time")


Axis = Annotated[list[Any], Field(min_length=1, description="the values this path takes")]


class Sweep(Shape):
    """What varies between runs."""

    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        default_factory=lambda: [0], min_length=1, description="one run for each"
    )
    grid: dict[str, Axis] = Field(default_factory=dict, description="every combination of values")
    zip: dict[str, Axis] = Field(default_factory=dict, description="values taken side by side")
    conditions: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="named sets of overrides; `STAGE: skip` leaves a stage out",
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list, description="combinations that are not run"
    )


FAILURES = (
    "diverged", "oom", "leak", "timed_out", "killed", "crash", "missing_output", "disk_full",
)  # fmt: skip
"""Ends of a run after which another try may come out otherwise."""


class Duration(Shape):
    """A span of wall time, in one unit."""

    hours: Annotated[float, Field(gt=0)] | None = Field(None, description="in hours")
    minutes: Annotated[float, Field(gt=0)] | None = Field(None, description="in minutes")
    seconds: Annotated[float, Field(gt=0)] | None = Field(None, description="in seconds")

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [unit for unit in _SECONDS if getattr(self, unit) is not None]
        if len(given) != 1:
            raise ValueError(
                f"takes one unit, not {len(given)}\nwrite one of `{'`, `'.join(_SECONDS)}`, such as `{{hours: 4}}`"
            )
        return self

    @property
    def in_seconds(self) -> float:
        """The span in seconds, a whole number where it is one."""
        span = sum((getattr(self, unit) or 0) * each for unit, each in _SECONDS.items())
        return int(span) if span == int(span) else span


_SECONDS = {"hours": 3600, "minutes": 60, "seconds": 1}


class Retry(Shape):
    """Another try after one class of failure. Every other key is a setting of the stage, by its path, as it is then."""

    model_config = ConfigDict(extra="allow")

    times: Annotated[int, Field(ge=0)] = Field(
        1, description="tries beyond the first; 0 takes away what is said for all stages"
    )
    delay: Duration | None = Field(
        None,
        description="before the next try, such as `{seconds: 30}`; doubled at each, with jitter",
    )

    @property
    def changes(self) -> dict[str, Any]:
        """Path of a setting within the stage -> its value in the next try; `half` halves it."""
        return self.model_extra or {}


HALF = "half"
"""The word that halves a number, at each try anew."""


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError(
            "names an environment variable, and never holds the address\n"
            "write `webhook: EXPC_WEBHOOK`, and set that variable where the sweep is started"
        )
    return text


class Notify(Shape):
    """Who is told how a sweep goes, through a webhook."""

    webhook: Annotated[str, AfterValidator(_variable)] = Field(
        description="the environment variable that holds the address"
    )
    form: Literal["plain", "discord", "slack"] = Field(
        "plain", description="the JSON that is sent: fields, or a message for a chat"
    )
    on: list[Literal["failed", "done", "end"]] = Field(
        ["failed", "end"],
        min_length=1,
        description="at each stage that failed, at each that is done, at the end of the sweep",
    )


_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,@+-]*$")]
_Count = Annotated[int, Field(ge=1)]


class Slurm(Shape):
    """What a job of a stage asks of Slurm."""

    partition: _Word | None = Field(None, description="the partition, or several with commas")
    time: Duration | None = Field(None, description="the time limit of a job")
    memory_gb: Annotated[float, Field(gt=0)] | None = Field(
        None, description="memory of the host, in GB"
    )
    cpus: _Count | None = Field(None, description="CPUs of each device, or of the run on a CPU")
    account: _Word | None = Field(None, description="the account that is charged")
    qos: _Word | None = Field(None, description="the quality of service")
    constraint: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,@+&|*()\[\]-]+$")] | None = Field(
        None, description="features that a node must have"
    )
    at_once: _Count | None = Field(None, description="jobs of the array that run side by side")
    requeue: bool = Field(True, description="let Slurm queue a job anew that it took the node from")


class RayTask(Shape):
    """What a task of a stage asks of Ray."""

    cpus: Annotated[float, Field(gt=0)] | None = Field(None, description="CPUs of a run")


class Ray(RayTask):
    """The same, and where the cluster is."""

    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/\[\]-]+$")] | None = Field(
        None, description="address of the cluster; `auto` finds the one of this machine"
    )


class StageRun(Shape):
    """How runs of one stage are carried out; what it does not say, the top of the spec does."""

    retry: dict[str, Retry] = Field(
        default_factory=dict,
        description="failure class -> the next try, and the settings that it changes",
        json_schema_extra={"propertyNames": {"enum": list(FAILURES)}},
    )
    timeout: Duration | None = Field(
        None, description="of one attempt at one stage, such as `{hours: 4}`"
    )
    devices: _Count | None = Field(None, description="GPUs of a run, or processes on a CPU")
    slurm: Slurm | None = Field(None, description="a Slurm array of the runs, as `slurm.sh`")
    ray: RayTask | None = Field(None, description="the runs as tasks of Ray, as `ray.sh`")

    def over(self, whole: StageRun) -> StageRun:
        """This laid over what is said for all stages: each class of `retry`, each key of a back end, else key by key.

        A null takes away what is said for all.
        """
        said = self.model_fields_set
        return StageRun(
            retry={**whole.retry, **self.retry},
            timeout=self.timeout if "timeout" in said else whole.timeout,
            devices=self.devices if "devices" in said else whole.devices,
            slurm=_laid(self.slurm, whole.slurm) if "slurm" in said else whole.slurm,
            ray=_laid(self.ray, whole.ray) if "ray" in said else whole.ray,
        )


_S = TypeVar("_S", bound=Shape)


def _laid(over: _S | None, under: _S | None) -> _S | None:
    if over is None or under is None:
        return over
    return under.model_copy(update={key: getattr(over, key) for key in over.model_fields_set})


class Run(StageRun):
    """How runs are carried out: part of no result's identity."""

    ray: Ray | None = Field(None, description="the runs as tasks of Ray, as `ray.sh`")
    notify: Notify | None = Field(None, description="who is told, through a webhook")


class Header(Shape):
    """The top of a spec."""

    expc: Literal[1] = Field(description="version of the language")
    name: str = Field(description="names the folders under generated/ and runs/")
    about: str = Field(description="the question this experiment answers, in a sentence")
    extends: str | None = Field(None, description="a spec to start from; this one's keys win")
    model: dict[str, Raw] = Field(
        default_factory=dict, description="parts shared by all stages, declared once"
    )
    stages: dict[str, Raw] = Field(min_length=1, description="what happens, by name")
    run: Run | None = Field(None, description="how runs are carried out; no part of a result")
    sweep: Sweep = Field(default_factory=Sweep, description="what varies between runs")
