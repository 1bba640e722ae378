"""A model that `lifld` lends to a client of this machine, on its way through the gateway."""

from __future__ import annotations

import asyncio

from lifl.core.errors import Refused, StaleKey
from lifl.core.ids import Key
from lifl.core.protocol import client as cm
from lifl.node.gateway.grant_waiter import Loan
from lifl.node.gateway.outbox import Outbox
from lifl.node.gateway.shared import Shared

MODEL_GONE = "the round's model is gone; wait for the next selection"


async def pass_on(loan: Loan, want: cm.GetModel, shared: Shared, outbox: Outbox) -> None:
    """Hand a loan to the client that asked for it; what does not reach it is given back.  Raise `Refused`."""
    try:
        job, key = shared.job(want.job), Key.unpack(loan.granted.key)
        offset, checksum = shared.arena.offset(key), shared.arena.entry(key).checksum
        told = cm.Model(want.job, want.round, (), job.layout.data_bytes, offset=offset, checksum=checksum)
        outbox.send_frame(*job.model(told, want.digest), descriptors=loan.descriptors)
    except StaleKey as error:
        raise Refused("round-over", "round", MODEL_GONE) from error
    finally:
        line = outbox.flusher
        if line is None:
            loan.close()
        else:  # the descriptors wait in line, whatever becomes of this task: another file must not have their numbers
            line.add_done_callback(lambda _: loan.close())
    if line is not None:
        await asyncio.wait({line})
