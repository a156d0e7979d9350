"""Prequential scores: every prediction is scored before its target is learned, beside baselines."""

from streamflow.evaluation.scorer import Scorer as Scorer
from streamflow.evaluation.scorer import make_scorer as make_scorer
