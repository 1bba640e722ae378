"""What must hold in every life, each under a name: a life that breaks one says which.

Each check has a planted bug (`plants.py`) that it must find; `test_canary.py` holds that none is without.
"""

from __future__ import annotations

CHECKS = {
    "counted-once": "a committed model has the update of each of its members exactly once, and no other",
    "accepted-survives": "what was told ACCEPTED is in arena or ledger until it counts, or expires with a reason",
    "one-commit": "a round of a job is committed at most once",
    "commit-order": "rounds are committed in their order",
    "rows-first": "what a round was made of is there until its row is written",
    "empty-at-rest": "when all jobs are over nothing of them is in any arena",
    "arena-bound": "no object lies beyond the arena's end, or over another",
    "no-workers": "when all jobs are over no worker is left",
    "told": "a client that waits for what becomes of its update is told, and each hears that its job is over",
    "sealed-first": "nothing reads an object that is not sealed",
    "freed-never-read": "nothing that is wanted reads an object that was freed",
    "copied": "a gateway is told that a job's model is another one before it is granted that",
    "direct-slot": "a slot that a direct client may still write to is given to no other object",
    "jobs-apart": "a job ends as it should, whatever becomes of others",
    "cancel-frees": "a cancelled job is over at once, and its room free as soon as no process can touch it",
    "begun-ends": "where nothing fails no round fails: its reservation lets it end",
    "partial-once": "a top takes the partial of an update once, however often it is offered",
    "epoch-fence": "a task takes only what was made for its own attempt at its own round",
    "same-replay": "the recorded events lead to the same effects once more",
    "paused": "a job that runs may be paused, let go on and changed, and no round of one that is paused opens",
    "evaluated": "a committed round is evaluated once, and no round opens meanwhile",
    "in-line": "who stands first in line begins as soon as there is room, and nobody before",
    "kept": "the models of rounds that do not stay are gone in the end, whatever died meanwhile",
    "returns": "a job that is over, and no other, may go on or be removed",
    "drained": "a node that is drained gets nothing new, until that is undone; what it has counts",
    "books": "all books of an engine agree with each other",
}


class Broken(BaseException):
    """A life in which something does not hold; `name` is that of the check.

    No `Exception`: the engine lays those to a job, and goes on.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}; yet {CHECKS[name]}")
        self.name = name


def must(holds: object, name: str, text: str) -> None:
    """Raise `Broken` unless it holds."""
    if not holds:
        raise Broken(name, text)
