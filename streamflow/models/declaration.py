"""The options of a model node: data only, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from streamflow.errors import GraphError, Problem
from streamflow.models.feature import IMPUTED_INDEX, Feature, FeatureField, Gaps, Rate
from streamflow.nodes.callables import Named
from streamflow.nodes.declarations import Operator

Arguments: TypeAlias = dict[str, Any] | list[Any] | str | int | float | bool | None
"""Arguments of a layer: by name, by place, or a single one."""

Layer: TypeAlias = str | dict[str, Arguments]
"""A layer: its name in ``torch.nn``, alone or with its arguments; ``Linear: [5, 64]``."""

Made: TypeAlias = str | dict[str, dict[str, Any]]
"""Something of torch by its name, alone or with its options; ``SGD: {lr: 0.1}``."""

Task: TypeAlias = Literal["regression", "binary", "classification"]

OUTPUT_FIELDS = ("prediction", "scores", "target", "step", "source")
"""Fields of a model's output records, beside those that ``carry`` names."""

LOSS_TASKS: dict[str, Task] = {
    "binary_cross_entropy": "binary",
    "binary_cross_entropy_with_logits": "binary",
    "cross_entropy": "classification",
    "huber_loss": "regression",
    "l1_loss": "regression",
    "mse_loss": "regression",
    "multi_margin_loss": "classification",
    "nll_loss": "classification",
    "poisson_nll_loss": "regression",
    "smooth_l1_loss": "regression",
}
"""The task that a loss of ``torch.nn.functional`` is for."""

DEFAULT_LOSSES: dict[Task, str] = {
    "regression": "mse_loss",
    "binary": "binary_cross_entropy_with_logits",
    "classification": "cross_entropy",
}


class ModelOptions(Operator):
    """Options of a model, and what they contradict in each other or follow from each other."""

    blocking: ClassVar[bool] = True

    type: Literal["model"] = "model"
    network: Annotated[tuple[Layer, ...], Field(min_length=1)] | Named = Field(
        description="Layers of torch.nn in order, or package.module:callable that returns a module."
    )
    features: tuple[FeatureField, ...] | str = Field(
        min_length=1,
        description="Fields that make up the network's input, arrays with all their elements, or "
        "how a field becomes numbers: {field: region, categories: [north, south]}; or the name of "
        "one array field, whose shape is kept.",
    )
    nan: Gaps = Field(
        "error",
        description="What becomes of a record that lacks a feature: it is a bad record (error), it "
        "is left out and counted (skip), or the running mean stands in (impute).",
    )
    target: str | None = Field(
        None, description="Field to predict; a record without it is predicted and not learned."
    )
    horizon: int | None = Field(
        None, ge=1, description="Forecast the target of the record this many later of the same key."
    )
    task: Task | None = Field(
        None, description="What is predicted; found from the loss where it can be."
    )
    classes: tuple[str | int, ...] | None = Field(
        None, min_length=2, description="Class labels, in the order of the network's outputs."
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="How much a record of each class is learned: factors by label, or balanced, "
        "the rarer the more, up to 10.",
    )
    loss: str | dict[str, dict[str, Any]] | Named | None = Field(
        None,
        description="Loss of torch.nn.functional, alone or with its options, or "
        "package.module:callable of (output, target); by default the usual one for the task.",
    )
    optimizer: Made | Named | Annotated[tuple[Made, ...], Field(min_length=1)] = Field(
        {"SGD": {"lr": 0.01}},
        description="Optimizer of torch.optim, alone or with its options, or "
        "package.module:callable of the parameters; or a list with one for each stage.",
    )
    groups: dict[str, dict[str, Any]] = Field(
        {},
        description="Options of the optimizer for some parameters, by a pattern of their names: "
        "'*.bias': {weight_decay: 0}. The first match counts.",
    )
    scheduler: Made | Named | None = Field(
        None,
        description="Schedule of torch.optim.lr_scheduler with its options, stepped per update, "
        "or package.module:callable of the optimizer.",
    )
    accumulate: int = Field(
        1, ge=1, description="Number of learned records whose mean gradient makes one update."
    )
    stages: Annotated[int, Field(ge=1)] | Literal["auto"] | tuple[str, ...] = Field(
        1,
        description="Number of pipeline stages, names of the modules to cut before, or auto: as "
        "many as the rate needs, or as are fastest.",
    )
    rate: float | None = Field(
        None, gt=0, description="Records per second to keep up with, for stages: auto."
    )
    schedule: Literal["sequential", "1f1b", "greedy", "lockstep"] = Field(
        "1f1b", description="In which order a stage performs its actions."
    )
    backward: Literal["own", "stashed", "newest"] = Field(
        "own", description="At which input and weights gradients are taken."
    )
    executor: Literal["auto", "inline", "threads"] = Field(
        "auto",
        description="What runs the stages: inline, one thread all of them; threads, one each; "
        "auto, what is measured to be faster.",
    )
    devices: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="Device of the network (cpu, cuda:0), or a list with one for each stage."
    )
    compile: Literal["auto", True, False] = Field(
        "auto",
        description="Whether learning is compiled, in one stage or several: auto, in the "
        "background while it goes on eagerly; true, before it goes on; or never, for bitwise "
        "equal runs.",
    )
    clip_norm: float | None = Field(None, gt=0, description="Norm to which gradients are clipped.")
    clip_over: Literal["stage", "network"] = Field(
        "stage", description="Over what the norm is taken; network: with one stage or sequential."
    )
    allow_nonfinite: bool = Field(
        False, description="Apply gradients that are not finite instead of skipping them."
    )
    state: tuple[str, ...] = Field(
        (), description="Buffers of the network that are recurrent state, kept per stream."
    )
    keys: str | None = Field(
        None,
        description="Field that names the stream of a record, for recurrent state; by default "
        "the record's key.",
    )
    max_keys: int = Field(
        10_000, ge=1, description="Number of streams whose recurrent state is kept."
    )
    seed: int = Field(0, description="Seed of the initial weights and of random operations.")
    standardize_target: bool = Field(
        False, description="Learn the target less its running mean, over its standard deviation."
    )
    weights: str | None = Field(None, description="File in safetensors to start from.")
    learn: bool = Field(True, description="Whether to learn, or only predict and score.")
    carry: tuple[str, ...] = Field((), description="Fields to copy into the output records.")
    named: bool = Field(
        False, description="Whether output records tell the name of the model, as `model`."
    )
    metrics: tuple[Made, ...] = Field(
        (), description="Metrics of River beside ours, by name: [F1, {FBeta: {beta: 2}}]."
    )
    drift: Made | None = Field(
        None,
        description="Detector of River that tells in the report when errors change: ADWIN, or "
        "{ADWIN: {delta: 0.01}}.",
    )
    on_drift: Literal["report", "reset"] | Rate = Field(
        "report",
        description="What a drift brings about: it is told in the report, the network begins anew "
        "(reset), or learns at other rates for a while: {rate: 10, records: 500}.",
    )
    window: int = Field(
        1000, ge=1, description="Number of records of the windowed score in reports."
    )

    @field_validator("class_weights", mode="before")
    @classmethod
    def _check_labels(cls, declared: Any) -> Any:
        """Name classes by text, as YAML does."""
        if isinstance(declared, Mapping):
            return {str(label): weight for label, weight in declared.items()}
        return declared

    @field_validator("network", "loss", "optimizer", "scheduler", "metrics", "drift")
    @classmethod
    def _check_single(cls, declared: Any) -> Any:
        for named in declared if isinstance(declared, tuple) else (declared,):
            if isinstance(named, dict) and len(named) != 1:
                message = (
                    f"expected one name with its options, found {', '.join(named) or 'none'}; "
                    f"indent options below their name, and begin each layer with a dash"
                )
                raise ValueError(message)
        return declared

    @model_validator(mode="after")
    def _check(self) -> ModelOptions:
        if problems := list(self._contradictions()):
            raise GraphError(problems)
        return self

    def _contradictions(self) -> Iterator[Problem]:
        """Yield what does not go together."""
        if (self.schedule == "lockstep") != (self.backward == "newest"):
            yield Problem(
                ("schedule" if self.schedule == "lockstep" else "backward",),
                "expected backward: newest with schedule: lockstep and only there, "
                f"found {self.backward} with {self.schedule}; change one of them",
            )
        own = {*OUTPUT_FIELDS, "model"} if self.named else {*OUTPUT_FIELDS}
        if clash := sorted(own.intersection(self.carry)):
            yield Problem(
                ("carry",),
                f"expected carry to name other fields than the output's own, found {clash[0]}; "
                f"rename the field with a rename operator before the model",
            )
        if self.rate and self.stages != "auto":
            yield Problem(
                ("rate",),
                f"expected a rate with stages: auto only, found stages: {self.stages}; "
                f"remove one of them",
            )
        yield from self._target_contradictions()
        yield from self._task_contradictions()
        yield from self._state_contradictions()
        yield from self._drift_contradictions()
        for place, feature in enumerate(self.resolved_features):
            if feature.encode == "index" and (feature.nan or self.nan) == "impute":
                yield Problem(("features", place), IMPUTED_INDEX)

    def _target_contradictions(self) -> Iterator[Problem]:
        if self.target is None and self.learn and (self.loss is None or self.loss_name):
            yield Problem(
                ("target",),
                "expected a target to learn, found none; "
                "name its field, give a loss of the output alone, or set learn: false",
            )
        if self.horizon and not self.target:
            yield Problem(("horizon",), "expected a target to forecast, found none; name its field")
        if self.target and not self.resolved_task:
            yield Problem(
                ("loss",),
                "expected a task, found a loss that does not tell it; "
                "set task to regression, binary or classification",
            )

    def _task_contradictions(self) -> Iterator[Problem]:
        classes, task = self.classes or (), self.resolved_task
        if classes and task == "regression":
            yield Problem(
                ("classes",),
                "expected no classes for regression, found some; set task: classification",
            )
        if self.standardize_target and task != "regression":
            yield Problem(
                ("standardize_target",),
                f"expected standardize_target with regression only, found {task or 'no task'}; "
                f"remove it",
            )
        if repeated := [name for index, name in enumerate(classes) if name in classes[:index]]:
            yield Problem(
                ("classes",), f"expected each class once, found {repeated[0]} twice; remove one"
            )
        if self.class_weights is not None and (task == "regression" or not self.target):
            yield Problem(
                ("class_weights",),
                f"expected class_weights with a target of classes, found "
                f"{task if self.target else 'no target'}; remove it",
            )
        if (self.metrics or self.drift) and not self.target:
            name = "metrics" if self.metrics else "drift"
            yield Problem((name,), "expected a target to score, found none; name its field")
        if task == "binary" and classes and len(classes) != 2:
            yield Problem(
                ("classes",),
                f"expected two classes for a binary task, found {len(classes)}; "
                f"set task: classification, or name two",
            )

    def _state_contradictions(self) -> Iterator[Problem]:
        if self.horizon and self.state:
            yield Problem(
                ("state",),
                "expected no recurrent state with a horizon, as a record is learned long after "
                "its state has moved on, found some; pass earlier values as features",
            )
        if self.keys and not self.state:
            yield Problem(
                ("keys",),
                "expected recurrent state for keys, found none; name its buffers in state",
            )

    def _drift_contradictions(self) -> Iterator[Problem]:
        if self.on_drift == "report":
            return
        both = "remove one of them"
        wanted = {
            "a detector in drift": (self.drift is not None, "none", "name one, such as ADWIN"),
            "learn: true": (self.learn, "learn: false", both),
            "no horizon": (not self.horizon, "one", both),
            "no scheduler, which sets the rates itself": (not self.scheduler, "one", both),
            "compile: auto or false": (self.compile is not True, "true", "remove it"),
        }
        for what, (is_met, found, cure) in wanted.items():
            if not is_met:
                yield Problem(
                    ("on_drift",), f"expected {what} with an action, found {found}; {cure}"
                )

    @property
    def holds(self) -> bool:
        """Whether records wait for their target, at the horizon."""
        return self.horizon is not None

    @property
    def resolved_features(self) -> tuple[Feature, ...]:
        """All features as declarations."""
        named = (self.features,) if isinstance(self.features, str) else self.features
        return tuple(Feature(field=one) if isinstance(one, str) else one for one in named)

    def has_gaps(self, gaps: Gaps) -> bool:
        """Return whether this becomes of a record that lacks some feature."""
        return any((feature.nan or self.nan) == gaps for feature in self.resolved_features)

    @property
    def loss_name(self) -> str | None:
        """Name of the loss in ``torch.nn.functional``; ``None`` for the user's own, or none."""
        loss = self.loss
        if loss is None and self.task:
            return DEFAULT_LOSSES[self.task]
        if loss is None and (self.target or self.classes):
            return DEFAULT_LOSSES["classification" if self.classes else "regression"]
        name = next(iter(loss)) if isinstance(loss, dict) else loss
        if not isinstance(name, str) or ":" in name:
            return None
        return f"{name}_loss" if f"{name}_loss" in LOSS_TASKS else name

    @property
    def resolved_task(self) -> Task | None:
        """The task, as declared or as the loss tells it."""
        if self.task:
            return self.task
        name = self.loss_name
        return LOSS_TASKS.get(name) if name else None
