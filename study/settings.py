"""The study's smaller sections: exceptions, scheduler, resources, checkpoints."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from trainables.problems import nearest
from trainables.recipe import Recipe

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class Exceptional(BaseModel):
    """Settings of the cells that match: `when` compares recipe settings, or `arm`; a list matches any of its values."""

    model_config = STRICT
    when: dict[str, Any] = Field(min_length=1)
    set: dict[str, Any] = Field(min_length=1)

    @field_validator("when", "set")
    @classmethod
    def _known(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        known = [*Recipe.model_fields, *(["arm"] if info.field_name == "when" else [])]
        for key in settings:
            if key not in known:
                raise ValueError(f"unknown setting {key!r}{nearest(key, known)}")
        return settings


class Scheduler(BaseModel):
    """`fifo` runs every cell in full. `asha` stops cells early by their mean validation accuracy (Li et al. 2020)."""

    model_config = STRICT
    name: Literal["fifo", "asha"] = "fifo"
    grace_period: int | None = Field(None, ge=1, description="epochs before a cell can be stopped")
    reduction_factor: int | None = Field(None, ge=2, description="about one cell in so many goes on at each rung")

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        defaults = {"grace_period": 1, "reduction_factor": 4}
        for key, default in defaults.items():
            if self.name == "asha" and getattr(self, key) is None:
                self.__dict__[key] = default
            elif self.name == "fifo" and getattr(self, key) is not None:
                raise ValueError(f"{key} belongs to asha; fifo does not use it")
        return self

    def settings(self) -> tuple[int, int]:
        """ASHA's grace period and reduction factor; they are resolved where it is asha."""
        assert self.grace_period is not None
        assert self.reduction_factor is not None
        return self.grace_period, self.reduction_factor

    def __str__(self) -> str:
        if self.name == "fifo":
            return "fifo"
        return f"asha(grace_period={self.grace_period}, reduction_factor={self.reduction_factor})"


class Resources(BaseModel):
    """What one trial takes. Missing values are chosen from what the cluster has.

    With more than one GPU, or more than one of `processes` on CPUs, the trial's seeds are trained at the same time, or
    every batch of each is shared by all: `data_parallel`. None of it is part of a cell's identity: with seeds side by
    side no number changes, and sharing batches changes the order of sums, as another kind of device does; `device` in
    the tables says so ("2 x CPU").
    """

    model_config = STRICT
    cpu: int | None = Field(None, ge=1, description="of all its processes together")
    gpu: float | None = Field(None, ge=0, allow_inf_nan=False)
    processes: int | None = Field(None, ge=1, description="one for each GPU if missing")
    data_parallel: bool = Field(False, description="share each batch of a replicate, not the seeds")

    @field_validator("gpu")
    @classmethod
    def _whole_or_share(cls, gpu: float | None) -> float | None:
        if gpu is not None and gpu > 1 and gpu != int(gpu):
            raise ValueError("more than one GPU has to be a whole number")
        return gpu

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.processes is not None and self.gpu and self.processes != max(1, self.gpu):
            raise ValueError(f"processes {self.processes} for gpu {self.gpu:g}: each process has one GPU; leave it out")
        if self.processes is not None and self.cpu is not None and self.cpu < self.processes:
            raise ValueError(f"processes {self.processes} on cpu {self.cpu}: each needs one")
        if self.data_parallel and self.several == 1:
            raise ValueError("data_parallel needs gpu or processes above 1")
        return self

    def abreast(self, seeds: int) -> int:
        """Replicates of so many that a trial trains at the same time."""
        return 1 if self.data_parallel else max(1, min(self.several, seeds))

    @property
    def several(self) -> int:
        """Processes that train in one trial."""
        return self.processes or max(1, int(self.gpu or 0))


class Checkpoints(BaseModel):
    """How often a trial's state is written, how many are kept, and whether a finished trial keeps its last."""

    model_config = STRICT
    every: int | None = Field(None, ge=1, description="epochs; missing: by time")
    seconds: float | None = Field(None, ge=0, description="of training between two; 60 if `every` is missing")
    keep: int = Field(2, ge=1)
    final: bool = True

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        if self.every is not None and self.seconds is not None:
            raise ValueError("give either every or seconds")
        if self.every is None and self.seconds is None:
            self.__dict__["seconds"] = 60.0
        return self


#: Seconds in a unit of time, by how people write it.
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Budget(BaseModel):
    """What all runs of a study together may take. It is no part of what a cell is: with a larger one the study goes on.

    `gpu_hours` counts GPUs as trials reserve them (half a GPU for two hours is one GPU hour) and does not limit trials
    without one. `wall` is the time during which the study was run: a number of seconds, or text with a unit, `45 s`,
    `90 min`, `12 h`, `2 d`; kept in seconds. `cost` is in the currency of `price`.
    """

    model_config = STRICT
    gpu_hours: float | None = Field(None, gt=0, allow_inf_nan=False)
    wall: float | None = Field(None, gt=0, allow_inf_nan=False, description="seconds, or text with s, min, h or d")
    cost: float | None = Field(None, gt=0, allow_inf_nan=False)

    @field_validator("wall", mode="before")
    @classmethod
    def _with_unit(cls, wall: Any) -> Any:
        if not isinstance(wall, str):
            return wall
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d)\s*", wall)
        if found is None:
            raise ValueError(f"{wall!r} is no length of time: write seconds, or `90 min`, `12 h`, `2 d`")
        return float(found[1]) * _UNITS[found[2]]

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return any(limit is not None for limit in (self.gpu_hours, self.wall, self.cost))


class Price(BaseModel):
    """What an hour of a device costs: `gpu` of a GPU, `cpu` of a CPU of a trial that has no GPU; a missing one is free.

    A number stands for both, `2.10 EUR` too. `currency` is shown as it is written and never converted.
    """

    model_config = STRICT
    gpu: float = Field(0.0, ge=0, allow_inf_nan=False)
    cpu: float = Field(0.0, ge=0, allow_inf_nan=False)
    currency: str = Field("", max_length=12, pattern=r"^[^\s\x00-\x1f\x7f]*$")

    @model_validator(mode="before")
    @classmethod
    def _of_any_device(cls, price: Any) -> Any:
        if isinstance(price, int | float) and not isinstance(price, bool):
            return {"gpu": price, "cpu": price}
        if isinstance(price, str):
            found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(\S+)\s*", price)
            if found is None:
                raise ValueError(f"{price!r} is no price: write a number, `2.10 EUR`, or gpu, cpu and currency")
            return {"gpu": float(found[1]), "cpu": float(found[1]), "currency": found[2]}
        return price
