"""Transactions that only the leader's term can perform, each once, whatever becomes of requests and answers.

Every transaction compares the create revision of the leader's key, and of each key that it writes the revision that
it was last changed at.  So one of a term that is over changes nothing; and one that was sent twice, or that comes late,
is performed once.  When no answer came, what is there is read: it is there, or it is not and is sent again (which the
comparison makes safe), or another leads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lifl import failpoints
from lifl.node.etcd.client import Etcd, StoreFault, Uncertain

log = logging.getLogger("lifl.store")

PAUSE_S = 0.2
"""Between two looks at a store that does not answer."""


class Deposed(Exception):
    """Another node leads, or none: this term is over."""


class Found(NamedTuple):
    """What there is: the create revision of the leader's key (0: none), and value and revision of each key."""

    term: int
    rows: dict[bytes, tuple[bytes, int]]


def verdict(term: int, puts: Mapping[bytes, bytes], expected: Mapping[bytes, int], found: Found) -> str:
    """Return what is known of a transaction by what there is: ``done``, ``again``, or ``deposed``.

    `expected` are the revisions that it compares.  Its keys change together, or not at all.
    """
    if all(found.rows[key][0] == value and found.rows[key][1] > expected[key] for key, value in puts.items()):
        return "done" if found.term == term else "deposed"
    untouched = all(found.rows[key][1] == expected[key] for key in puts)
    return "again" if found.term == term and untouched else "deposed"


class FencedWriter:
    """Writes for one term at a time.  `revisions` has the revision of each key that this term has read or written."""

    def __init__(self, etcd: Etcd, leader: bytes) -> None:
        self._etcd = etcd
        self._pb = etcd.pb
        self._leader = leader
        self.term = 0
        self.revisions: dict[bytes, int] = {}
        self.trouble = ""
        """Why the store does not answer now."""

    async def write(self, puts: Mapping[bytes, bytes], deletes: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Change keys, all or nothing, once.  Raise `Deposed`; `StoreFault` when etcd refuses it.

        A store that does not answer is asked again and again.
        """
        expected = {key: self.revisions.get(key, 0) for key in puts}
        while True:
            failpoints.hit("lifld.txn.before")
            done = await self._tried(puts, deletes, expected)
            failpoints.hit("lifld.txn.after")
            if done:
                break
        self.trouble = ""
        for begin, end in deletes:
            for key in [key for key in self.revisions if begin <= key < end]:
                del self.revisions[key]

    async def _tried(
        self, puts: Mapping[bytes, bytes], deletes: Sequence[tuple[bytes, bytes]], expected: Mapping[bytes, int]
    ) -> bool:
        """Try once, and return whether it is performed."""
        try:
            answer = await self._etcd.txn(self._request(puts, deletes, expected))
        except Uncertain as fault:
            self._note(fault)
            answer = await self._read(puts)
        else:
            if answer.succeeded:
                self._performed(dict.fromkeys(puts, answer.header.revision))
                return True
        found = self._found(answer, puts)
        known = verdict(self.term, puts, expected, found)
        log.info("store.read_back term=%d keys=%d %s", self.term, len(puts), known)
        if known == "deposed":
            raise Deposed(f"term {self.term} is over: the leader's key is of {found.term or 'nobody'}")
        if known == "done":
            self._performed({key: found.rows[key][1] for key in puts})
        return known == "done"

    def _performed(self, revisions: Mapping[bytes, int]) -> None:
        self.revisions.update(revisions)

    def _request(
        self, puts: Mapping[bytes, bytes], deletes: Sequence[tuple[bytes, bytes]], expected: Mapping[bytes, int]
    ) -> Any:
        pb = self._pb
        fence = pb.Compare(target=pb.Compare.CREATE, key=self._leader, create_revision=self.term)
        unchanged = [pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=expected[key]) for key in puts]
        done = [pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)) for key, value in puts.items()]
        gone = [
            pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=begin, range_end=end)) for begin, end in deletes
        ]
        return pb.TxnRequest(compare=[fence, *unchanged], success=[*gone, *done], failure=self._looks(puts))

    def _looks(self, puts: Mapping[bytes, bytes]) -> list[Any]:
        pb = self._pb
        return [pb.RequestOp(request_range=pb.RangeRequest(key=key)) for key in (self._leader, *puts)]

    async def _read(self, puts: Mapping[bytes, bytes]) -> Any:
        """Return what there is, as soon as the store answers."""
        while True:
            try:
                return await self._etcd.read(self._pb.TxnRequest(success=self._looks(puts)))
            except StoreFault as fault:
                self._note(fault)
            await asyncio.sleep(PAUSE_S)

    def _note(self, fault: StoreFault) -> None:
        if not self.trouble:
            log.warning("store.trouble term=%d %s", self.term, fault)
        self.trouble = str(fault)

    def _found(self, answer: Any, puts: Mapping[bytes, bytes]) -> Found:
        leader, *rest = [next(iter(each.response_range.kvs), None) for each in answer.responses]
        rows = {
            key: (kv.value, kv.mod_revision) if kv is not None else (b"", 0) for key, kv in zip(puts, rest, strict=True)
        }
        return Found(leader.create_revision if leader is not None else 0, rows)
