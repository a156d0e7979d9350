"""How fast a model learns on this machine, in every way it can be run."""

from streamflow.bench.contest import Progress as Progress
from streamflow.bench.contest import Settings as Settings
from streamflow.bench.contest import bench_model as bench_model
from streamflow.bench.results import Result as Result
from streamflow.bench.results import Row as Row
from streamflow.bench.ways import SelectionError as SelectionError
from streamflow.bench.worker import WayError as WayError
