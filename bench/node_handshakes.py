"""What the TLS handshakes of 1,000 clients within 10 s cost a running round of the same node.

Two clients submit one update after the other, over TLS, to a gateway, while a third process makes 1,000 connections at
an even pace, each with its handshake, Hello and Welcome, and leaves them open.  Beside it, interleaved: the same
connections to another gateway of the machine, which takes the same CPU from the round and nothing of its gateway's
loop; and no connections at all.

    python bench/node_handshakes.py FOLDER NAME ADDRESS      (the helper's own entry)
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from measure import Cell, Group, Helper, Target, answer, cpu_s, orders
from node_ingest import QUICK_BYTES, Gateway, expect, layout_of
from node_tls import NODE, SECURED, make_identities, rested

from lifl.client.dialling import Dialler
from lifl.client.stream import GREETING_S, Stream
from lifl.core.protocol import client as cm
from lifl.shm.owned_arena import OwnedArena

HANDSHAKES, QUICK_HANDSHAKES = 1000, 50
WITHIN_S, QUICK_WITHIN_S = 10.0, 0.5
REPETITIONS, QUICK_REPETITIONS = 5, 1
SUBMITTERS = 2
ALONE, ELSEWHERE, HERE = WAYS = ("no handshakes", "handshakes of another gateway", "handshakes of the round's gateway")
SLOWER_MAX = 1.5


def run(quick: bool) -> Group:
    """Measure the three ways, interleaved."""
    count, within_s = (QUICK_HANDSHAKES, QUICK_WITHIN_S) if quick else (HANDSHAKES, WITHIN_S)
    layout = layout_of(QUICK_BYTES)
    rates = {way: Cell(f"updates, {way}", "per s") for way in WAYS}
    slower = {way: Cell(f"the round is slower by, {way}", "times") for way in (ELSEWHERE, HERE)}
    took = {way: Cell(f"time for the handshakes, {way}", "s") for way in (ELSEWHERE, HERE)}
    factor = Cell("handshakes of the round's gateway against those of another", "times")
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lh-")))
        make_identities(folder)
        arena = OwnedArena.create(f"/lifl-bench-{os.getpid()}", 16 * (layout.data_bytes + (1 << 20)) + (4 << 20), 1)
        opened.callback(arena.close, unlink=True)
        here, elsewhere = (opened.enter_context(Gateway(arena, layout, folder / NODE)) for _ in range(2))
        submitters = []
        for number in range(SUBMITTERS):
            arguments = ["send", f"c{number}", str(layout.data_bytes), str(folder)]
            submitters.append(Helper("node_tls.py", arguments))
            opened.callback(submitters[-1].close)
            submitters[-1].reply()
        rested([here.pid, elsewhere.pid])
        for repetition in range(-1, QUICK_REPETITIONS if quick else REPETITIONS):
            found: dict[str, float] = {}
            for way in WAYS:
                target = {ELSEWHERE: elsewhere.tcp, HERE: here.tcp}.get(way)
                before_s = cpu_s([here.pid])
                found[way], shaken_s = _round(submitters, here.tcp, target, folder, count, within_s)
                if repetition >= 0:
                    rates[way].add(found[way], cpu_s([here.pid]) - before_s)
                    if way != ALONE:
                        slower[way].add(found[ALONE] / found[way])
                        took[way].add(shaken_s)
            if repetition >= 0:
                factor.add(found[ELSEWHERE] / found[HERE])
    return Group(
        "handshakes",
        f"Updates of {layout.data_bytes / 1e6:.1f} MB over TLS beside {count} handshakes within {within_s:g} s",
        "Two clients submit without a pause; what another gateway's handshakes cost is the CPU that all of the machine"
        " has less.",
        "the round's gateway, s",
        [*rates.values(), *slower.values(), factor, *took.values()],
        [Target("a round beside its node's handshakes / beside another's", "times", SLOWER_MAX, factor.median)],
    )


def _round(
    submitters: list[Helper], address: str, target: str | None, folder: Path, count: int, within_s: float
) -> tuple[float, float]:
    """Return updates per second while connections are made to `target`, if any, and how long those took."""
    knocker = Helper("node_handshakes.py", [str(folder), "c2", target]) if target else None
    try:
        if knocker is not None:
            knocker.reply()
        for submitter in submitters:
            submitter.order(way=SECURED, address=address)
        for submitter in submitters:
            submitter.reply()
        if knocker is not None:
            knocker.order(count=count, within_s=within_s)
        for submitter in submitters:
            submitter.order(seconds=within_s)
        told = [submitter.reply() for submitter in submitters]
        shaken_s = knocker.reply()["took_s"] if knocker is not None else 0.0
    finally:
        if knocker is not None:
            knocker.close()
    return sum(t["updates"] / (t["end_ns"] - t["begin_ns"]) * 1e9 for t in told), shaken_s


def main() -> None:
    """Make connections at an even pace, when told how many."""
    folder, name, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    dialler = Dialler([address], folder / name)
    answer(ready=True)
    kept = []
    for what in orders():
        begun_s = time.monotonic()
        for number in range(what["count"]):
            time.sleep(max(0.0, begun_s + number * what["within_s"] / what["count"] - time.monotonic()))
            kept.append(Stream(address, GREETING_S, dialler))
            kept[-1].send(cm.Hello(cm.PROTOCOL_VERSION, name))
            expect(kept[-1], cm.Welcome)
        answer(took_s=time.monotonic() - begun_s)


if __name__ == "__main__":
    main()
