import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from streamflow.checkpoints import Checkpoint, Snapshot, folder_of, manifest, reading
from streamflow.checkpoints.store import file_names
from streamflow.errors import CheckpointError, GraphError
from tests.checkpoints.programs import program
from tests.checkpoints.sameness import are_same
from tests.checkpoints.states import number_of, snapshot, store_at


def listing(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def test_there_is_none_at_first(tmp_path: Path) -> None:
    with store_at(tmp_path / "a" / "b") as store:
        assert store.latest() is None
        assert repr(store) == f"<Store {tmp_path}/a/b: 0 checkpoints>"


def test_what_is_written_is_found(tmp_path: Path) -> None:
    written = Snapshot(
        records={"a": 5, "b": 0},
        positions={
            "a": {(("topic", "t"), ("partition", 0)): 3, (("topic", "t"), ("partition", 1)): 2},
            "b": {(): 0},
        },
        states={
            "m": {"weights": torch.ones(2, dtype=torch.bfloat16), "held": [(1, b"2", None)]},
            "count": {"n": 10**30, "array": np.arange(3)},
            "nothing": {},
        },
        marks={"out": {"path": "out.jsonl", "bytes": 12}, "kafka": {}},
    )
    with store_at(tmp_path) as store:
        store.write(written)
    with store_at(tmp_path) as store:
        found = store.latest()
        assert found is not None
        read = found.snapshot()
    assert are_same(read.states, written.states)
    assert read == Snapshot(written.records, written.positions, read.states, written.marks)
    assert listing(found.path) == ["count.safetensors", "m.safetensors", "manifest.json"]
    assert found.size_bytes == sum(item.stat().st_size for item in found.path.iterdir())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    with store_at(tmp_path, keep=2) as store:
        for number in range(1, 6):
            store.write(snapshot(number))
            found = store.latest()
            assert found is not None
            assert number_of(found.snapshot()) == number
            assert len(reading.names(tmp_path)) == min(number, 2)
    assert listing(tmp_path) == [".lock", "00000004", "00000005"]


def test_fewer_are_kept_once_that_is_asked_for(tmp_path: Path) -> None:
    with store_at(tmp_path, keep=3) as store:
        for number in (1, 2, 3):
            store.write(snapshot(number))
    with store_at(tmp_path, keep=1) as store:
        store.write(snapshot(4))
    assert reading.names(tmp_path) == ["00000004"]


def test_names_sort_beyond_eight_digits(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        first = store.write(snapshot(1))
        first.path.rename(tmp_path / "99999999")
        assert store.write(snapshot(2)).name == "100000000"
        found = store.latest()
    assert found is not None
    assert found.name == "100000000"


def test_those_put_aside_do_not_count_and_stay(tmp_path: Path) -> None:
    with store_at(tmp_path, keep=2) as store:
        names = [store.write(snapshot(number)).name for number in (1, 2)]
        assert store.put_aside(after=names[0]) == names[1:]
        assert number_of(store.read(names[0]).snapshot()) == 1
        assert [store.write(snapshot(number)).name for number in (3, 4)] == ["00000003", "00000004"]
        assert store.put_aside(after=None) == ["00000003", "00000004"]
        assert store.latest() is None
        assert store.write(snapshot(5)).name == "00000005"
    assert listing(tmp_path) == [
        ".lock",
        *("00000002.aside", "00000003.aside", "00000004.aside", "00000005"),
    ]


def test_one_that_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        store.write(snapshot(1))
        with pytest.raises(CheckpointError, match=r"found 7; there are: 00000001$"):
            store.read("7")


def test_what_is_half_written_is_ignored_and_removed(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        written = store.write(snapshot(1))
    shutil.copytree(written.path, tmp_path / ".00000002.new")
    shutil.copytree(written.path, tmp_path / ".00000000.old")
    own = ["notes.txt", ".00000002.newer", "7"]
    for name in own:
        (tmp_path / name).mkdir()
    assert reading.names(tmp_path) == ["00000001"]
    with store_at(tmp_path) as store:
        found = store.latest()
    assert found is not None
    assert found.path == written.path
    assert listing(tmp_path) == sorted([".lock", "00000001", *own])


def damage_by_flipping(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


def damage_by_lengthening(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGES = {
    damage_by_flipping: "expected its checksum, found another one",
    damage_by_cutting: "expected 8095 bytes, found 8094",
    damage_by_emptying: "expected 8095 bytes, found 0",
    damage_by_lengthening: "expected 8095 bytes, found 8096",
    Path.unlink: "expected a file, found none that can be read (No such file or directory)",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["m.safetensors", "manifest.json"])
def test_a_damaged_one_is_skipped_and_named(
    damage: Any, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with store_at(tmp_path) as store:
        store.write(snapshot(1))
        path = store.write(snapshot(2)).path / file
        size = path.stat().st_size
        damage(path)
        found = store.latest()
        assert found is not None
        assert number_of(found.snapshot()) == 1
        with pytest.raises(CheckpointError, match=file):
            store.read("00000002")
    (message,) = caplog.messages
    assert message.startswith(str(path.parent))
    assert file in message
    if file == "m.safetensors":
        assert DAMAGES[damage].replace("8095", str(size)).partition(", found")[0] in message
    elif damage is Path.unlink:
        assert "expected the manifest of a checkpoint, found: no such file" in message
    else:
        assert "expected its own checksum, found another one; it is damaged" in message


def test_nothing_begins_anew_over_damaged_ones(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        paths = [store.write(snapshot(number)).path for number in (1, 2)]
        (paths[0] / "m.safetensors").unlink()
        (paths[1] / "manifest.json").unlink()
        with pytest.raises(CheckpointError) as error:
            store.latest()
    assert "expected a checkpoint that is whole, found all damaged" in str(error.value)
    assert "m.safetensors: expected a file" in str(error.value)
    assert "manifest.json: expected the manifest" in str(error.value)
    assert str(error.value).endswith("or move the folder away to begin anew")


def test_one_of_another_version_is_refused_and_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store_at(tmp_path) as store:
        store.write(snapshot(1))
        with monkeypatch.context() as later:
            later.setattr(manifest, "FORMAT", 2)
            store.write(snapshot(2))
        with pytest.raises(CheckpointError, match=r"00000002/manifest.json: expected format 1, fo"):
            store.latest()


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        path = store.write(snapshot(1)).path
    data = json.loads((path / "manifest.json").read_bytes())["manifest"]
    data["files"]["../other"] = {"size_bytes": 1, "sha256": ""}
    text = json.dumps(data).encode()
    content = manifest.START + hashlib.sha256(text).hexdigest().encode()
    (path / "manifest.json").write_bytes(content + manifest.MIDDLE + text + manifest.END)
    with pytest.raises(CheckpointError, match="expected names of files beside it, found "):
        reading.read(path)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Snapshot(states={"m": {"a": {1}}}), "m.a: expected numbers, text"),
        (Snapshot(marks={"out": {"a": np.arange(3)}}), "out.a: expected plain data in the mark"),
    ],
)
def test_what_cannot_be_kept_leaves_no_trace(
    broken: Snapshot, message: str, tmp_path: Path
) -> None:
    with store_at(tmp_path) as store:
        store.write(snapshot(1))
        with pytest.raises(CheckpointError, match=message):
            store.write(broken)
        assert listing(tmp_path) == [".lock", "00000001"]
        assert store.write(snapshot(2)).name == "00000002"


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path) -> None:
    done = program("write_at_most", tmp_path, 4000)
    assert done.returncode == 0, done.stderr
    message, files = done.stdout.splitlines()
    assert message.startswith(f"{tmp_path}: expected to write a checkpoint, found: ")
    assert "file too large" in message.lower()
    assert files == "['.lock', '00000001']"
    found = reading.newest(tmp_path)
    assert found is not None
    assert number_of(found.snapshot()) == 1


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """Give a disk of 64 KiB of its own."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
@pytest.mark.parametrize("in_manifest", [False, True])
def test_a_disk_that_is_full_is_named_and_can_be_used_again(
    in_manifest: bool, tmp_path: Path
) -> None:
    large: dict[str, Any] = {"a": "x" * 10**5} if in_manifest else {"a": np.zeros(10**5)}
    with small_disk(tmp_path / "disk") as path, store_at(path) as store:
        store.write(snapshot(1))
        with pytest.raises(CheckpointError, match=r"(?i)no space left on device"):
            store.write(Snapshot(states={"m": large}))
        assert listing(path) == [".lock", "00000001"]
        found = store.latest()
        assert found is not None
        assert number_of(found.snapshot()) == 1
        assert number_of(store.write(snapshot(2)).snapshot()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
def test_a_disk_that_became_read_only_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as path:
        with store_at(path) as store:
            store.write(snapshot(1))
        subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
        with pytest.raises(CheckpointError, match="read-only file system; choose a folder that"):
            store_at(path).__enter__()
        found = reading.newest(path)
    assert found is not None


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError) as error:
            store_at(path).__enter__()
        assert str(error.value).startswith(f"{path}: expected a folder for checkpoints, found: ")
        assert str(error.value).endswith("; choose a path that is a folder, or none yet")


def test_a_folder_that_was_removed_or_replaced_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with store_at(path) as store:
        store.write(snapshot(1))
        path.rename(tmp_path / "moved")
        with pytest.raises(CheckpointError, match="has locked, found none; leave it alone"):
            store.write(snapshot(2))
        with store_at(path):
            pass
        with pytest.raises(CheckpointError, match="has locked, found another one; leave it alone"):
            store.write(snapshot(2))
    assert listing(path) == [".lock"]
    assert listing(tmp_path / "moved") == [".lock", "00000001"]


def test_a_folder_that_is_missing_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a folder of checkpoints, found: no such"):
        reading.newest(tmp_path / "none")


def test_what_cannot_be_removed_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with store_at(tmp_path, keep=1) as store:
        store.write(snapshot(1))
        (tmp_path / ".00000001.old").mkdir()
        (tmp_path / ".00000001.old" / "in the way").touch()
        store.write(snapshot(2))
        found = store.latest()
    assert found is not None
    assert number_of(found.snapshot()) == 2
    assert "00000001: expected to remove it, found: " in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_kill_leaves_anything_but_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c"
    done = program("die_often", path, 120, 1)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    rows = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(rows) == 120
    for began, safe, found in rows:
        assert began <= safe <= found <= safe + 1
    assert all(one[2] == other[0] for one, other in pairwise(rows))
    assert rows[-1][2] > 20
    with store_at(path):
        assert not [name for name in listing(path) if name.endswith((".new", ".old"))]


def test_a_checkpoint_gets_its_name_once_all_of_it_is_on_the_disk(tmp_path: Path) -> None:
    with store_at(tmp_path, keep=1) as store:
        store.write(snapshot(1))
        calls: list[tuple[str, str]] = []

        def profile(frame: FrameType, event: str, argument: Any) -> None:
            if event == "c_call" and argument is os.fsync:
                descriptor = frame.f_locals.get("descriptor") or frame.f_locals["file"].fileno()
                calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
            elif event == "c_call" and argument is os.rename:
                calls.append(("rename", str(frame.f_locals["self"])))

        sys.setprofile(profile)
        try:
            store.write(snapshot(2))
        finally:
            sys.setprofile(None)
    new = f"{tmp_path}/.00000002.new"
    assert calls == [
        ("sync", f"{new}/m.safetensors"),
        ("sync", f"{new}/manifest.json"),
        ("sync", new),
        ("rename", new),
        ("sync", str(tmp_path)),
        ("rename", f"{tmp_path}/00000001"),
    ]


def test_a_folder_is_of_one_run(tmp_path: Path) -> None:
    with store_at(tmp_path), pytest.raises(CheckpointError) as error:
        store_at(tmp_path).__enter__()
    assert str(error.value).startswith(
        f"{tmp_path}: expected no other run with these checkpoints, found process {os.getpid()} on "
    )
    assert str(error.value).endswith("; stop it, or give this run a path of its own")
    with store_at(tmp_path):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_goes_away_with_its_process(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.checkpoints.programs", "hold", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=f"found process {holder.pid} on .* since "):
            store_at(tmp_path).__enter__()
        holder.send_signal(number)
        holder.wait()
    with store_at(tmp_path) as store:
        store.write(snapshot(1))


def test_a_lock_is_not_inherited_by_programs_that_a_run_starts(tmp_path: Path) -> None:
    with store_at(tmp_path):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    with store_at(tmp_path), child:
        pass


def test_a_system_without_locks_is_named(tmp_path: Path) -> None:
    done = program("without_locks", tmp_path)
    assert "expected a system that locks files (the module fcntl), found none" in done.stdout


def test_reading_needs_no_lock(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        store.write(snapshot(1))
        found = reading.newest(tmp_path)
    assert isinstance(found, Checkpoint)


def test_any_node_has_a_file_of_its_own(tmp_path: Path) -> None:
    nodes = [
        *("m", "M", "größe", "../up", "a/b", "", ".", "..", "x" * 300, "x" * 301, "nul\0", "%41"),
        *("A", "\ud800", "m~2", "con", "manifest.json", "a b", "日本"),
    ]
    names = file_names(nodes)
    assert len({name.casefold() for name in names.values()}) == len(nodes)
    with store_at(tmp_path) as store:
        states = {node: {"a": np.array([index])} for index, node in enumerate(nodes)}
        written = store.write(Snapshot(states=states))
        found = reading.read(written.path)
    assert not found.problems()
    assert are_same(found.snapshot().states, states)
    assert len(listing(found.path)) == len(nodes) + 1
    assert names["m"] == "m.safetensors"


@pytest.mark.slow
def test_large_states_are_copied_at_most_once(tmp_path: Path) -> None:
    done = program("measure_memory", tmp_path)
    assert done.returncode == 0, done.stderr
    written, read = map(int, done.stdout.split())
    state = 64 * 2**20
    assert written < state / 4
    assert read < 1.25 * state


def test_a_path_may_name_the_instance(tmp_path: Path) -> None:
    assert folder_of("c", folder=tmp_path, instance="0") == tmp_path / "c"
    assert folder_of("/c/{instance}/d", folder=tmp_path, instance="a-1") == Path("/c/a-1/d")


@pytest.mark.parametrize("instance", ["", "a/b", "..", "a\\b"])
def test_an_instance_is_a_name(instance: str, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"checkpoint.path: expected a name for \{instance\}"):
        folder_of("{instance}", folder=tmp_path, instance=instance)


class Waiting(dict[str, Any]):
    """States that are not there before somebody says so."""

    def __init__(self) -> None:
        super().__init__(m={"n": 1})
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[str]:
        self.begun.set()
        self.may_end.wait(60)
        return super().__iter__()


def test_a_write_that_outlives_its_store_keeps_the_folder_locked(tmp_path: Path) -> None:
    states = Waiting()
    with store_at(tmp_path) as store:
        writing = threading.Thread(target=store.write, args=[Snapshot(states=states)])
        writing.start()
        states.begun.wait()
    with (
        pytest.raises(CheckpointError, match="expected no other run with these checkpoints"),
        store_at(tmp_path),
    ):
        pytest.fail("the folder was given to another")
    states.may_end.set()
    writing.join()
    with store_at(tmp_path) as store:
        found = store.latest()
        assert found is not None
        assert found.snapshot().states == {"m": {"n": 1}}


def test_the_checkpoint_of_the_start_has_the_number_zero(tmp_path: Path) -> None:
    with store_at(tmp_path, keep=2) as store:
        assert store.write_first(Snapshot({"a": 0}, {"a": {}})).name == "00000000"
        assert store.write(snapshot(1)).name == "00000001"
        found = store.latest()
        assert found is not None
        assert not found.is_first
        assert store.read("00000000").is_first
        store.put_aside(after=None)
        assert store.write_first(Snapshot({"a": 0}, {"a": {}})).name == "00000002"
