"""A session of folds on the node that coordinates: from its host's first word to the end, and after a restart."""

from __future__ import annotations

from typing import Any

from agent_scene import Arena
from msgspec import UNSET

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.found_model import NOTHING_FOUND, FoundModel, found_model
from lifl.core.agent.model_slot import SlotState
from lifl.core.config.job import fold_job, most_of
from lifl.core.coordinator.nodes import Node
from lifl.core.coordinator.session import Session
from lifl.core.engine import Engine
from lifl.core.fields import RevokedTicket, Ticket
from lifl.core.ids import Key, Kind, epoch_of
from lifl.core.limits import HOST_GRACE_S
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import tickets as tm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.contribution import Contribution
from lifl.core.schema import TensorSpec
from lifl.core.trust.ticket import credential_of, entry_key

HOME, HOST = 1, 7
TENSORS = (TensorSpec("w", "float32", (1024,)),)
FOLD = epoch_of(1, 1)
SMALL = 1 << 30


def ready(round_: int, fold: int = 0) -> fm.SessionReady:
    return fm.SessionReady("s", round_, fold, "home:1")


class Home:
    """A node that coordinates, with the session ``s`` of a rule; its host is connection `HOST`."""

    def __init__(self, rule: str = "fedavg", states: tuple[str, ...] = (), arena: Arena | None = None) -> None:
        self.arena = arena or Arena(SMALL)
        self.engine = Engine(self.arena, Node(HOME, "home:1", 8.0, SMALL, 4), 30.0, 4)
        self.facts = ev.JobFacts(1, fold_job("s", 2, rule, {}), TENSORS, states, "")

    def do(self, event: Any, at: float = 0.0) -> list[Any]:
        """What one event led to in all, rows written at once."""
        led = self.engine.handle(event, at)
        self.engine.validate()
        while self.engine.writing:
            led += self.engine.handle(ev.RowsWritten(), at)
            self.engine.validate()
        return led

    def told(self, event: Any, at: float = 0.0, conn: int = HOST) -> list[Any]:
        """What the host is told of that."""
        led = self.do(event, at)
        return [cm.unpacked(each.message) for each in led if isinstance(each, gm.TellClient) and each.conn == conn]

    def is_hosted(self) -> None:
        self.do(ev.JobSubmitted(self.facts))
        assert self.told(ev.SessionHosted(HOST, "s")) == [ready(0)]

    def opens(self, fold: int = FOLD) -> None:
        opened = fm.FoldOpen("s", fold, most_of(2))
        assert self.told(gm.FoldAsked(HOST, "s", fold, "open", 2))[-1] == opened

    def adds(self, client: str, fold: int = FOLD) -> list[Any]:
        """The host brings an update; what it is told."""
        led = self.do(gm.Admit(HOST, client, "s", fold >> 8, 1.0, {"loss": 2.0}, fold=fold))
        keys = [Key.unpack(each.key) for each in led if isinstance(each, gm.Granted)]
        if not keys:
            return [cm.unpacked(each.message) for each in led if isinstance(each, gm.TellClient)]
        self.arena.seal(keys[0], client)
        return self.told(gm.Sealed(HOST, keys[0].pack(), 10))

    def works(self, *clients: str) -> list[Any]:
        """All tasks that run are done, the top last; what the host is told."""
        told: list[Any] = []
        for worker in list(self.engine.agent.pool.workers.values()):
            if worker.state.value == "starting":
                self.do(ev.FromWorker(worker.number, wm.WorkerReady(worker.number, 100 + worker.number, 0)))
        while running := [t.task for t in self.engine.agent.tasks._open.values() if t.task.state.value == "running"]:
            task = running[0]
            assert task.output is not None
            assert task.worker is not None
            self.arena.seal(task.output, *clients)
            done = wm.TaskDone(task.address, task.attempt, 1.0, len(clients), 1, 0.1, 0.1)
            told += self.told(ev.FromWorker(task.worker, done))
        return told

    @property
    def session(self) -> Session:
        session = self.engine.jobs["s"]
        assert isinstance(session, Session)
        return session

    @property
    def slot(self) -> Any:
        return self.engine.agent.replicas[1].slot


def test_a_fold_from_its_opening_to_its_result_writes_no_row_and_no_file() -> None:
    home = Home()
    home.is_hosted()
    home.opens()
    assert home.slot.state is SlotState.VACANT
    assert home.adds("a") == [cm.Accepted("s", 1)]
    assert home.adds("b") == [cm.Accepted("s", 1)]
    assert home.adds("a") == [cm.Accepted("s", 1)], "its first update stands"
    led = home.do(gm.FoldAsked(HOST, "s", FOLD, "close"))
    assert not [each for each in led if isinstance(each, fx.SaveRound | fx.SaveJob)]
    done = fm.FoldDone("s", FOLD, 2.0, {"loss": 2.0}, ("a", "b"))
    assert home.works("a", "b") == [done]
    assert home.slot.state is SlotState.READY
    assert list(home.arena.objects) == [home.slot.model], "of the fold its result stays, and nothing else"
    assert home.told(gm.FoldAsked(HOST, "s", FOLD, "close")) == [fm.FoldClosing("s", FOLD, 2), done], "told again"
    assert home.told(gm.FoldAsked(HOST, "s", FOLD, "open", 2)) == [done]
    home.opens(epoch_of(2, 1))


def test_the_end_of_a_session_leaves_nothing() -> None:
    home = Home()
    home.is_hosted()
    home.opens()
    home.adds("a")
    led = home.do(gm.SessionEnded(HOST, "s"))
    assert fx.DropJob("s", 1) in led
    assert gm.JobForget("s") in led
    assert not home.arena.objects
    assert not home.engine.jobs and not home.engine.agent.replicas


def test_a_host_that_has_gone_is_waited_for_so_long_and_no_longer() -> None:
    home = Home()
    home.is_hosted()
    home.opens()
    home.do(gm.ClientLeft(HOST), 10.0)
    assert home.session.due_s == 10.0 + HOST_GRACE_S
    home.do(ev.Tick(), 10.0 + HOST_GRACE_S - 1)
    assert home.told(ev.SessionHosted(8, "s"), 10.0 + HOST_GRACE_S - 1, conn=8) == [ready(0)]
    home.do(gm.GatewayLost(), 50.0)
    led = home.do(ev.Tick(), 50.0 + HOST_GRACE_S)
    assert fx.DropJob("s", 1) in led
    assert not home.arena.objects


def test_only_the_host_is_answered_and_only_its_fold_takes_updates() -> None:
    home = Home()
    home.is_hosted()
    (refused,) = home.told(gm.FoldAsked(9, "s", FOLD, "open", 2), conn=9)
    assert refused.code == "not-host"
    (refused,) = home.told(gm.FoldAsked(HOST, "t", FOLD, "open", 2))
    assert refused.code == "unknown-job"
    (refused,) = home.told(gm.FoldAsked(HOST, "s", epoch_of(3, 1), "open", 2))
    assert (refused.code, refused.field) == ("wrong-round", "fold")
    home.opens()
    (refused,) = home.adds("a", epoch_of(1, 2))
    assert (refused.code, refused.field) == ("round-over", "fold")
    (refused,) = home.told(gm.FoldAsked(HOST, "s", FOLD, "close"))
    assert refused.code == "no-updates"
    led = home.do(gm.Admit(9, "c9", "s", 1, 1.0))
    assert [cm.unpacked(each.message).code for each in led] == ["round-over"], "nobody else brings one"
    led = home.do(gm.ClientJoined(9, "c9", "s"))
    assert [cm.unpacked(each.message).code for each in led] == ["not-a-job"]


def test_a_cancelled_fold_frees_what_it_had_and_the_next_try_is_another_one() -> None:
    home = Home()
    home.is_hosted()
    home.opens()
    home.adds("a")
    (over,) = home.told(gm.FoldAsked(HOST, "s", FOLD, "cancel"))
    assert isinstance(over, fm.FoldOver)
    assert not home.arena.objects
    home.opens(epoch_of(1, 2))
    assert home.adds("a")[0].code == "round-over"
    home.opens(epoch_of(1, 3))
    (refused,) = home.told(gm.FoldAsked(HOST, "s", epoch_of(1, 2), "open", 2))
    assert refused.code == "wrong-round", "a later try is open"


def test_an_update_that_lands_behind_the_close_is_told_that_it_does_not_count() -> None:
    home = Home()
    home.is_hosted()
    home.opens()
    home.adds("a")
    led = home.do(gm.Admit(HOST, "b", "s", 1, 1.0, fold=FOLD))
    (key,) = [Key.unpack(each.key) for each in led if isinstance(each, gm.Granted)]
    home.do(gm.FoldAsked(HOST, "s", FOLD, "close"))
    home.arena.seal(key, "b")
    (told,) = [m for m in home.told(gm.Sealed(HOST, key.pack(), 10)) if isinstance(m, cm.RoundOver)]
    assert told.round == 1


def test_an_update_that_lands_behind_the_result_was_told_with_it_that_it_does_not_count() -> None:
    """Nobody told it, and who had brought it by a ticket waited for as long as its connection stood."""
    home = Home()
    home.is_hosted()
    home.opens()
    home.adds("a")
    home.do(ev.SessionHosted(HOST, "s", "secret"))
    ticket = Ticket(credential_of("secret", "s", FOLD, "c9", 1000), 1000)
    led = home.do(gm.Admit(9, "c9", "s", 1, 1.0, fold=FOLD, ticket=ticket))
    (key,) = [Key.unpack(each.key) for each in led if isinstance(each, gm.Granted)]
    home.do(gm.FoldAsked(HOST, "s", FOLD, "close"))
    (task,) = [t.task for t in home.engine.agent.tasks._open.values()]
    assert task.output is not None and task.worker is not None
    for worker in home.engine.agent.pool.workers.values():
        home.do(ev.FromWorker(worker.number, wm.WorkerReady(worker.number, 101, 0)))
    home.arena.seal(task.output, "a")
    done = ev.FromWorker(task.worker, wm.TaskDone(task.address, task.attempt, 1.0, 1, 1, 0.1, 0.1))
    (told,) = home.told(done, conn=9)
    assert isinstance(told, cm.RoundOver) and told.round == 1
    home.arena.seal(key, "c9")
    assert home.told(gm.Sealed(9, key.pack(), 10), conn=9) == [], "once"


def test_the_top_of_a_rule_that_steps_waits_for_the_model_that_the_host_puts() -> None:
    home = Home("fedavgm", ("momentum",))
    home.is_hosted()
    (refused,) = home.told(gm.ModelPut(HOST, "s", 3))
    assert (refused.code, refused.round) == ("wrong-round", 3)
    led = home.do(gm.ModelPut(HOST, "s", 0, direct=True))
    (granted,) = [each for each in led if isinstance(each, gm.Granted)]
    assert home.slot.putting == Key.unpack(granted.key)
    assert home.arena.lent == [Key.unpack(granted.key)]
    home.do(gm.Aborted(HOST, granted.key, "NaN"))
    assert not home.arena.objects and home.slot.putting is None
    led = home.do(gm.ModelPut(HOST, "s", 0))
    (granted,) = [each for each in led if isinstance(each, gm.Granted)]
    home.do(gm.GatewayLost())
    assert not home.arena.objects, "it goes with the gateway"
    home.told(ev.SessionHosted(HOST, "s"))
    led = home.do(gm.ModelPut(HOST, "s", 0))
    (granted,) = [each for each in led if isinstance(each, gm.Granted)]
    home.arena.seal(Key.unpack(granted.key))
    assert home.told(gm.Sealed(HOST, granted.key, 10)) == [cm.Accepted("s", 0)]
    assert home.slot.model == Key.unpack(granted.key)


def test_an_arena_without_room_has_the_host_ask_again_for_its_model() -> None:
    home = Home("fedavgm", ("momentum",))
    home.is_hosted()
    home.arena.allows = 0
    (busy,) = home.told(gm.ModelPut(HOST, "s", 0))
    assert isinstance(busy, cm.Busy)


def test_the_model_of_a_session_that_ends_is_freed_when_the_gateway_is_through_with_it() -> None:
    home = Home("fedavgm", ("momentum",))
    home.is_hosted()
    led = home.do(gm.ModelPut(HOST, "s", 0))
    (granted,) = [each for each in led if isinstance(each, gm.Granted)]
    home.do(gm.SessionEnded(HOST, "s"))
    home.arena.seal(Key.unpack(granted.key))
    home.do(gm.Sealed(HOST, granted.key, 10))
    assert not home.arena.objects


def test_who_has_a_ticket_for_the_fold_brings_an_update_by_its_name_alone() -> None:
    home = Home()
    home.do(ev.JobSubmitted(home.facts))
    home.do(ev.SessionHosted(HOST, "s", "secret"))
    home.opens()
    good = Ticket(credential_of("secret", "s", FOLD, "c9", 1000), 1000)
    led = home.do(gm.PartTaken(9, "c9", "s", FOLD, good))
    (selected,) = [cm.unpacked(each.message) for each in led if isinstance(each, gm.TellClient)]
    assert isinstance(selected, cm.Selected)
    assert selected.round == 1
    (refused,) = home.told(gm.PartTaken(9, "c8", "s", FOLD, good), conn=9)
    assert (refused.code, refused.field) == ("wrong-ticket", "ticket")
    led = home.do(gm.Admit(9, "c8", "s", 1, 1.0, fold=FOLD, ticket=good))
    assert [cm.unpacked(each.message).code for each in led] == ["wrong-ticket"]
    led = home.do(gm.Admit(9, "c9", "s", 1, 1.0, fold=FOLD, ticket=good))
    (key,) = [Key.unpack(each.key) for each in led if isinstance(each, gm.Granted)]
    home.arena.seal(key, "c9")
    assert home.told(gm.Sealed(9, key.pack(), 10), conn=9) == [cm.Accepted("s", 1)]
    led = home.do(gm.Admit(8, "c8", "s", 1, 1.0, fold=FOLD))
    assert [cm.unpacked(each.message).code for each in led] == ["not-host"]
    home.do(gm.FoldAsked(HOST, "s", FOLD, "cancel"))
    (refused,) = home.told(gm.PartTaken(9, "c9", "s", FOLD, good), conn=9)
    assert refused.code == "round-over"


def test_a_ticket_that_its_host_revokes_counts_no_more_and_its_gateway_is_told() -> None:
    home = Home()
    home.do(ev.JobSubmitted(home.facts))
    key = tm.TicketKey("s", entry_key("secret", "s"))
    assert key in home.do(ev.SessionHosted(HOST, "s", "secret"))
    home.opens()
    ticket = Ticket(credential_of("secret", "s", FOLD, "c9", 1000), 1000)
    standing = Ticket(credential_of("secret", "s", 0, "c9", 1000), 1000)
    led = home.do(tm.RevocationAsked(HOST, "s", FOLD, "c9"))
    assert tm.TicketOut("s", FOLD, "c9", FOLD) in led
    told = [cm.unpacked(each.message) for each in led if isinstance(each, gm.TellClient)]
    assert told == [tm.TicketRevoked("s", FOLD, "c9")]
    (refused,) = home.told(gm.PartTaken(9, "c9", "s", FOLD, ticket), conn=9)
    assert (refused.code, "revoked" in refused.text) == ("wrong-ticket", True)
    (refused,) = home.told(gm.Admit(9, "c9", "s", 1, 1.0, fold=FOLD, ticket=ticket), conn=9)
    assert refused.code == "wrong-ticket"
    home.do(gm.PartTaken(9, "c9", "s", 0, standing))
    home.do(tm.RevocationAsked(HOST, "s", 0, "c9"))
    (refused,) = home.told(gm.PartTaken(9, "c9", "s", FOLD, standing), conn=9)
    assert refused.code == "wrong-ticket"
    (refused,) = home.told(tm.RevocationAsked(9, "s", FOLD, "c8"), conn=9)
    assert refused.code == "not-host"


def test_what_was_revoked_is_known_with_the_key_when_its_host_comes_again_and_ends_what_is_on_its_way() -> None:
    home = Home()
    home.do(ev.JobSubmitted(home.facts))
    out = RevokedTicket(FOLD, "c9")
    key = entry_key("secret", "s")
    assert tm.TicketKey("s", key, (out,)) in home.do(ev.SessionHosted(HOST, "s", "secret", (out,)))
    home.opens()

    def admit(client: str, conn: int) -> list[Any]:
        ticket = Ticket(credential_of("secret", "s", FOLD, client, 1000), 1000)
        return home.do(gm.Admit(conn, client, "s", 1, 1.0, fold=FOLD, ticket=ticket))

    (refused,) = [cm.unpacked(each.message) for each in admit("c9", 9) if isinstance(each, gm.TellClient)]
    assert (refused.code, "revoked" in refused.text) == ("wrong-ticket", True)
    assert any(isinstance(each, gm.Granted) for each in admit("c8", 8))
    led = home.do(tm.RevocationAsked(HOST, "s", FOLD, "c8"))
    assert gm.HangUp(8) in led, "an update that is on its way is none that was brought"
    home.do(gm.Admit(HOST, "c7", "s", 1, 1.0, fold=FOLD))
    led = home.do(tm.RevocationAsked(HOST, "s", FOLD, "c7"))
    assert not any(isinstance(each, gm.HangUp) for each in led), "its host brings that one"
    both = (out, RevokedTicket(FOLD, "c8"), RevokedTicket(FOLD, "c7"))
    assert tm.TicketKey("s", key, both) in home.do(ev.SessionHosted(7, "s", "secret")), "to a gateway that is new"


def test_a_gateway_is_told_whose_tickets_are_awaited_and_a_new_one_what_the_one_before_knew() -> None:
    home = Home()
    awaited = tm.TicketsAwaited("s")
    led = home.do(ev.JobResumed(home.facts, ev.JobHistory(-1, {}, {}), ()))
    assert awaited in led and home.engine.schemas()[1:] == [awaited]
    key = tm.TicketKey("s", entry_key("secret", "s"))
    assert key in home.do(ev.SessionHosted(HOST, "s", "secret"))
    home.do(gm.GatewayLost())
    assert home.engine.schemas()[1:] == [key], "its host is not back yet, and those who have a ticket may be first"
    home.do(ev.SessionHosted(HOST, "s"))
    assert home.engine.schemas()[1:] == [tm.TicketKey("s", "")], "this one makes none"
    assert gm.JobForget("s") in home.do(gm.SessionEnded(HOST, "s"))
    assert home.engine.schemas() == []


def test_tickets_are_awaited_no_longer_than_their_host() -> None:
    home = Home()
    home.do(ev.JobResumed(home.facts, ev.JobHistory(-1, {}, {}), ()))
    assert gm.JobForget("s") in home.do(ev.Tick(), HOST_GRACE_S)


def selected(led: list[Any]) -> list[tuple[int, int]]:
    """Who was told of which fold."""
    told = [(each.conn, cm.unpacked(each.message)) for each in led if isinstance(each, gm.TellClient)]
    return [(conn, said.fold) for conn, said in told if isinstance(said, cm.Selected)]


def test_who_has_a_standing_ticket_is_told_of_each_fold_behind_its_last_and_the_host_of_its_updates() -> None:
    home = Home()
    home.do(ev.JobSubmitted(home.facts))
    home.do(ev.SessionHosted(HOST, "s", "secret"))
    standing = Ticket(credential_of("secret", "s", 0, "c9", 1000), 1000)
    assert not selected(home.do(gm.PartTaken(9, "c9", "s", 0, standing))), "no fold is open"
    assert selected(home.do(gm.FoldAsked(HOST, "s", FOLD, "open", 2))) == [(9, FOLD)]
    assert not selected(home.do(gm.PartTaken(9, "c9", "s", FOLD, standing))), "it waits for the one behind that"
    led = home.do(gm.Admit(9, "c9", "s", 1, 3.0, {"loss": 0.5}, fold=FOLD, ticket=standing))
    (key,) = [Key.unpack(each.key) for each in led if isinstance(each, gm.Granted)]
    home.arena.seal(key, "c9")
    assert home.told(gm.Sealed(9, key.pack(), 10)) == [fm.FoldAccepted("s", FOLD, "c9", 3.0, {"loss": 0.5})]
    again = home.do(gm.FoldAsked(HOST, "s", FOLD, "open", 2))
    assert not selected(again)
    assert fm.FoldAccepted("s", FOLD, "c9", 3.0, {"loss": 0.5}) in [cm.unpacked(each.message) for each in again]
    home.do(gm.FoldAsked(HOST, "s", FOLD, "cancel"))
    assert selected(home.do(gm.FoldAsked(HOST, "s", FOLD + 1, "open", 2))) == [(9, FOLD + 1)]
    home.do(gm.PartTaken(9, "c9", "s", FOLD + 1, standing))
    (over,) = [each for each in home.told(gm.SessionEnded(HOST, "s"), conn=9) if isinstance(each, cm.RoundOver)]
    assert "finished" in over.reason


def test_who_has_a_ticket_is_told_which_fold_was_open_before_the_one_that_is() -> None:
    home = Home()
    home.do(ev.JobSubmitted(home.facts))
    home.do(ev.SessionHosted(HOST, "s", "secret"))
    standing = Ticket(credential_of("secret", "s", 0, "c9", 1000), 1000)
    behind = []
    for fold, after in ((FOLD, 0), (FOLD + 1, FOLD), (FOLD + 3, FOLD)):
        home.do(gm.FoldAsked(HOST, "s", fold, "open", 2))
        home.do(gm.FoldAsked(HOST, "s", fold, "open", 2))  # once more, over another connection
        (said,) = home.told(gm.PartTaken(9, "c9", "s", after, standing), conn=9)
        assert isinstance(said, cm.Selected)
        behind.append(said.behind)
        home.do(gm.FoldAsked(HOST, "s", fold, "cancel"))
    assert behind == [UNSET, FOLD, FOLD + 1], "the node does not know of one before its first"


def test_who_waits_by_a_standing_ticket_and_leaves_is_forgotten() -> None:
    home = Home()
    home.do(ev.JobSubmitted(home.facts))
    home.do(ev.SessionHosted(HOST, "s", "secret"))
    for conn, client in ((8, "c8"), (9, "c9")):
        home.do(gm.PartTaken(conn, client, "s", 0, Ticket(credential_of("secret", "s", 0, client, 1000), 1000)))
    home.do(gm.ClientLeft(9))
    assert selected(home.do(gm.FoldAsked(HOST, "s", FOLD, "open", 2))) == [(8, FOLD)]


# ---- what an earlier life has left -----------------------------------------------------------------------------------


def key(slot: int) -> Key:
    return Key(slot, 1, HOME)


A = Contribution("a", 1.0)
STATE = Contribution("momentum", 1.0)


def test_what_is_sealed_says_how_far_a_session_is() -> None:
    result, states = (key(1), Kind.MODEL, epoch_of(2, 3), [A]), (key(2), Kind.STATE, epoch_of(2, 3), [STATE])
    base = (key(3), Kind.MODEL, epoch_of(2, 0), [])
    before = [(key(4), Kind.MODEL, epoch_of(1, 1), [A]), (key(5), Kind.STATE, epoch_of(1, 1), [STATE])]
    ahead = (key(6), Kind.STATE, epoch_of(3, 1), [STATE])
    names = ("momentum",)
    assert found_model([], names) == NOTHING_FOUND
    kept = {"momentum": key(2)}
    whole = FoundModel(2, key(1), kept, epoch_of(2, 3), [A])
    assert found_model([result, states], names) == whole
    assert found_model([*before, states, result], names) == whole, "the newest counts"
    assert found_model([result, states, ahead], names) == whole, "a state without its model does not"
    assert found_model([result, base, states], names) == FoundModel(2, key(3), kept, epoch_of(2, 3), [A])
    assert found_model([base, states], names) == FoundModel(2, key(3), kept, 0, [])
    assert found_model([(key(7), Kind.MODEL, 0, [])], names) == FoundModel(0, key(7), {}, 0, [])


def test_after_a_restart_a_fold_goes_on_with_what_was_accepted() -> None:
    arena = Arena(SMALL)
    update = arena.seal(arena.alloc(Kind.UPDATE, 1, FOLD, 4096, 1024), "a")
    home = Home(arena=arena)
    found = ((update, Kind.UPDATE, FOLD, [Contribution("a", 1.0)]),)
    home.do(ev.JobResumed(home.facts, ev.JobHistory(-1, {}, {}), found))
    assert home.engine.next_timer() == HOST_GRACE_S
    assert home.told(ev.SessionHosted(HOST, "s")) == [ready(0)]
    assert home.told(gm.FoldAsked(HOST, "s", FOLD, "open", 2))[-1] in (
        fm.FoldOpen("s", FOLD, most_of(2)),
        cm.Busy("s", 1, 0.2),
    )
    home.opens()
    assert home.adds("a") == [cm.Accepted("s", 1)]
    assert home.adds("b") == [cm.Accepted("s", 1)]
    assert fm.FoldClosing("s", FOLD, 2) in home.told(gm.FoldAsked(HOST, "s", FOLD, "close"))


def test_after_a_restart_a_result_that_its_host_has_not_heard_is_told() -> None:
    arena = Arena(SMALL)
    model = arena.seal(arena.alloc(Kind.MODEL, 1, FOLD, 4096, 4096), "a", "b")
    update = arena.seal(arena.alloc(Kind.UPDATE, 1, FOLD, 4096, 1024), "a")
    home = Home(arena=arena)
    members = [Contribution("a", 1.0), Contribution("b", 1.0)]
    found = ((model, Kind.MODEL, FOLD, members), (update, Kind.UPDATE, FOLD, members[:1]))
    home.do(ev.JobResumed(home.facts, ev.JobHistory(-1, {}, {}), found))
    assert list(arena.objects) == [model], "what it was made from is freed"
    assert home.told(ev.SessionHosted(HOST, "s")) == [ready(1, FOLD)]
    assert home.told(gm.FoldAsked(HOST, "s", FOLD, "open", 2)) == [fm.FoldDone("s", FOLD, 2.0, {}, ("a", "b"))]
