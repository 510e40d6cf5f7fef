"""What test files share as a fixture, and at the end of a run a table of the reference numbers.

The table says which of them were compared, were equal and were excluded why.
"""

from collections import Counter, defaultdict
from pathlib import Path

import goldens
import pytest
from checkpoints import once
from hub_cache import fill_work


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
