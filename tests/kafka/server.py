"""A real Apache Kafka for the tests: fetched once by Maven, one process per test session."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

KAFKA_VERSION = "4.1.1"
START_SECONDS = 60
ATTEMPTS = 3

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>streamflow.tests</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""

PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{plain},SASL://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL://127.0.0.1:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
listener.name.sasl.sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config={login} required user_{user}="{password}";
log.dirs={folder}/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
"""

LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
USER, PASSWORD = "alice", "a-secret-of-alice"

# Kills the broker when the test session closes the pipe, which it does however it ends.
SUPERVISOR = """
import subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def watch():
    sys.stdin.read()
    server.kill()
threading.Thread(target=watch, daemon=True).start()
sys.exit(server.wait())
"""


@dataclass
class Server:
    """A broker, which keeps its data and ports when it is stopped and started again.

    Attributes:
        address: Where it listens, as host:port.
        sasl_address: Likewise, where it wants a login.
    """

    address: str
    sasl_address: str
    _command: list[str]
    _log: Path
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SUPERVISOR, *self._command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt from the keyboard is for pytest alone
            )
        for address in (self.address, self.sasl_address):
            self._wait_for(address, self._process)

    def stop(self) -> None:
        """Kill it."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process = None

    def _wait_for(self, address: str, process: subprocess.Popen[bytes]) -> None:
        host, port = address.split(":")
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        message = f"Kafka did not start:\n{self._log.read_text(errors='replace')[-4000:]}"
        raise RuntimeError(message)


def missing_tools() -> list[str]:
    return [tool for tool in ("java", "mvn") if shutil.which(tool) is None]


@contextmanager
def running_server() -> Iterator[Server]:
    """Fetch Kafka unless it is there, and run it until the block is left."""
    jars = _fetched_jars()
    for attempt in range(1, ATTEMPTS + 1):
        with tempfile.TemporaryDirectory(prefix="streamflow-kafka-") as name:
            server = _formatted(jars, Path(name))
            try:
                server.start()
            except RuntimeError:  # somebody took one of the ports in the meantime, most likely
                server.stop()
                if attempt == ATTEMPTS:
                    raise
                continue
            try:
                yield server
            finally:
                server.stop()
            return


def _fetched_jars() -> Path:
    """Return the folder with Kafka's jars, fetched once per user; safe to call at the same time."""
    default = Path.home() / ".cache" / "streamflow-tests"
    cache = Path(os.environ.get("STREAMFLOW_TEST_CACHE") or default)
    jars = cache / f"kafka-{KAFKA_VERSION}"
    if jars.is_dir():
        return jars
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name)
        (folder / "pom.xml").write_text(POM)
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=lib"]
        _check_call(["mvn", "-B", "-q", *goal], folder)
        try:
            (folder / "lib").rename(jars)
        except OSError:  # another session was first
            assert jars.is_dir()
    return jars


def _formatted(jars: Path, folder: Path) -> Server:
    """Return a server whose data lie in a folder."""
    plain, sasl, controller = _free_ports(3)
    settings = {"plain": plain, "sasl": sasl, "controller": controller, "folder": folder}
    properties = folder / "server.properties"
    properties.write_text(
        PROPERTIES.format(login=LOGIN, user=USER, password=PASSWORD, **settings),
    )
    java = ["java", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*"]
    cluster = "t" + urlsafe_b64encode(uuid4().bytes).decode()[1:22]
    tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)]
    _check_call([*java, *tool], folder)
    command = [*java, "kafka.Kafka", str(properties)]
    addresses = f"127.0.0.1:{plain}", f"127.0.0.1:{sasl}"
    return Server(*addresses, command, folder / "server.log")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def _check_call(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"{' '.join(command[:3])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        raise RuntimeError(message)
