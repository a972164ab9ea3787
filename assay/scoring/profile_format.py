"""What a scoring profile may say: sections of rows and columns, weights, and the targets of function tests."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Scalar = str | int | float | bool | None
Match = dict[str, Scalar | list[Scalar]]
"""Tag → the value that a figure must carry, or several of which it must carry one. null: it must carry none."""


class Data(BaseModel):
    """Base of what is read from YAML: unknown keys are errors, and so are numbers that are none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Targets(Data):
    """What a training must reach to count as supported. Every target that is given must be met.

    steps or epochs: how long must be trained; without either, however long it was. loss: mean of the last ten steps until
    then, at most. variance: of the loss against the baseline's curve, at most. ppl: on held-out data, at most.
    weights: `pretrained` if the targets hold only for a model that begins with given weights.
    """

    steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    loss: float | None = Field(None, gt=0)
    variance: float | None = Field(None, ge=0)
    ppl: float | None = Field(None, gt=0)
    weights: Literal["any", "pretrained"] = "any"

    @model_validator(mode="after")
    def _can_be_judged(self) -> "Targets":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.loss is None and self.variance is None and self.ppl is None:
            raise ValueError("give at least one of loss, variance and ppl")
        return self


class ProfileRow(Data):
    """One row of a section: how much it weighs and which measurement it wants.

    match null: which one is not known; `reason` says why, and the row is NA. title: how the row is called.
    """

    weight: float = Field(gt=0)
    match: Match | None
    title: str | None = None
    reason: str | None = None
    targets: Targets | None = None

    @model_validator(mode="after")
    def _says_why(self) -> "ProfileRow":
        if self.match is None and not self.reason:
            raise ValueError("a row that matches nothing (match: null) needs a reason")
        return self


class ProfileColumn(Data):
    """One configuration in which every row is measured. match: beside that of the row."""

    title: str
    match: Match


class ProfileSection(Data):
    """One scored part.

    metric: the figure whose ratio to the baseline's is the score; `support` counts function tests instead. from_baseline,
    written as `rows: baseline`: every figure of the baseline with the section's metric is a row, equally weighted. columns: a row's score is the mean over
    them. scripts: whose cases count; none: those of every script. chapter: where the report shows the table.
    """

    key: str
    title: str
    metric: Literal["throughput_deepspeed", "tgs", "support"]
    rows: list[ProfileRow] = Field(default_factory=list)
    from_baseline: bool = False
    columns: list[ProfileColumn] = Field(default_factory=list)
    scripts: list[str] = Field(default_factory=list)
    chapter: Literal["", "training", "finetuning"] = ""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("rows") == "baseline":
            return {**given, "rows": [], "from_baseline": True}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> "ProfileSection":
        if self.from_baseline == bool(self.rows):
            raise ValueError("give rows, or `rows: baseline`")
        if self.metric == "support":
            if self.from_baseline or self.columns:
                raise ValueError("a section of function tests has rows of its own, and no columns")
            rows = enumerate(self.rows, 1)
            bare = next((place for place, row in rows if row.match is not None and row.targets is None), None)
            if bare is not None:
                raise ValueError(f"row {bare} of the function tests has no targets")
        elif any(row.targets for row in self.rows):
            raise ValueError("targets are for function tests (metric: support)")
        return self


class Profile(Data):
    """Which figures make which score. baseline: the one used when none is named."""

    schema_: Literal["assay-profile/1"] = Field(alias="schema")
    name: str
    title: str
    source: str
    baseline: str | None
    sections: list[ProfileSection]
