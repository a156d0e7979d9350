"""Checkpoints: all that a run knows, kept so that a later one goes on exactly there."""

from streamflow.checkpoints.identity import Identity as Identity
from streamflow.checkpoints.identity import difference as difference
from streamflow.checkpoints.identity import identify as identify
from streamflow.checkpoints.reading import Checkpoint as Checkpoint
from streamflow.checkpoints.snapshot import Snapshot as Snapshot
from streamflow.checkpoints.store import Store as Store
from streamflow.checkpoints.store import folder_of as folder_of
from streamflow.checkpoints.store import open_store as open_store
