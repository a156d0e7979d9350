"""Metrics and drift detectors of River, by name.

Their state goes into checkpoints without pickle: an object that is built as declared is filled,
attribute by attribute, with what is plain data in another one. No class is named by a checkpoint.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence, Set
from inspect import isclass, ismethod
from threading import Lock
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from streamflow.errors import GraphError, Problem, suggestion
from streamflow.evaluation.measure import plain

Declared: TypeAlias = str | Mapping[str, Mapping[str, Any]]

REQUIRES = {"river": "streamflow-online[river]"}
NEWEST = 100
"""How many drifts are kept by their place."""

TABLES = frozenset({"ClassificationReport", "ConfusionMatrix"})
"""What River has among its metrics that is not one number."""

_PLAIN = (str, bytes, int, float, type(None))
_KINDS: Mapping[str, Any] = {"list": list, "tuple": tuple, "set": set, "deque": deque}


class RiverScores:
    """What River's metrics and a drift detector say about the predictions of a model.

    A detector is given mistakes (0 or 1) of classifiers, absolute errors of numbers.

    Args:
        task: What is predicted.
        classes: The labels in the order of probabilities.
        metrics: As declared.
        drift: Likewise, if there is a detector.

    Attributes:
        num_drifts: How many drifts were found.

    Raises:
        GraphError: River has no such metric or detector, or it does not fit the task.
    """

    def __init__(
        self,
        task: str,
        classes: Sequence[Any] | None,
        metrics: Sequence[Declared],
        drift: Declared | None,
    ) -> None:
        self._is_regression = task == "regression"
        self._classes = classes
        self._lock = Lock()
        self._metrics = {
            _key(declared): _build_metric(declared, place, self._is_regression, classes)
            for place, declared in enumerate(metrics)
        }
        self._drift = None if drift is None else (_key(drift), _build_detector(drift, task))
        self._scored = self.num_drifts = 0
        self._drifts: list[int] = []

    def update(self, predictions: Iterable[Any], targets: Iterable[Any], scores: Any) -> None:
        """Take predictions in whose target is known, in the order of the stream.

        Raises:
            ValueError: A prediction is an array.
        """
        rows = zip(predictions, targets, scores or iter(list, None), strict=False)
        with self._lock:
            for prediction, target, probabilities in rows:
                if target is not None:
                    self._update(prediction, target, probabilities)

    def report(self) -> dict[str, Any]:
        """Return what each metric says, and after how many scored samples drifts were found."""
        with self._lock:
            report: dict[str, Any] = {
                "metrics": {name: plain(metric.get()) for name, metric in self._metrics.items()}
            }
            if self._drift is not None:
                at = list(self._drifts)
                report["drift"] = {
                    "detector": self._drift[0],
                    "found": self.num_drifts,
                    "at": at,
                }
            return report

    def state(self) -> dict[str, Any]:
        """Return all that later samples need, as plain data."""
        with self._lock:
            return {
                "metrics": {name: tree_of(metric) for name, metric in self._metrics.items()},
                "drift": None if self._drift is None else [self._drift[0], tree_of(self._drift[1])],
                "scored": self._scored,
                "found": self.num_drifts,
                "at": list(self._drifts),
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; what was not declared when it was taken begins anew."""
        for name, tree in state["metrics"].items():
            if name in self._metrics:
                fill(self._metrics[name], tree)
        self._scored = state["scored"]
        if self._drift is not None and state["drift"] and state["drift"][0] == self._drift[0]:
            fill(self._drift[1], state["drift"][1])
            self.num_drifts, self._drifts = state["found"], list(state["at"])

    def _update(self, prediction: Any, target: Any, probabilities: Any) -> None:
        if self._is_regression:
            prediction, target = _number(prediction), _number(target)
        for metric in self._metrics.values():
            if self._is_regression or metric.requires_labels:
                metric.update(target, prediction)
            else:
                metric.update(target, dict(zip(self._classes or (), probabilities, strict=True)))
        self._scored += 1
        if self._drift is None:
            return
        _, detector = self._drift
        detector.update(abs(prediction - target) if self._is_regression else prediction != target)
        if detector.drift_detected:
            self.num_drifts += 1
            self._drifts = [*self._drifts, self._scored][-NEWEST:]


def _number(value: Any) -> float:
    array = np.asarray(value, np.float64)
    if array.size != 1:
        message = "expected single numbers for River's metrics, found arrays; remove the metrics"
        raise ValueError(message)
    return float(array.item())


def _key(declared: Declared) -> str:
    """Return what a metric is called in reports: its name, with its options if it has any."""
    if isinstance(declared, str):
        return declared
    [(name, options)] = declared.items()
    return f"{name}({', '.join(f'{key}={json.dumps(item)}' for key, item in options.items())})"


def _build_metric(
    declared: Declared, place: int, is_regression: bool, classes: Sequence[Any] | None
) -> Any:
    from river import metrics

    kind = "RegressionMetric" if is_regression else "ClassificationMetric"
    base = getattr(metrics.base, kind)
    known = _classes_of([metrics], base, but=TABLES)
    what = f"metric of river for {'regression' if is_regression else 'classes'}"
    made = _build(declared, known, what, ("metrics", place))
    if isinstance(made, metrics.base.BinaryMetric) and set(classes or (0, 1)) != {0, 1}:
        # of other labels it says 0, whatever pos_val is
        message = (
            f"expected classes 0 and 1 for {_key(declared)}, which is of two, found "
            f"{', '.join(map(str, classes or ()))}; take one of any classes, such as MacroF1"
        )
        raise GraphError([Problem(("metrics", place), message)])
    return made


def _build_detector(declared: Declared, task: str) -> Any:
    from river import base, drift

    of_numbers, of_mistakes = base.DriftDetector, base.BinaryDriftDetector
    bases = (of_numbers,) if task == "regression" else (of_numbers, of_mistakes)
    spaces = (drift,) if task == "regression" else (drift, drift.binary)
    known = _classes_of(spaces, bases, but={"DummyDriftDetector"})
    return _build(declared, known, "drift detector of river for this task", ("drift",))


def _classes_of(spaces: Iterable[ModuleType], base: Any, *, but: Set[str]) -> dict[str, Any]:
    """Return the classes of modules that have a base, by name."""
    named = {name: getattr(space, name) for space in spaces for name in dir(space)}
    return {
        name: one
        for name, one in named.items()
        if isclass(one) and issubclass(one, base) and name not in but
    }


def _build(
    declared: Declared, known: Mapping[str, Any], what: str, location: tuple[str | int, ...]
) -> Any:
    name, options = (declared, {}) if isinstance(declared, str) else next(iter(declared.items()))
    if name not in known:
        message = f"expected a {what}, found {name}; {suggestion(name, list(known))}"
        raise GraphError([Problem(location, message)])
    try:
        made = known[name](**options)
        tree_of(made)
    except (TypeError, ValueError) as error:
        message = (
            f"expected options that {name} takes and a state that a checkpoint holds, "
            f"found {dict(options)}: {error}; see its docs"
        )
        raise GraphError([Problem(location, message)]) from error
    return made


def tree_of(value: Any) -> Any:
    """Return an object of River as a tree that a checkpoint holds.

    Raises:
        TypeError: It holds something else than plain data, containers, and objects of River.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {"pairs": [[tree_of(key), tree_of(item)] for key, item in value.items()]}
    for kind, container in _KINDS.items():
        if isinstance(value, container):
            items: Iterable[Any] = sorted(value, key=repr) if kind == "set" else value
            return {"kind": kind, "items": [tree_of(item) for item in items]}
    if isinstance(value, random.Random):
        return {"random": tree_of(value.getstate())}
    if type(value).__module__.partition(".")[0] == "river":
        if isinstance(fields := getattr(value, "__dict__", None), dict):
            kept = {name: item for name, item in fields.items() if not ismethod(item)}
            return {"fields": {name: tree_of(item) for name, item in kept.items()}}
        if isinstance(data := value.__getstate__(), bytes):
            return {"bytes": data}
    message = f"expected plain data, found a {type(value).__name__}, which a checkpoint cannot hold"
    raise TypeError(message)


def fill(made: Any, tree: Any) -> Any:
    """Return what `tree_of` was given; objects and containers of ``made`` are filled in place."""
    if not isinstance(tree, Mapping):
        return tree
    if "fields" in tree:
        for name, item in tree["fields"].items():
            setattr(made, name, fill(getattr(made, name, None), item))
    elif "bytes" in tree:
        made.__setstate__(tree["bytes"])
    elif "random" in tree:
        made.setstate(fill(None, tree["random"]))
    elif "pairs" in tree:
        return _filled_mapping(made, tree["pairs"])
    else:
        return _filled_items(made, tree)
    return made


def _filled_mapping(made: Any, pairs: Sequence[Any]) -> Any:
    filled = {} if made is None else made
    factory = filled.default_factory if isinstance(filled, defaultdict) else None
    found = [(fill(None, key), item) for key, item in pairs]
    old = dict(filled)
    filled.clear()
    for key, item in found:
        filled[key] = fill(old.get(key, factory() if factory else None), item)
    return filled


def _filled_items(made: Any, tree: Mapping[str, Any]) -> Any:
    kind = _KINDS[tree["kind"]]
    old = list(made) if isinstance(made, list | tuple) else []
    olds = old if len(old) == len(tree["items"]) else [None] * len(tree["items"])
    items = [fill(one, item) for one, item in zip(olds, tree["items"], strict=True)]
    if not isinstance(made, list | deque | set):
        return kind(items)
    made.clear()
    (made.update if isinstance(made, set) else made.extend)(items)
    return made
