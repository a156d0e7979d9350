"""Parcels: batches under way, with the shares of what they descend from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from streamflow.records import Batch, concatenate
from streamflow.runtime.acks import Share


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch under way, with the shares of the source records it descends from."""

    batch: Batch
    shares: tuple[Share, ...] = ()

    def split(self, batches: Sequence[Batch]) -> list[Parcel]:
        """Give up this parcel for one with each of ``batches`` (at least one)."""
        parts = [share.split(len(batches)) for share in self.shares]
        shares = zip(*parts, strict=True) if parts else [()] * len(batches)
        return [Parcel(batch, part) for batch, part in zip(batches, shares, strict=True)]

    def cut(self, num_records: int) -> tuple[Parcel, Parcel]:
        """Give up this parcel for one with its first records and one with the rest."""
        head = self.batch.slice(0, num_records)
        tail = self.batch.slice(num_records, len(self.batch))
        size_bytes = self.batch.size_bytes - head.size_bytes  # so that the sizes add up
        first, rest = self.split([head, replace(tail, size_bytes=size_bytes)])
        return first, rest

    def finish(self) -> None:
        """Say that this batch and all its descendants are finished."""
        finish(self.shares)


def finish(shares: Iterable[Share]) -> None:
    """Finish all ``shares``."""
    for share in shares:
        share.finish()


def join(parcels: Sequence[Parcel]) -> Parcel:
    """Return the records of all ``parcels`` (at least one), in order, as one."""
    shares = tuple(share for parcel in parcels for share in parcel.shares)
    return Parcel(concatenate([parcel.batch for parcel in parcels]), shares)


def num_fitting(batch: Batch, records: int, size_bytes: int) -> int:
    """Return how many records of a batch fit into so much room, all taken to be of one size."""
    if records <= 0 or size_bytes < 0:
        return 0
    if batch.size_bytes > size_bytes:
        records = min(records, size_bytes * len(batch) // batch.size_bytes)
    return min(records, len(batch))
