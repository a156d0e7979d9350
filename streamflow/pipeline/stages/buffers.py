"""The buffers of a stage as a forward saw them, copied only when they changed."""

from dataclasses import dataclass

from torch import Tensor, nn

from streamflow.pipeline.torch_private import buffers_of, version_of


@dataclass(frozen=True, slots=True)
class _Copy:
    source: Tensor
    version: int
    copy: Tensor


class Buffers:
    """The buffers of a module, under the module's own names.

    A snapshot shares its tensors with earlier snapshots of the same content. Whoever runs the
    module on a snapshot may write into it as long as snapshots are used in the order they were
    taken.

    Attributes:
        places: Name, owner and the owner's name of every buffer, also of one that is None.
    """

    def __init__(self, module: nn.Module) -> None:
        self.places = [
            (f"{path}.{key}" if path else key, owner, key)
            for path, owner in module.named_modules()
            for key in buffers_of(owner).keys()  # noqa: SIM118  # a script module's has no iterator
        ]
        self._copies: dict[str, _Copy] = {}

    def __len__(self) -> int:
        return len(self.places)

    def current(self) -> dict[str, Tensor]:
        """Return the buffers themselves."""
        tensors = ((name, buffers_of(owner)[key]) for name, owner, key in self.places)
        return {name: tensor for name, tensor in tensors if tensor is not None}

    def clone(self) -> dict[str, Tensor]:
        """Return copies that belong to the caller."""
        return {name: tensor.detach().clone() for name, tensor in self.current().items()}

    def detach(self) -> None:
        """Cut off the graph what a forward wrote, so that none reaches from sample to sample."""
        for _, owner, key in self.places:
            tensor = buffers_of(owner)[key]
            if tensor is not None and tensor.requires_grad:
                buffers_of(owner)[key] = tensor.detach()

    def snapshot(self) -> dict[str, Tensor]:
        """Return copies of the buffers as they are now."""
        return {name: self._copy(name, tensor) for name, tensor in self.current().items()}

    def forget(self) -> None:
        """Expect that buffers were written without torch knowing of it."""
        self._copies.clear()

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        kept = self._copies.get(name)
        if kept is None or kept.source is not tensor or kept.version != version_of(tensor):
            kept = _Copy(tensor, version_of(tensor), tensor.detach().clone())
            self._copies[name] = kept
        return kept.copy
