"""Who is in the cluster: lives that end once, silence that counts, and a clock that only the caller moves."""

from __future__ import annotations

import itertools
import re

import msgspec
import pytest
from arrows import not_taken, note
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lifl.core.coordinator import membership as ms
from lifl.core.coordinator.membership import Member, Membership, MemberState, Timing
from lifl.core.errors import LocalFault, RemoteFault
from lifl.core.limits import INCARNATION_MAX, NODES_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol.versions import MINOR, Spoken

OWN = 99
TIMING = Timing(heartbeat_s=1.0, suspect_s=3.0, dead_s=6.0)


@pytest.fixture(autouse=True)
def _notes(monkeypatch: pytest.MonkeyPatch) -> None:
    note(monkeypatch, "member", Member, "move", lambda member, to, _now: (member.state, to))


def hello(node: int = 1, incarnation: int = 1, control: str = "127.0.0.1:7001") -> p.PeerHello:
    return p.PeerHello(p.PEER_VERSION, node, incarnation, control, "127.0.0.1:7002", 8.0, 1 << 30, 4)


def table(*nodes: int, now: float = 0.0, nodes_max: int = NODES_MAX) -> Membership:
    members = Membership(OWN, TIMING, nodes_max)
    for node in nodes:
        assert members.join(hello(node), now) == [ms.Up(hello(node))]
    return members


def run(members: Membership, until: float) -> list[tuple[float, ms.Change]]:
    """Ticks whenever a timer is due, as a node that is never late; heartbeats to send are left out."""
    found = []
    while (due := members.next_timer()) is not None and due <= until:
        found += [(due, change) for change in members.tick(due) if not isinstance(change, ms.Beat)]
    return found


def test_silence_makes_suspect_then_dead() -> None:
    members = table(1)
    found = run(members, 100.0)
    assert [(at, type(change)) for at, change in found] == [(3.0, ms.Suspect), (6.0, ms.Down)]
    assert members.members[1].state is MemberState.DEAD
    assert members.next_timer() is None, "a cluster without living nodes needs no timer"


def test_a_word_from_a_suspect_clears_it_and_counts_from_then() -> None:
    members = table(1)
    assert [type(change) for _, change in run(members, 5.0)] == [ms.Suspect]
    assert members.heard(1, 5.5) == [ms.Alive(1)]
    assert members.heard(1, 5.6) == []
    assert [(at, type(change)) for at, change in run(members, 100.0)] == [(8.6, ms.Suspect), (11.6, ms.Down)]


def test_a_broken_connection_is_suspect_at_once_and_a_new_one_goes_on() -> None:
    members = table(1)
    assert members.lost(1, 1.0) == [ms.Suspect(1)]
    assert members.lost(1, 1.0) == []
    again = msgspec.structs.replace(hello(), gateway="127.0.0.1:9999")
    assert members.join(again, 5.9) == [ms.Back(again)]
    assert members.members[1].state is MemberState.ALIVE
    assert members.members[1].hello.gateway == "127.0.0.1:9999"
    assert run(members, 8.0) == []


def test_a_new_connection_replaces_one_that_only_the_node_knows_to_be_dead() -> None:
    assert table(1).join(hello(), 1.0) == [ms.Back(hello())]


@pytest.mark.parametrize("end", ["dead", "left"])
def test_a_life_that_is_over_must_come_as_a_new_one(end: str) -> None:
    members = table(1)
    if end == "dead":
        run(members, 10.0)
    else:
        assert members.leave(1, 1.0) == [ms.Left(1)]
    assert members.join(hello(), 11.0) == [ms.Rejoin(above=1)]
    assert members.members[1].state.value == end
    assert members.join(hello(incarnation=2), 12.0) == [ms.Up(hello(incarnation=2))]


def test_a_higher_incarnation_ends_the_life_before_it_first() -> None:
    members = table(1)
    down, up = members.join(hello(incarnation=5), 1.0)
    assert isinstance(down, ms.Down) and down.node == 1 and "5" in down.why
    assert up == ms.Up(hello(incarnation=5))
    assert members.members[1].since_s == 1.0


def test_a_lower_incarnation_is_refused_and_harms_nothing() -> None:
    members = table()
    members.join(hello(incarnation=5), 0.0)
    (refuse,) = members.join(hello(incarnation=4), 1.0)
    assert isinstance(refuse, ms.Refuse) and "life 5" in refuse.text and "--state" in refuse.text
    assert members.members[1].hello.incarnation == 5 and members.members[1].state is MemberState.ALIVE


def test_a_lower_incarnation_comes_back_above_a_later_life_that_is_over() -> None:
    """A state folder was put back from a copy of earlier days, or its copy has run for a while."""
    members = table()
    members.join(hello(incarnation=5), 0.0)
    members.leave(1, 1.0)
    assert members.join(hello(incarnation=4), 2.0) == [ms.Rejoin(5)]
    assert members.join(hello(incarnation=6), 3.0) == [ms.Up(hello(incarnation=6))]


def test_above_the_last_incarnation_there_is_none() -> None:
    members = table()
    members.join(hello(incarnation=INCARNATION_MAX), 0.0)
    members.leave(1, 1.0)
    for incarnation in (4, INCARNATION_MAX):
        (refuse,) = members.join(hello(incarnation=incarnation), 2.0)
        assert isinstance(refuse, ms.Refuse) and "start the coordinator again" in refuse.text


def test_two_daemons_with_one_state_folder_do_not_take_turns() -> None:
    members = table(1)
    (refuse,) = members.join(hello(control="127.0.0.1:8001"), 1.0)
    assert isinstance(refuse, ms.Refuse) and "127.0.0.1:7001" in refuse.text
    (refuse,) = members.join(hello(OWN), 1.0)
    assert isinstance(refuse, ms.Refuse) and "coordinator" in refuse.text


def test_the_table_is_full_of_the_living_only() -> None:
    members = table(1, 2, 3, nodes_max=3)
    (refuse,) = members.join(hello(4), 1.0)
    assert isinstance(refuse, ms.Refuse) and "3 nodes" in refuse.text
    members.leave(2, 2.0)
    members.leave(1, 3.0)
    assert members.join(hello(4), 4.0) == [ms.Up(hello(4))]
    assert set(members.members) == {1, 3, 4}, "the one that was longest gone is forgotten"


def test_the_limit_itself_can_be_reached() -> None:
    members = table(*range(100, 100 + NODES_MAX))
    (refuse,) = members.join(hello(1), 1.0)
    assert isinstance(refuse, ms.Refuse) and str(NODES_MAX) in refuse.text


def test_a_coordinator_that_stood_still_buries_nobody_before_it_has_listened() -> None:
    members = table(1, 2)
    assert members.tick(1.0) == [ms.Beat()]
    assert members.tick(61.0) == [ms.Beat()], "it slept for a minute; the nodes' words wait in its sockets"
    assert members.heard(1, 61.0) == []
    # Of the silence of node 2, the second before the sleep and all from now on count: it is late by 59 of 61 s.
    assert [(at, change) for at, change in run(members, 64.5) if change == ms.Suspect(2)] == [(62.0, ms.Suspect(2))]


def test_heartbeats_are_due_every_interval_while_somebody_is_connected() -> None:
    members = table(1)
    beats = []
    for now in [step * 0.25 for step in range(1, 21)]:
        members.heard(1, now)
        beats += [now for change in members.tick(now) if isinstance(change, ms.Beat)]
    assert beats == [1.0, 2.0, 3.0, 4.0, 5.0]
    members.lost(1, 5.0)
    assert not any(isinstance(change, ms.Beat) for change in members.tick(10.5))


def test_nothing_is_heard_without_a_connection() -> None:
    members = table(1)
    members.lost(1, 1.0)
    with pytest.raises(LocalFault):
        members.heard(1, 2.0)
    with pytest.raises(LocalFault):
        members.heard(2, 2.0)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(MemberState, MemberState)))
def test_the_table_of_transitions_is_enforced(before: MemberState, after: MemberState) -> None:
    member = ms.Member(hello(), 0.0, 0.0, before)
    if after in ms.TRANSITIONS[before]:
        member.move(after, 1.0)
        assert (member.state, member.since_s) == (after, 1.0)
    else:
        with pytest.raises(LocalFault, match="cannot go"):
            member.move(after, 1.0)
        assert (member.state, member.since_s) == (before, 0.0)


# ---- names that certificates say -------------------------------------------------------------------------------------


def named(now: float = 0.0) -> Membership:
    """Node 1 is a member by the name of a."""
    members = Membership(OWN, TIMING)
    assert members.join(hello(1), now, "a") == [ms.Up(hello(1))]
    return members


@pytest.mark.parametrize("incarnation", [1, 2, INCARNATION_MAX])
@pytest.mark.parametrize("other", ["b", ""])
@pytest.mark.parametrize("state", ["alive", "suspect", "dead"])
def test_no_other_name_has_a_members_number(incarnation: int, other: str, state: str) -> None:
    """Else whoever has a certificate ends the life of any node, by its number, and is it from then on."""
    members = named()
    run(members, {"alive": 0.0, "suspect": 4.0, "dead": 50.0}[state])
    (refuse,) = members.join(hello(1, incarnation), 50.0, other)
    assert isinstance(refuse, ms.Refuse)
    assert "is that of 'a'" in refuse.text
    assert members.members[1].state.value == state
    assert members.members[1].hello == hello(1)


def test_the_same_name_comes_back_as_ever() -> None:
    members = named()
    assert members.join(hello(1), 1.0, "a") == [ms.Back(hello(1))]
    down, up = members.join(hello(1, 2), 2.0, "a")
    assert isinstance(down, ms.Down)
    assert down.renewed
    assert up == ms.Up(hello(1, 2))
    run(members, 50.0)
    assert members.join(hello(1, 3), 50.0, "a") == [ms.Up(hello(1, 3))]


def test_a_number_that_has_left_is_free() -> None:
    members = named()
    members.leave(1, 1.0)
    assert members.join(hello(1, 2), 2.0, "b") == [ms.Up(hello(1, 2))]
    assert members.members[1].name == "b"


@pytest.mark.parametrize("state", ["living", "dead", "left"])
def test_a_number_is_its_owners_whoever_has_come_by_it_before(state: str) -> None:
    """An authority calls a node by its number: another came by it, as its last life, where the owner was not known."""
    members, own = table(), f"{1:016x}"
    assert isinstance(members.join(hello(incarnation=INCARNATION_MAX), 0.0, "other")[-1], ms.Up)
    if state == "left":
        members.leave(1, 0.5)
    elif state == "dead":
        members.lost(1, 0.5)
        members.tick(100.0)
    ended = [ms.Down(1, f"node {own} itself has come")] if state == "living" else []
    assert members.join(hello(), 200.0, own) == [*ended, ms.Up(hello())]
    for gone in (False, True):
        if gone:
            members.leave(1, 201.0)
        assert isinstance(members.join(hello(incarnation=9), 202.0, "other")[-1], ms.Refuse), "also while it is away"
    assert isinstance(members.join(hello(2), 203.0, own)[-1], ms.Up), "it may have lost its number"
    assert isinstance(members.join(hello(incarnation=2), 204.0, own)[-1], ms.Refuse), "and has one"


def test_a_name_has_one_living_number() -> None:
    members = named()
    (refuse,) = members.join(hello(2), 1.0, "a")
    assert isinstance(refuse, ms.Refuse)
    assert "is that of node 0000000000000001, which is connected" in refuse.text
    members.lost(1, 2.0)
    down, up = members.join(hello(2), 3.0, "a")
    assert isinstance(down, ms.Down)
    assert (down.node, down.renewed) == (1, False)
    assert "came back as node 0000000000000002" in down.why
    assert up == ms.Up(hello(2))
    assert members.members[1].state is MemberState.DEAD


def test_a_name_that_is_refused_ends_nothing() -> None:
    members = named()
    members.join(hello(2, 5), 0.0, "b")
    members.lost(1, 1.0)
    members.leave(2, 1.0)
    assert members.join(hello(2, 5), 2.0, "a") == [ms.Rejoin(5)]
    assert isinstance(members.join(hello(OWN), 2.0, "a")[0], ms.Refuse)
    assert members.members[1].state is MemberState.SUSPECT


def test_nodes_without_names_are_not_each_others_namesakes() -> None:
    assert len(table(1, 2, 3).members) == 3


class Lives(RuleBasedStateMachine):
    """Any events in any order, with a clock that may jump; what was said by changes must agree with the table."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.members = Membership(OWN, TIMING, nodes_max=4)
        self.said: dict[tuple[int, int], str] = {}  # the state of each life, by the changes alone
        self.connected: set[int] = set()
        self.latest: dict[int, int] = {}

    def take(self, changes: list[ms.Change]) -> None:
        for change in changes:
            match change:
                case ms.Up(who):
                    assert self.said.get((who.node, who.incarnation)) in (None, "dead", "left")
                    self.say(who.node, who.incarnation, "alive")
                    self.connected.add(who.node)
                case ms.Back(who):
                    assert self.said[who.node, who.incarnation] in ("alive", "suspect")
                    self.say(who.node, who.incarnation, "alive")
                    self.connected.add(who.node)
                case ms.Alive(node):
                    assert self.state(node) == "suspect"
                    self.say(node, self.latest[node], "alive")
                case ms.Suspect(node):
                    assert self.state(node) == "alive"
                    self.say(node, self.latest[node], "suspect")
                case ms.Down(node, _):
                    assert self.state(node) in ("alive", "suspect")
                    self.say(node, self.latest[node], "dead")
                    self.connected.discard(node)
                case ms.Left(node):
                    assert self.state(node) in ("alive", "suspect")
                    self.say(node, self.latest[node], "left")
                    self.connected.discard(node)

    def say(self, node: int, incarnation: int, state: str) -> None:
        self.latest[node] = incarnation
        self.said[node, incarnation] = state

    def state(self, node: int) -> str:
        return self.said[node, self.latest[node]]

    @rule(node=st.integers(1, 6), incarnation=st.integers(1, 3))
    def join(self, node: int, incarnation: int) -> None:
        known = self.members.members.get(node)
        before = None if known is None else (known.hello.incarnation, known.state)
        changes = self.members.join(hello(node, incarnation), self.now)
        self.take(changes)
        last = changes[-1]
        if before is not None and incarnation <= before[0] and before[1] in (MemberState.DEAD, MemberState.LEFT):
            assert last == ms.Rejoin(before[0])
        elif before is not None and incarnation <= before[0]:
            assert isinstance(last, ms.Refuse if incarnation < before[0] else ms.Back)
        else:
            assert isinstance(last, ms.Up | ms.Refuse)

    @precondition(lambda self: self.connected)
    @rule(data=st.data())
    def heard(self, data: st.DataObject) -> None:
        self.take(self.members.heard(data.draw(st.sampled_from(sorted(self.connected))), self.now))

    @rule(node=st.integers(1, 6))
    def lost(self, node: int) -> None:
        self.take(self.members.lost(node, self.now))
        self.connected.discard(node)

    @rule(node=st.integers(1, 6))
    def leave(self, node: int) -> None:
        self.take(self.members.leave(node, self.now))

    @rule(seconds=st.floats(0.0, 4.0))
    def time_passes(self, seconds: float) -> None:
        """Never late: each timer is served when it is due."""
        until = self.now + seconds
        for _ in range(100):
            due = self.members.next_timer()
            if due is None or due > until:
                break
            assert due >= self.now, "a timer in the past would fire again and again"
            self.now = due
            self.take(self.members.tick(due))
            after = self.members.next_timer()
            assert after is None or after > due, "a tick that does not move its timer spins"
        else:
            raise AssertionError("a hundred timers in four seconds")
        self.now = until
        self.silence_has_counted()

    def silence_has_counted(self) -> None:
        for member in self.members.members.values():
            if not member.gone:
                silent_s = self.now - member.heard_s
                assert silent_s < TIMING.dead_s + 1e-6
                assert member.state is MemberState.SUSPECT or silent_s < TIMING.suspect_s + 1e-6

    @rule(seconds=st.floats(0.0, 100.0))
    def everything_stands_still(self, seconds: float) -> None:
        """One late tick ends no life that was heard within `dead_s` before the sleep."""
        due = self.members.next_timer()
        self.now += seconds
        if due is None:
            assert self.members.tick(self.now) == []
            return
        fresh = {n for n, m in self.members.members.items() if due - m.heard_s < TIMING.dead_s - TIMING.heartbeat_s}
        changes = self.members.tick(self.now)
        assert not [change for change in changes if isinstance(change, ms.Down) and change.node in fresh]
        self.take(changes)

    @invariant()
    def the_table_is_what_was_said(self) -> None:
        assert len(self.members.members) <= 4
        for node, member in self.members.members.items():
            assert self.state(node) == member.state.value
            assert self.latest[node] == member.hello.incarnation
            assert member.connected == (node in self.connected)
            assert member.connected or member.state is not MemberState.ALIVE, "who has no connection is not well"


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# ---- an agent's side ---------------------------------------------------------------------------------------------


def test_an_agent_beats_and_gives_up_a_silent_coordinator() -> None:
    lifeline = ms.Lifeline(0.0, TIMING)
    lifeline.heard(0.5)
    found = []
    while not found or found[-1][1] != ms.Lost():
        now = lifeline.next_timer()
        found += [(now, change) for change in lifeline.tick(now)]
    assert [at for at, change in found if change == ms.Beat()] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert found[-1] == (6.5, ms.Lost())


def test_an_agent_that_stood_still_listens_before_it_gives_up() -> None:
    lifeline = ms.Lifeline(0.0, TIMING)
    assert lifeline.tick(1.0) == [ms.Beat()]
    assert lifeline.tick(30.0) == [ms.Beat()]
    lifeline.heard(30.0)
    assert lifeline.tick(31.0) == [ms.Beat()]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_backoff_grows_within_its_limits_and_starts_anew_after_a_success(seed: int) -> None:
    backoff = ms.Backoff(seed)
    waits = [backoff.next_s() for _ in range(20)]
    ceilings = [min(ms.BACKOFF_MAX_S, ms.BACKOFF_MIN_S * 2**number) for number in range(20)]
    assert all(ceiling / 2 <= wait <= ceiling for wait, ceiling in zip(waits, ceilings, strict=True))
    backoff.reset()
    assert backoff.next_s() <= ms.BACKOFF_MIN_S


def test_agents_do_not_dial_in_step() -> None:
    assert len({ms.Backoff(seed).next_s() for seed in range(50)}) == 50


# ---- the first frame ---------------------------------------------------------------------------------------------


def raw(message: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(message))


def test_a_hello_survives_with_the_largest_node_id() -> None:
    assert p.read_hello(raw(hello(2**64 - 1))) == hello(2**64 - 1)


@pytest.mark.parametrize("version", [-1, 0, 1, p.SPOKEN.oldest - 1, p.PEER_VERSION + 2, 10**6])
def test_another_version_is_named_whatever_else_its_hello_has(version: int) -> None:
    later = {"type": "PeerHello", "version": version, "galaxy": [1, 2, 3]}
    with pytest.raises(RemoteFault, match=f"version {version}"):
        p.read_hello(raw(later))


def test_a_hello_of_the_next_version_is_taken_without_what_is_not_known_here() -> None:
    later = hello(7)
    fields = msgspec.to_builtins(later) | {"version": p.PEER_VERSION + 1, "galaxy": [1, 2, 3]}
    assert p.read_hello(raw(fields)) == msgspec.structs.replace(later, version=p.PEER_VERSION + 1)
    with pytest.raises(RemoteFault, match="capacity"):
        p.read_hello(raw(fields | {"capacity": -1.0}))


def test_minor_releases_one_apart_work_together_and_others_are_told_which_to_take_on_both_sides() -> None:
    spoken, first = Spoken("channel", first=4, minor=5), 4 - 1
    assert (spoken.version, spoken.oldest) == (8, 7)
    works = [minor for minor in range(1, 12) if not spoken.fault(first + minor, "this node", "the peer")]
    assert works == [4, 5, 6]
    for minor in {*range(1, 12)} - {*works}:
        told = spoken.fault(first + minor, "this node", "the peer")
        found = re.search(
            r"the peer is LIFL 0\.(\d+), version (\d+); .* upgrade (.*) to LIFL 0\.(\d+) or a later one, "
            r"or run LIFL 0\.(\d+) at most on (.*)$",
            told,
        )
        assert found is not None and found.groups()[:2] == (str(minor), str(first + minor))
        assert "this node is LIFL 0.5, version 8 of the channel" in told
        _, _, older, least, most, newer = found.groups()
        assert (older, newer) == (("the peer", "this node") if minor < 5 else ("this node", "the peer"))
        # What is told helps: with either the two work together.
        for ours, theirs in (
            [(5, int(least)), (int(most), minor)] if minor < 5 else [(int(least), minor), (5, int(most))]
        ):
            assert not Spoken("channel", 4, ours).fault(first + theirs, "", ""), (ours, theirs)


def test_the_first_release_works_with_nothing_before_it_and_names_itself() -> None:
    spoken = Spoken("channel", first=4, minor=1)
    assert [version for version in range(9) if not spoken.fault(version, "", "")] == [4, 5]
    told = spoken.fault(3, "this node", "the peer")
    assert told.endswith(
        "the peer is from before LIFL 0.1, version 3; minor releases one apart work together: "
        "upgrade the peer to LIFL 0.1 or a later one"
    )


def test_each_minor_release_says_another_version_and_the_first_ones_are_known() -> None:
    """What 0.1 says must never change: the releases after it count from there."""
    assert p.SPOKEN.first == 4 and cm.SPOKEN.first == 1
    assert p.PEER_VERSION == 3 + MINOR and cm.PROTOCOL_VERSION == MINOR


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"control": "nowhere"}, "control"),
        ({"gateway": "10.0.0.1:0"}, "port 0"),
        ({"gateway": "x" * 300 + ":1"}, "gateway"),
        ({"capacity": float("nan")}, "capacity"),
        ({"capacity": -1.0}, "capacity"),
        ({"workers_max": -1}, "workers_max"),
        ({"node": "7"}, "node"),
        ({"more": 1}, "more"),
        ({"type": "Hello"}, "PeerHello"),
    ],
)
def test_a_hello_that_is_wrong_names_the_field(changes: dict[str, object], said: str) -> None:
    fields = msgspec.to_builtins(hello()) | changes
    with pytest.raises(RemoteFault, match=said):
        p.read_hello(raw(fields))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_first_frame_is_a_hello_or_the_remote_fault(body: bytes) -> None:
    try:
        p.read_hello(msgspec.Raw(body))
    except RemoteFault:
        pass


@pytest.mark.parametrize(
    ("address", "host", "expected"),
    [
        ("10.1.2.3:70", "10.9.9.9", "10.1.2.3:70"),
        ("0.0.0.0:70", "10.9.9.9", "10.9.9.9:70"),
        ("0.0.0.0:70", "::ffff:10.9.9.9", "10.9.9.9:70"),
        ("[::]:70", "fd00::5", "[fd00::5]:70"),
        ("[::]:70", "10.9.9.9", "10.9.9.9:70"),
        ("node-a:70", "10.9.9.9", "node-a:70"),
    ],
)
def test_an_address_that_means_any_is_told_as_the_one_that_was_met(address: str, host: str, expected: str) -> None:
    assert p.reachable(address, host) == expected


@pytest.mark.looks_back
def test_every_arrow_of_a_member_is_taken_by_a_test() -> None:
    assert not not_taken("member", ms.TRANSITIONS)
