"""What is known of how a stage runs samples of one kind, once that is recorded."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from streamflow.pipeline.capture import noise
from streamflow.pipeline.capture.held_tensors import HeldTensors
from streamflow.pipeline.capture.program import Program
from streamflow.pipeline.capture.tensor_spec import TensorSpec
from streamflow.pipeline.torch_private import pytree


@dataclass(frozen=True, slots=True)
class Recording:
    """How a stage runs samples of one kind.

    Attributes:
        learn: All of a sample, or its backward and update.
        forward: Its forward alone.
        held: What both take first.
        counted: Parameters whose optimizer counts steps, by group.
        values: Structure of what the stage is called with.
        structure: Of an output.
        inputs: Tensors of what it is called with.
        outputs: Tensors of an output.
        reached: For each of them that can carry a gradient, whether one comes back.
    """

    learn: Program
    forward: Program
    held: HeldTensors
    counted: list[list[nn.Parameter]]
    values: pytree.TreeSpec
    structure: pytree.TreeSpec
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    reached: list[bool]

    @property
    def noises(self) -> list[noise.Noise]:
        """Random numbers that a forward draws."""
        return self.forward.noises

    @property
    def programs(self) -> list[Program]:
        """The learning and the forward."""
        return [self.learn, self.forward]

    @property
    def snapshots(self) -> dict[str, int]:
        """Buffers that the forward writes, and where they are among the held."""
        return self.held.buffers_at(self.forward.layout.written)

    @property
    def gradients(self) -> list[TensorSpec]:
        """The tensors of an output by which a gradient comes."""
        return reached_of(self.outputs, self.reached)


def reached_of(outputs: Sequence[TensorSpec], reached: Sequence[bool]) -> list[TensorSpec]:
    """Return those of the outputs by which a gradient comes; none does in the last stage."""
    floats = [spec for spec in outputs if spec.can_carry_gradient]
    return [spec for spec, is_there in zip(floats, reached, strict=False) if is_there]
