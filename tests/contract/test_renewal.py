"""A node renews by itself: at half of its time, when it has a new address, and again when it could not.

Real certificates over real TLS; the port is `test_enrolment.ControlPort`.  Time is what a certificate says: those that
are due at once are made with a clock that is behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_enrolment import First, kept, one_database_for_both_threads, silent

from lifl.core.config.node import NodeConfig
from lifl.core.errors import Refused
from lifl.core.limits import CERTIFICATE_LIFETIME_S
from lifl.core.trust.enrolment import Asked
from lifl.node.authority import renewal as renewal_module
from lifl.node.authority.credentials import Credentials
from lifl.node.authority.health import IdentityHealth
from lifl.node.authority.renewal import Renewal
from lifl.tls import renewing
from lifl.tls.contexts import Contexts
from lifl.tls.enrolment import enrol
from lifl.tls.folder import load, locked, save
from lifl.tls.signing_request import new_key

__all__ = ["one_database_for_both_threads"]
WAIT_S = 60.0
DAY_S = 86_400.0


@pytest.fixture
def first(tmp_path: Path) -> Iterator[First]:
    made = First(tmp_path / "first")
    yield made
    made.close()


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await test()

    asyncio.run(bounded())


async def other(credentials: Credentials, serial: str) -> None:
    """Waits until the node has another certificate."""
    while credentials.own_serial == serial:
        await asyncio.sleep(0.01)


def past(first: First, age_s: float, role: Any = "node", name: str = "n", hosts: tuple[str, ...] = ()) -> Any:
    """What somebody was handed that long ago, with its key."""
    authority, made = first.authority, new_key()
    clock, authority._clock = authority._clock, lambda: time.time() - age_s
    try:
        token = authority.create_token(role, name, (), 1, 900.0)
        asked = Asked(name, role == "node")
        return authority.enrol(token.number, token.secret, asked, made.request, hosts, "127.0.0.1"), made.key
    finally:
        authority._clock = clock


def agent(
    first: First, folder: Path, age_s: float, hosts: Callable[[], tuple[str, ...]] = lambda: ("a.org",)
) -> Credentials:
    """A node that has joined that long ago."""
    handed, key = past(first, age_s, hosts=hosts())
    save(folder / "identity", ca=handed.trusted, certificate=handed.chain, key=key)
    config = NodeConfig(state_dir=str(folder), listen="0.0.0.0:7433", join=first.port.address)
    return Credentials(config, folder, 0xB, hosts, None, silent)


def test_a_node_renews_at_half_of_its_time_and_not_before(first: First, tmp_path: Path) -> None:
    async def run() -> None:
        credentials = agent(first, tmp_path, CERTIFICATE_LIFETIME_S / 2 + DAY_S)
        young = agent(first, tmp_path / "young", CERTIFICATE_LIFETIME_S / 2 - DAY_S)
        before, kept_ = credentials.own_serial, young.own_serial
        renewals = [Renewal(each, lambda: first.port.address) for each in (young, credentials)]
        for each in renewals:
            each.start()
        await other(credentials, before)
        assert credentials.own.renews_unix_s > time.time() + DAY_S
        assert renewals[1].trouble == "" and young.own_serial == kept_
        for each in renewals:
            each.close()
        credentials.close()
        young.close()

    (tmp_path / "young").mkdir()
    in_loop(run)


def test_what_another_pki_issued_is_not_renewed_by_anybody_and_its_end_is_told(first: First, tmp_path: Path) -> None:
    """The first node of such a cluster asked itself, in vain, for ever."""

    async def run() -> None:
        handed, key = past(first, 25 * DAY_S, hosts=("a.org",))
        save(tmp_path / "identity", ca=handed.trusted, certificate=handed.chain, key=key)
        credentials = Credentials(NodeConfig(listen="0.0.0.0:7433"), tmp_path, 0xB, lambda: ("b.org",), None, silent)
        assert credentials.authority is None and credentials.has_moved
        renewal = Renewal(credentials, lambda: first.port.address)
        renewal.start()
        assert renewal._timer is None
        assert "is of another PKI: put a new one in its place" in IdentityHealth(credentials, renewal).warnings()[0]
        renewal.close()
        credentials.close()

    in_loop(run)


def test_a_renewal_that_fails_is_told_and_tried_again(
    first: First, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal_module, "RETRY_S", 0.05)

    async def run() -> None:
        credentials = agent(first, tmp_path, 25 * DAY_S)
        before, home = credentials.own_serial, ["127.0.0.1:1"]
        renewal = Renewal(credentials, lambda: home[0])
        renewal.start()
        while not renewal.trouble:
            await asyncio.sleep(0.01)
        told = " ".join(IdentityHealth(credentials, renewal).warnings())
        assert "127.0.0.1:1 cannot be reached" in told and "ends on" in told and "was not renewed" in told
        assert credentials.own_serial == before
        home[0] = first.port.address
        await other(credentials, before)
        while renewal.trouble:
            await asyncio.sleep(0.01)
        assert IdentityHealth(credentials, renewal).warnings() == []
        renewal.close()
        credentials.close()

    in_loop(run)


def test_a_new_address_is_certified_at_once(first: First, tmp_path: Path) -> None:
    async def run() -> None:
        hosts = ["10.0.0.7"]
        credentials = agent(first, tmp_path, 0.0, lambda: tuple(hosts))
        before = credentials.own_serial
        renewal = Renewal(credentials, lambda: first.port.address)
        renewal.start()
        renewal._moved()
        hosts.append("2001:db8::7")
        assert credentials.has_moved
        renewal._moved()
        await other(credentials, before)
        assert {"10.0.0.7", "2001:db8::7"} <= set(credentials.own.hosts) and not credentials.has_moved
        renewal.close()
        credentials.close()

    in_loop(run)


def test_the_authoritys_own_node_renews_without_asking_anybody(first: First) -> None:
    async def run() -> None:
        credentials = first.credentials
        before = credentials.own_serial
        renewal = Renewal(credentials, lambda: "")
        renewal.start()
        credentials.renew_now()
        await other(credentials, before)
        assert renewal.trouble == "" and credentials.own.is_authority and first.port.heard == []
        renewal.close()

    in_loop(run)


def test_an_authority_that_ends_soon_is_told(first: First) -> None:
    async def run() -> None:
        health = IdentityHealth(first.credentials, Renewal(first.credentials, lambda: ""))
        assert health.warnings() == [] and "the cluster's authority is here" in health.text()
        certificates = first.authority.certificates
        ends = type(certificates).not_after_unix_s
        try:
            type(certificates).not_after_unix_s = property(lambda _self: time.time() + DAY_S)  # type: ignore[assignment]
            assert "lifl cert rotate" in health.warnings()[0]
        finally:
            type(certificates).not_after_unix_s = ends  # type: ignore[method-assign]

    in_loop(run)


def test_an_expired_identity_needs_a_token_and_the_authoritys_own_does_not(first: First, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="expired"):
        agent(first, tmp_path, CERTIFICATE_LIFETIME_S + DAY_S)
    config = NodeConfig(state_dir=str(tmp_path), listen="0.0.0.0:7433", join=first.port.address)
    again = Credentials(config, tmp_path, 0xB, lambda: ("a.org",), first.token("node"), silent)
    assert again.own.expires_unix_s > time.time()
    again.close()
    handed, key = past(first, CERTIFICATE_LIFETIME_S + DAY_S)
    first.credentials.close()
    save(first.folder / "identity", ca=handed.trusted, certificate=handed.chain, key=key)
    config = NodeConfig(state_dir=str(first.folder), listen="0.0.0.0:7433")
    back = Credentials(config, first.folder, 0xA, lambda: ("127.0.0.1",), None, silent)
    assert back.own.is_authority and back.own.expires_unix_s > time.time()
    back.close()


# ---- clients and operators ------------------------------------------------------------------------------------------


def account(first: First, folder: Path, age_s: float) -> Contexts:
    handed, key = past(first, age_s, "client", "c")
    save(folder, ca=handed.trusted, certificate=handed.chain, key=key, home=first.port.address.encode())
    files = load(folder)
    assert files is not None
    return Contexts(files)


def test_an_account_renews_when_it_is_used_and_half_of_its_time_is_over(first: First, tmp_path: Path) -> None:
    young = account(first, tmp_path / "young", CERTIFICATE_LIFETIME_S / 2 - DAY_S)
    assert renewing.renew_when_due(young) is None
    old = account(first, tmp_path / "old", CERTIFICATE_LIFETIME_S / 2 + DAY_S)
    before = old.own
    thread = renewing.renew_when_due(old)
    assert thread is not None
    assert renewing.renew_when_due(old) is None, "one at a time"
    thread.join()
    assert old.own.serial != before.serial and old.own.identity == before.identity
    assert renewing.renew_when_due(old) is None


def test_of_several_processes_one_renews(first: First, tmp_path: Path) -> None:
    contexts = account(first, tmp_path / "c", CERTIFICATE_LIFETIME_S / 2 + DAY_S)
    before = contexts.own.serial
    with locked(tmp_path / "c"):
        assert not renewing.renew_now(contexts, due_unix_s=time.time())
    assert contexts.own.serial == before
    assert renewing.renew_now(contexts, due_unix_s=time.time())
    assert not renewing.renew_now(contexts, due_unix_s=time.time()), "another has done it meanwhile"


def test_an_identity_from_elsewhere_is_left_alone(first: First, tmp_path: Path) -> None:
    handed, key = past(first, 20 * DAY_S, "client", "c")
    save(tmp_path / "c", ca=handed.trusted, certificate=handed.chain, key=key)
    files = load(tmp_path / "c")
    assert files is not None
    contexts = Contexts(files)
    assert renewing.renew_when_due(contexts) is None
    with pytest.raises(Exception, match="does not say where"):
        renewing.renew_now(contexts)


def test_a_revoked_account_stays_what_it_is(first: First, tmp_path: Path) -> None:
    contexts = kept(enrol(first.port.address, first.token("client", "a")), tmp_path / "a")
    first.credentials.revocations.revoke("client/a", first.credentials.own_serial)
    before = contexts.own.serial
    with pytest.raises(Refused, match="revoked"):
        renewing.renew_now(contexts)
    assert contexts.own.serial == before
