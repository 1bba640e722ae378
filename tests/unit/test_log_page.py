"""docs/log.md has the events of the log, all of them, and none that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/lifl"
SAYS = re.compile(
    r"""(?:\b\w*log\w*\.(?:debug|info|warning|error|exception|log)|\b_?say|\b_record|\b_publish|\bPublish)\(
        \s*(?:[\w.\[\]]+,\s*)?f?"(?P<text>[^"]*)\"""",
    re.VERBOSE,
)
"""A line of the log in the source; a level or the like may stand first."""
EVENT = re.compile(r"([a-z]+\.[a-z_-]+)(?=$|\s|:)")
PARTS = {
    "%s.accept": ("gateway", "http", "cli", "peer"),  # `Listening`
    "%s.failed": ("carry", "fetch"),
    "journal.%s": ("paused", "goes_on"),
}
"""What stands in the place of a part of a name."""


def named(text: str) -> Iterator[str]:
    """The events that the text of a line in the source stands for."""
    for form, parts in PARTS.items():
        if text.startswith(form):
            yield from (form.replace("%s", part) for part in parts)
            return
    if found := EVENT.match(text):
        yield found[1]


def said(path: Path) -> Iterator[str]:
    """The events that a file says."""
    for found in SAYS.finditer(path.read_text()):
        yield from named(found["text"])


def test_the_page_has_the_events_of_the_log_and_no_others() -> None:
    page = (ROOT / "docs/log.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    shown = {name for cell in rows for name in re.findall(r"`([a-z]+\.[a-z_-]+)`", cell)}
    wanted = {event for path in sorted(SOURCE.rglob("*.py")) for event in said(path)}
    assert sorted(wanted - shown) == []
    assert sorted(shown - wanted) == []
