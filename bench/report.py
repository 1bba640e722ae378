"""The report of a run: REPORT.md with a table of targets first, a PNG for each plot, report.json with all figures.

A target that was missed is shown as MISSED beside those that were met, a cell that did not run with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from measure import table, targets_markdown
from systems.interface import Outcome, Section

Found = Sequence[tuple[Section, Outcome]]


def heading(about: Mapping[str, str]) -> str:
    """Return title and circumstances."""
    lines = "".join(f"- {name}: {text}\n" for name, text in about.items())
    return f"# LIFL against serverful and serverless aggregation, Flower and NVFlare\n\n{lines}"


def section_text(section: Section, outcome: Outcome, pictures: bool = True) -> str:
    """Return one section in Markdown."""
    parts = [f"## {section.TITLE}"]
    for one in outcome.tables:
        parts.append(f"### {one.title}\n\n{table(one.head, one.rows)}" + (f"\n\n{one.about}" if one.about else ""))
    if pictures:
        parts += [f"![{plot.title}]({plot.name}.png)" for plot in outcome.plots]
    for title, lines in (("Not run", outcome.absent), ("FAILED", outcome.failures)):
        if lines:
            parts.append(f"### {title}\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def write(out: Path, about: Mapping[str, str], found: Found, absent: Sequence[str], judged: bool) -> Path:
    """Write the report to the folder `out`; return REPORT.md.  Targets are judged only in full runs."""
    out.mkdir(parents=True, exist_ok=True)
    targets = [target for _, outcome in found for target in outcome.targets]
    parts = [heading(about)]
    if absent:
        parts.append("Not run:\n\n" + "\n".join(f"- {text}" for text in absent) + "\n")
    if judged:
        lost = [target for target in targets if not target.met]
        parts.append(targets_markdown(targets) + f"\n{len(targets) - len(lost)} met, {len(lost)} missed.\n")
    else:
        parts.append("Small sizes: times are not judged.\n")
    parts += [section_text(section, outcome) for section, outcome in found]
    for _, outcome in found:
        for plot in outcome.plots:
            _draw(out / f"{plot.name}.png", plot.title, plot.draw)
    told = {
        "about": dict(about),
        "absent": list(absent),
        "targets": [
            {"name": t.name, "unit": t.unit, "limit": t.limit, "at_least": t.at_least, "measured": t.measured}
            | {"met": t.met}
            for t in targets
        ],
        "sections": {
            section.NAME: {"data": outcome.data, "absent": outcome.absent, "failures": outcome.failures}
            for section, outcome in found
        },
    }
    (out / "report.json").write_text(json.dumps(msgspec.to_builtins(told), indent=1) + "\n")
    path = out / "REPORT.md"
    path.write_text("\n".join(parts))
    return path


def _draw(path: Path, title: str, draw: object) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.set_title(title)
    assert callable(draw)
    draw(axes)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
