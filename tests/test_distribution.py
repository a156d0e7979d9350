"""The name on the package index, where ``streamflow`` is another project's."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import streamflow
from streamflow.distribution import NAME, stranger_in

ROOT = Path(__file__).parents[1]
PACKAGE = Path(streamflow.__path__[0])
OTHER = "streamflow-0.2.0.dist-info"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder of installed packages, where another project's file lies within ours."""
    shutil.copytree(PACKAGE, tmp_path / "streamflow", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "streamflow/version.py").write_text('VERSION = "0.2.0"\n')
    for name, file in (("streamflow", "version"), ("streamflow_online", "graph/__init__")):
        described = tmp_path / f"{name}-0.2.0.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.2.0\n"
        )
        (described / "RECORD").write_text(f"streamflow/{file}.py,,\n")
    return tmp_path


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_first_import_tells_of_another_projects_files(site: Path) -> None:
    done = python(site, "-c", "import streamflow, streamflow.version; streamflow.Record")
    assert done.returncode == 0
    [warning] = re.findall("^<string>:1: RuntimeWarning: (.*)", done.stderr, re.MULTILINE)
    assert warning.startswith(f"{site / 'streamflow'}: expected the files of {NAME} alone")
    assert f"those of {OTHER}" in warning
    assert warning.endswith(f"pip install --force-reinstall --no-deps {NAME}")


def test_the_doctor_tells_of_another_projects_files(site: Path) -> None:
    code = "from streamflow.cli.doctor import _streamflow as looked; print(looked())"
    found = python(site, "-W", "ignore", "-c", code).stdout
    assert "found='0.2.0; " in found
    assert f"those of {OTHER}" in found
    assert "cure='run: pip uninstall streamflow && " in found


def test_ours_alone_is_no_reason_for_a_warning(site: Path) -> None:
    shutil.rmtree(site / OTHER)
    done = python(site, "-c", "import streamflow; streamflow.Record")
    assert (done.returncode, done.stderr) == (0, "")


def test_within_an_archive_there_are_no_neighbours(tmp_path: Path) -> None:
    assert stranger_in(str(tmp_path / "packed.whl" / "streamflow")) is None


def test_nothing_says_to_install_the_other_project() -> None:
    """Extras and requirements are of our name: ``streamflow[kafka]`` would bring a stranger's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == NAME
    folders = ("streamflow", "connectors", "docs", "examples", "tests", "benchmarks")
    files = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".ipynb"} and path != Path(__file__)
    ]
    wrong = re.compile(r"pip install [^&]*\bstreamflow(?![-\w/.])|\bstreamflow\\?\[\w")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (*files, *ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "tox.ini")
        for line in path.read_text(encoding="utf-8").splitlines()
        if wrong.search(line)
    ]
    assert not found
