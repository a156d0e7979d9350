"""Accuracy, Cohen's kappa and log loss, beside the last and the most frequent class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamflow.evaluation.measure import ROWS
from streamflow.evaluation.moments import Floats

SMALLEST = 1e-15
"""A probability below counts as this, so that one mistake does not make the loss infinite."""


class Classification:
    """Measures predictions of one of several classes.

    - accuracy: share of predictions that are right.
    - kappa: (accuracy - chance) / (1 - chance), where chance is the accuracy of guesses that are as
      frequent as the predictions but know nothing of the targets (Cohen, 1960, "A coefficient of
      agreement for nominal scales", Educational and Psychological Measurement 20(1)).
    - log_loss: mean of the negative natural logarithm of the target's probability.

    The baselines give probabilities, too. Those of ``majority``, which predicts the most frequent
    class so far (of equals the one that got there first), are (count + 1) / (all + classes). That
    of ``no_change``'s class is (hits + 1) / (samples + 2) from its own record so far, and the other
    classes share the rest.

    Args:
        classes: The labels, in the order of probabilities.

    Raises:
        ValueError: There are fewer than two.
    """

    rows = ("model", "no_change", "majority")
    headline = "accuracy"

    def __init__(self, classes: Sequence[Any]) -> None:
        self._index = {label: float(index) for index, label in enumerate(classes)}
        if len(self._index) < 2:
            message = f"classes: expected at least two, found {list(classes)}; list all labels"
            raise ValueError(message)
        self._counts = [0] * len(self._index)
        self._seen = 0
        self._majority = 0
        self._repeats = 0

    def encode(self, values: Sequence[Any]) -> Floats:
        """Return the places of labels among the classes (N, 1), not a number for none.

        Raises:
            ValueError: A label is none of the classes.
        """
        labels = values.tolist() if isinstance(values, np.ndarray) else values
        try:
            return np.array(
                [math.nan if label is None else self._index[label] for label in labels]
            )[:, None]
        except KeyError as error:
            message = f"expected one of {list(self._index)}, found {error}; list all classes"
            raise ValueError(message) from error

    def score(
        self, targets_ND: Floats, predictions_ND: Floats, previous_ND: Floats, scores: Any
    ) -> Floats:
        """Score samples, then learn their frequencies."""
        targets_N = targets_ND[:, 0]
        given_N = _probabilities(scores, targets_N)
        repeated_N = self._no_change(targets_N, previous_ND[:, 0])
        majority_N, frequency_N = self._frequencies(targets_N)
        guesses_RN = np.stack([predictions_ND[:, 0], previous_ND[:, 0], majority_N])
        probabilities_RN = np.stack([given_N, repeated_N, frequency_N])
        return np.concatenate(
            [guesses_RN == targets_N, _log_losses(probabilities_RN), guesses_RN, targets_N[None]]
        )

    def norm(self) -> Chance:
        """Return the agreement by chance of no samples yet."""
        return Chance(len(self._counts))

    def metrics(self, means: Floats, norm_R: Floats) -> dict[str, Floats]:
        """Return accuracy, kappa and log loss of each row."""
        accuracy_R, log_loss_R = means[:ROWS], means[ROWS:]
        kappa_R = (accuracy_R - norm_R) / (1 - norm_R)
        return {"accuracy": accuracy_R, "kappa": kappa_R, "log_loss": log_loss_R}

    def state(self) -> dict[str, Any]:
        """Return how often each class came, and how the baselines did."""
        return {
            "counts": list(self._counts),
            "seen": self._seen,
            "majority": self._majority,
            "repeats": self._repeats,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the frequencies."""
        self._counts = list(state["counts"])
        self._seen = state["seen"]
        self._majority = state["majority"]
        self._repeats = state["repeats"]

    def _no_change(self, targets_N: Floats, previous_N: Floats) -> Floats:
        """Return the probability that the no-change baseline gives each target."""
        is_hit_N = previous_N == targets_N
        hits_N = self._repeats + np.cumsum(is_hit_N)
        self._repeats = int(hits_N[-1])
        hits_N -= is_hit_N
        # the very first target has no previous one
        trials_N = np.maximum(self._seen - 1 + np.arange(len(targets_N)), 0)
        others = len(self._counts) - 1
        shares_N = np.where(is_hit_N, hits_N + 1.0, (trials_N - hits_N + 1.0) / others)
        return shares_N / (trials_N + 2.0)

    def _frequencies(self, targets_N: Floats) -> tuple[Floats, Floats]:
        """Return the majority class before each target, and the probability it gives to it."""
        counts, majority = self._counts, self._majority
        majorities: list[int] = []
        probabilities: list[float] = []
        for total, target in enumerate(targets_N.astype(int).tolist(), self._seen + len(counts)):
            majorities.append(majority)
            probabilities.append((counts[target] + 1) / total)
            counts[target] += 1
            if counts[target] > counts[majority]:
                majority = target
        self._majority = majority
        self._seen += len(majorities)
        return np.array(majorities, dtype=np.float64), np.array(probabilities)


class Chance:
    """How often guesses and targets would agree if they were independent.

    Args:
        num_classes: How many classes there are.
    """

    def __init__(self, num_classes: int) -> None:
        self._counts = np.zeros((ROWS + 1, num_classes), dtype=np.int64)

    def absorb(self, lower_MN: Floats) -> None:
        """Count the guesses of each row, and the targets."""
        classes = self._counts.shape[1]
        for counts, labels_N in zip(self._counts, lower_MN.astype(np.intp), strict=True):
            counts += np.bincount(labels_N, minlength=classes)

    def value(self) -> Floats:
        """Return the agreement by chance of each row, (R,)."""
        shares = self._counts / self._counts[-1].sum()
        agreement_R: Floats = (shares[:-1] * shares[-1]).sum(axis=1)
        return agreement_R

    def state(self) -> dict[str, Any]:
        """Return the counts."""
        return {"counts": self._counts.copy()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the counts."""
        self._counts = np.array(state["counts"])


def _probabilities(scores: Any, targets_N: Floats) -> Floats:
    """Return the probability that the model gave each target, not a number without scores."""
    if scores is None:
        return np.full(len(targets_N), np.nan)
    scores_NC = np.asarray(scores, dtype=np.float64)
    picked_N: Floats = scores_NC[np.arange(len(targets_N)), targets_N.astype(np.intp)]
    return picked_N


def _log_losses(probabilities_RN: Floats) -> Floats:
    """Return negative logarithms; not numpy's, whose last bit may depend on the array's length."""
    clipped = np.maximum(probabilities_RN, SMALLEST)
    logarithms = map(math.log, clipped.ravel().tolist())
    return -np.fromiter(logarithms, np.float64, clipped.size).reshape(clipped.shape)
