"""Shared fixtures, the option `--families`, the markers of tests, and a table of the reference numbers.

The table is printed at the end of a run. It counts the cases that were compared, that were equal, and that were
excluded, with the reasons.

Legend of the tests: B samples of a batch, T frames or temporal grids of a video, N tokens of a frame, M kept tokens,
S columns of a prompt, D width.
"""

from collections import Counter, defaultdict
from pathlib import Path

import goldens
import pytest
from checkpoints import once
from hub_cache import fill_work
from kinds import family_of, kinds_of, watch_for_interpreters

from flashvid_hf.families import FAMILIES_BY_NAME


def pytest_addoption(parser):
    parser.addoption(
        "--families",
        default="",
        help="of the tests about single families, only those about these, separated by commas",
    )


def pytest_configure(config):
    # Here and not where tests are collected: workers of a parallel run would report it as an internal error.
    unknown = _wanted_families(config) - FAMILIES_BY_NAME.keys()
    if unknown:
        known = ", ".join(FAMILIES_BY_NAME)
        raise pytest.UsageError(f"`--families` has {', '.join(sorted(unknown))}: choose from {known}")


def _wanted_families(config) -> set[str]:
    return set(filter(None, config.getoption("--families").split(",")))


def pytest_collection_modifyitems(config, items):
    """Give every test the markers of its kind, and leave out families that were not asked for."""
    for item in items:
        for kind in kinds_of(item):
            item.add_marker(kind)
    wanted = _wanted_families(config)
    if wanted:
        left_out = [item for item in items if family_of(item, FAMILIES_BY_NAME.keys() - wanted)]
        config.hook.pytest_deselected(items=left_out)
        dropped = set(left_out)
        items[:] = [item for item in items if item not in dropped]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with watch_for_interpreters(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with watch_for_interpreters(item):
        return (yield)


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> Path:
    """Folders exported from the recipes, and the Hub cache with their bases, see `fill_work`."""
    return once(tmp_path_factory, "weightless", fill_work)


def pytest_terminal_summary(terminalreporter):
    # The outcomes travel in the reports' properties, which also reach the controlling process of a parallel run.
    outcomes = defaultdict(Counter)
    excluded = defaultdict(Counter)
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", None) != "call":
            continue
        for name, value in report.user_properties:
            if name == goldens.PROPERTY:
                kind, reason = value
                outcomes[kind][report.outcome if reason is None else "excluded"] += 1
                excluded[kind].update([reason] if reason else [])
    if not outcomes:
        return
    terminalreporter.section(f"reference numbers: {goldens.manifest()['set']}")
    width = max(map(len, outcomes))
    terminalreporter.line(f"{'kind':{width}}  compared  equal  excluded")
    for kind, count in sorted(outcomes.items()):
        compared = sum(count.values()) - count["excluded"]
        reasons = ", ".join(f"{reason} {number}" for reason, number in excluded[kind].most_common())
        row = f"{kind:{width}}  {compared:8}  {count['passed']:5}  {count['excluded']:8}  {reasons}"
        terminalreporter.line(row.rstrip())
