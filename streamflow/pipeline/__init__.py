"""The pipeline of stages: per-sample online learning of a PyTorch network.

Imports torch and the standard library, and of streamflow only its errors.
"""

from streamflow.pipeline.pipeline import Pipeline

__all__ = ["Pipeline"]
