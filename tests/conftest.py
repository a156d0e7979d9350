"""What pytest leaves alone, and what a quick run is: ``pytest --quick``.

That leaves out what is slow, needs Kafka or has code compiled, but for a smoke test; and it tries
few examples of each property, and of a test with many parameters a few that are spread over them.
"""

import math
from collections.abc import Iterable
from itertools import groupby

import pytest
from hypothesis import settings

collect_ignore = ["stranger"]  # a package of its own, whose tests run where it is installed

QUICK = "smoke or not (slow or kafka or compiled)"
QUICK_SECONDS = 2.0
QUICK_VARIANTS = 4

settings.register_profile("quick", max_examples=5, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help=f"leave out all but '{QUICK}', and try few examples of each property",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick"):
        settings.load_profile("quick")
        config.option.markexpr = config.option.markexpr or QUICK


@pytest.hookimpl(tryfirst=True)  # before the marks are looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "cache" in getattr(item, "fixturenames", ()):
            item.add_marker("compiled")
    if config.getoption("quick"):
        kept = [item for _, group in groupby(items, _without_parameters) for item in _few(group)]
        config.hook.pytest_deselected(items=[*set(items).difference(kept)])
        items[:] = kept
        for item in items:
            _try_few_examples(getattr(item, "obj", None))


def _without_parameters(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _few(variants: Iterable[pytest.Item]) -> list[pytest.Item]:
    every = list(variants)
    return every[:: math.ceil(len(every) / QUICK_VARIANTS)]


def _try_few_examples(test: object) -> None:
    """Let a test's own number of examples not pass that of the profile; hypothesis asks nobody."""
    name = "_hypothesis_internal_use_settings"
    if own := getattr(test, name, None):
        few = min(own.max_examples, settings().max_examples)
        setattr(test, name, settings(own, max_examples=few, deadline=None))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Name what takes too long for a quick run, and might want the mark ``slow``."""
    if not config.getoption("quick"):
        return
    passed: list[pytest.TestReport] = terminalreporter.getreports("passed")
    slow = [
        report
        for report in passed
        if report.duration > QUICK_SECONDS and "smoke" not in report.keywords
    ]
    if slow:
        terminalreporter.section(f"over {QUICK_SECONDS:g} s, in a quick run")
        for report in sorted(slow, key=lambda one: -one.duration):
            terminalreporter.line(f"{report.duration:.1f} s {report.nodeid} ({report.when})")
