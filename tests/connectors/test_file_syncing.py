"""What a checkpoint says of a file is on the disk before the checkpoint is."""

import os
from pathlib import Path

import anyio
import pytest

from streamflow.contracts import Resume
from streamflow.testing.connectors import make_batch
from streamflow_connectors.files import FileSink
from tests.connectors.file_records import resuming


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Paths that were synced, each with the size that it had just then (0 for folders)."""
    calls: list[tuple[str, int]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        calls.append((str(path), path.stat().st_size if path.is_file() else 0))

    monkeypatch.setattr(os, "fsync", watched)
    return calls


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv.gz"])
def test_a_mark_is_given_once_the_file_and_its_name_are_on_the_disk(
    tmp_path: Path, name: str, synced: list[tuple[str, int]]
) -> None:
    async def main() -> int:
        async with FileSink(path=f"deep/{name}").open(resuming(tmp_path)) as writer:
            assert synced == [(str(tmp_path), 0), (str(tmp_path / "deep"), 0)]
            synced.clear()
            await writer.write(make_batch([{"a": 1}, {"a": 2}], in_columns=False))
            await writer.flush()
            assert synced == []
            mark = await writer.mark()
            assert synced == [(str(tmp_path / "deep" / name), mark["bytes"])]
            return int(mark["bytes"])

    assert anyio.run(main) == (tmp_path / "deep" / name).stat().st_size


def test_a_file_is_cut_back_on_the_disk_before_more_is_written(
    tmp_path: Path, synced: list[tuple[str, int]]
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":2}\n')

    async def main() -> None:
        resume = Resume(mark={"path": "out.jsonl", "bytes": 8})
        async with FileSink(path="out.jsonl").open(resuming(tmp_path, resume)):
            assert (str(path), 8) in synced

    anyio.run(main)
