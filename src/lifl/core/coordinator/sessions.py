"""What the hosts of sessions of folds ask, each of its own session alone, and who has a ticket for one."""

from __future__ import annotations

from lifl.core.coordinator.coordinator import Coordinator
from lifl.core.coordinator.presence import Connection
from lifl.core.coordinator.session import Session, revoke
from lifl.core.errors import Refused
from lifl.core.events import SessionHosted
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import tickets as tm

FromHost = SessionHosted | gm.FoldAsked | gm.ModelPut | gm.SessionEnded | gm.PartTaken | tm.RevocationAsked


def ask(coordinator: Coordinator, event: FromHost) -> None:
    """Do what a host at this node's gateway asks; it is told why not."""
    here = Connection(coordinator.nodes.home, event.conn)
    try:
        job = coordinator.jobs.get(event.job)
        if not isinstance(job, Session) or job.over:
            text = f"this node has no session of folds {event.job!r}; open it again"
            raise Refused("unknown-job", "job", text)
        with coordinator._turn.share(job.spec.number):
            if not isinstance(event, SessionHosted | gm.PartTaken) and job.host != here:
                raise Refused("not-host", "job", f"session {event.job!r} is another connection's")
            _do(job, here, event)
            coordinator._settle(job)
    except Refused as refused:
        coordinator.presence.refuse(here, refused, event.job, getattr(event, "round", -1))


def _do(session: Session, here: Connection, event: FromHost) -> None:
    match event:
        case SessionHosted():
            session.hosted(here, event.secret, event.revoked)
        case gm.PartTaken():
            session.take_part(here, event)
        case gm.ModelPut():
            session.put_model(here, event)
        case gm.SessionEnded():
            session.end("finished", "")
        case tm.RevocationAsked():
            revoke(session, event)
        case gm.FoldAsked(_conn, _job, fold, "open", expected):
            session.open_fold(fold, expected)
        case gm.FoldAsked(_conn, _job, fold, "close"):
            session.close_fold(fold)
        case gm.FoldAsked(_conn, _job, fold):
            session.cancel_fold(fold)
