"""What a client has found of a model, on its way to the node."""

from __future__ import annotations

from lifl.client.books import Books
from lifl.client.gateways import OVER_CODES
from lifl.client.home import Home
from lifl.client.liveness import asking
from lifl.client.outcomes import Settled, Submission
from lifl.client.stream import Stream
from lifl.core.errors import Refused
from lifl.core.protocol import client as cm


def told(home: Home, books: Books, found: cm.Evaluated) -> Submission:
    """Tell the node, again when the connection breaks, and return whether it has taken it.  Raise `Refused`."""
    job, number = found.job, found.round

    def tell(stream: Stream) -> cm.Accepted | cm.Refusal:
        stream.send(found)
        with asking(stream):
            answer: cm.Accepted | cm.Refusal = home.answer(stream, number, cm.Accepted | cm.Refusal)
        return answer

    try:
        answer = home.retrying(tell)
    except Settled as settled:
        return settled.submission
    books.forget_evaluation(number)
    if isinstance(answer, cm.Accepted):
        return Submission(job, number, True)
    if answer.code in OVER_CODES or answer.code == cm.EVALUATION_OVER:
        return Submission(job, number, False, answer.text)
    raise Refused(answer.code, answer.field, answer.text)
