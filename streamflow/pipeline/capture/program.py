"""What a stage does with one sample as pure functions: graphs that are to be compiled.

A graph takes tensors and returns tensors in this order:

    takes     held, constants, and rows of the sample: factors where something is learned, inputs,
              the random numbers that its forward draws, and what else it needs
    returns   the new values of what is written among the held, outputs, and where something is
              learned a number that is finite if loss and gradients are

Held are parameters, what the optimizer keeps of them, and buffers; constants are the tensors that
network and loss have beside these. Factors (groups, factors) are those of the optimizer's formula.
Where a pipeline has one stage, or its last one, a graph learns a whole sample: it needs target and
weight too. The other stages have a graph of the forward, and one of the backward with the update
that begins with the forward again (``own``): it needs the buffers that the forward writes, as they
were before, and the gradients of what the stage returns, and returns those of its inputs.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule

from streamflow.pipeline.capture.noise import Noise


@dataclass(frozen=True, slots=True)
class Layout:
    """What a graph takes and returns.

    Attributes:
        held: Count of held tensors.
        written: Which of them are written, parameters first.
        kept: For each parameter that is learned, itself and what the optimizer keeps of it.
        learned: How many of the written are parameters or what the optimizer keeps of them.
        constants: Count of constants.
        inputs: Count of tensors of an input.
        others: Count of tensors that a sample has beside, without random numbers and weight.
        weights: 1 where samples are weighted.
        learns: Whether something is learned.
        is_checked: Whether it must be told if something was not finite.
    """

    held: int
    written: tuple[int, ...]
    kept: tuple[tuple[int, ...], ...]
    learned: int
    constants: int
    inputs: int
    others: int
    weights: int
    learns: bool
    is_checked: bool


@dataclass(frozen=True, slots=True)
class Program:
    """A graph.

    Attributes:
        graph: What happens; see above.
        layout: What it takes and returns.
        arguments: A tensor for each that it takes.
        constants: The constants themselves.
        noises: Random numbers that a sample takes.
    """

    graph: GraphModule
    layout: Layout
    arguments: list[Tensor]
    constants: list[Tensor]
    noises: list[Noise]
