"""Pages that are told what happens: who has many open makes place for who has none."""

from __future__ import annotations

from lifl.core.limits import WEB_VISITS_MAX, WEB_WATCHERS_MAX
from lifl.node.http.visits import Secrets
from lifl.node.http.watchers import Watcher, Watchers


def test_each_visit_gets_a_place_and_none_gets_all_of_them() -> None:
    """So a reader who opens pages without end keeps no operator from looking."""
    assert WEB_WATCHERS_MAX >= WEB_VISITS_MAX
    watchers = Watchers(None)  # type: ignore[arg-type]
    reader, operator = Secrets("c1", "k1"), Secrets("c2", "k2")
    pages = [Watcher(reader, "") for _ in range(WEB_WATCHERS_MAX)]
    watchers._all = list(pages)
    assert not watchers._makes_place(reader) and not any(page.ended for page in pages)
    assert watchers._makes_place(operator)
    assert [page.ended for page in pages] == [True] + [False] * (WEB_WATCHERS_MAX - 1), "the oldest of who has most"
    watchers._all = [Watcher(Secrets("c", str(number)), "") for number in range(WEB_WATCHERS_MAX)]
    assert not watchers._makes_place(operator), "one of each"
