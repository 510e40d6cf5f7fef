"""Prints, at the end of a run, which of the reference numbers were compared, were equal and were excluded why."""

from collections import Counter, defaultdict

import goldens


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
