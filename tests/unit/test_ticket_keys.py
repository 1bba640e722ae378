"""Tickets that let their holders in: whose entry counts, for what and until when, and which were revoked."""

from __future__ import annotations

import pytest

from lifl.core.errors import Refused
from lifl.core.fields import RevokedTicket
from lifl.core.ids import epoch_of
from lifl.core.limits import REVOKED_TICKETS_MAX
from lifl.core.protocol import client as cm
from lifl.core.trust.ticket import ANY_FOLD, Holder, RevokedTickets, TicketKeys, credential_of, entry_key, entry_of

NOW, FOLD = 1000.0, epoch_of(3, 2)
KEY = entry_key("secret", "s")
HOLDER = Holder("s", FOLD, "site-1", 900, 1001)


def entry(holder: Holder = HOLDER, key: str = KEY) -> str:
    return entry_of(key, *holder)


def keys() -> TicketKeys:
    made = TicketKeys()
    made.told("s", KEY)
    return made


def code(known: TicketKeys, holder: Holder = HOLDER, shown: str | None = None, now: float = NOW) -> str:
    """How that is refused; empty when it is not."""
    try:
        known.check(holder, entry(holder) if shown is None else shown, now)
    except Refused as refused:
        return refused.code
    return ""


def test_an_entry_counts_as_it_was_made_until_it_expires_and_its_session_ends() -> None:
    known = keys()
    assert code(known) == ""
    assert code(known, now=1001.0) == "ticket-expired"
    for field, other in (("job", "t"), ("fold", FOLD + 1), ("client", "site-2"), ("made_unix_s", 901)):
        assert code(known, HOLDER._replace(**{field: other}), entry()) == "wrong-ticket", field
    assert code(known, HOLDER._replace(expires_unix_s=9999), entry()) == "wrong-ticket"
    assert code(known, shown="") == code(known, shown="é" * 64) == "wrong-ticket"
    known.forget("s")
    assert code(known) == "wrong-ticket"
    assert not known.counts(HOLDER, NOW)


def test_without_a_key_nobody_gets_in_by_what_an_empty_one_makes() -> None:
    assert code(TicketKeys(), shown=entry_of("", *HOLDER)) == "wrong-ticket"


def test_until_the_host_is_back_whoever_shows_a_ticket_is_to_come_again_and_hears_the_same_whatever_it_is() -> None:
    known = TicketKeys()
    known.awaited("s")
    shown = (entry(), "0" * 64, "", entry_of("", *HOLDER))
    assert [code(known, shown=each) for each in shown] == ["host-away"] * 4
    assert code(known, now=1001.0) == "host-away" and "host-away" in cm.NO_PLACE, "so a client comes again"
    assert code(known, HOLDER._replace(job="t")) == "wrong-ticket"
    assert not known.counts(HOLDER, NOW)
    known.told("s", KEY)
    assert [code(known, shown=each) for each in shown] == ["", *["wrong-ticket"] * 3]
    for nobodys in (lambda: known.forget("s"), lambda: known.told("s", "")):
        known.awaited("s")
        nobodys()
        assert code(known) == code(known, shown=entry_of("", *HOLDER)) == "wrong-ticket"


def test_a_gateways_key_makes_no_credential_for_an_update() -> None:
    assert (
        entry() != credential_of(KEY, "s", FOLD, "site-1", 1001) != credential_of("secret", "s", FOLD, "site-1", 1001)
    )


def test_a_revocation_is_of_one_client_and_one_fold_and_of_standing_ones_by_themselves() -> None:
    known = keys()
    known.revoke("s", FOLD, "site-1", FOLD)
    standing, other = HOLDER._replace(fold=ANY_FOLD), HOLDER._replace(client="site-2")
    assert (code(known), code(known, standing), code(known, other)) == ("wrong-ticket", "", "")
    assert not known.counts(HOLDER, NOW) and known.counts(standing, NOW)
    known.revoke("s", ANY_FOLD, "site-1", FOLD)
    assert code(known, standing) == "wrong-ticket"
    known.told("s", KEY, (RevokedTicket(FOLD, "site-2"),))  # by a host that has come again
    assert (code(known, other), code(known)) == ("wrong-ticket", "")
    known.revoke("unknown", FOLD, "site-1", FOLD)
    assert code(known, HOLDER._replace(job="unknown")) == "wrong-ticket"


def test_who_is_let_in_for_one_fold_reads_the_model_of_its_round_alone() -> None:
    assert HOLDER.reads(3) and not HOLDER.reads(2) and not HOLDER.reads(4)
    assert HOLDER._replace(fold=ANY_FOLD).reads(4)


def test_so_many_are_revoked_at_a_time_and_those_for_earlier_folds_make_room() -> None:
    revoked = RevokedTickets()
    for number in range(REVOKED_TICKETS_MAX):
        revoked.add(FOLD, f"c{number}", FOLD)
    revoked.add(FOLD, "c0", FOLD)
    with pytest.raises(Refused) as refused:
        revoked.add(FOLD, "more", FOLD)
    assert refused.value.code == "too-many-revocations"
    assert not revoked.has(FOLD, "more")
    revoked.add(FOLD + 1, "more", FOLD + 1)
    assert revoked.has(FOLD + 1, "more") and not revoked.has(FOLD, "c0")
