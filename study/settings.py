"""The study's smaller sections: exceptions, scheduler, resources, checkpoints."""

from __future__ import annotations

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
    """What one trial takes. Missing values are chosen from what the cluster has."""

    model_config = STRICT
    cpu: int | None = Field(None, ge=1)
    gpu: float | None = Field(None, ge=0, allow_inf_nan=False)

    @field_validator("gpu")
    @classmethod
    def _whole_or_share(cls, gpu: float | None) -> float | None:
        if gpu is not None and gpu > 1 and gpu != int(gpu):
            raise ValueError("more than one GPU has to be a whole number")
        return gpu


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
