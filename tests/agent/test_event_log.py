"""The log of events: its two segments, the story of a key, recordings that are replayed, and those that cannot be."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from agent_scene import EPOCH, LARGE, Arena, Scene, sealed

from lifl.core import effects as fx
from lifl.core import event_log, snapshot
from lifl.core import events as ev
from lifl.core.errors import ArenaFull, Impossible, LocalFault, RemoteFault
from lifl.core.event_log import Entry, EventLog, Recording, RecordingStore, ReplayStore, names_in, shape
from lifl.core.ids import Key, Kind
from lifl.core.planning.plan import NodeFacts, PlanRequest
from lifl.core.planning.planner import make_plan
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm

KEY = Key(7, 1, 2)
REQUEST = PlanRequest(4, 10, 10, (NodeFacts("a", 1.0, 1 << 20),))


def busy() -> Scene:
    """A node in the middle of a round."""
    scene = Scene(elements=LARGE)
    scene.has_model()
    scene.has_branch(8)
    for number in range(1, 5):
        scene.upload(f"c{number}")
        scene.all_ready()
    scene.done(scene.tasks()[0], "c1", "c2")
    return scene


# ---- segments --------------------------------------------------------------------------------------------------------


def log_of(events_max: int, monkeypatch: pytest.MonkeyPatch) -> tuple[EventLog, list[int]]:
    """A log of short segments; the state that it copies is how many events there were."""
    monkeypatch.setattr(event_log, "SEGMENT_EVENTS", events_max)
    count = [0]
    store = RecordingStore(Arena(10))
    return EventLog(store, lambda: snapshot.take({"count": count[0]}, RecordingStore)), count


def test_before_the_first_event_there_is_the_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    log, count = log_of(3, monkeypatch)
    count[0] = 5
    recording = log.recording()
    assert (snapshot.restore(recording.state), recording.entries) == ({"count": 5}, [])


def test_of_two_segments_the_older_goes_when_the_newer_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    log, count = log_of(3, monkeypatch)
    seen = []
    for number in range(10):
        log.end(float(number), ev.Tick(), log.begin(), [])
        count[0] += 1
        recording = log.recording()
        begins = snapshot.restore(recording.state)["count"]
        assert [entry.now for entry in recording.entries] == [float(each) for each in range(begins, number + 1)]
        seen.append(len(recording.entries))
    assert seen == [1, 2, 3, 4, 5, 6, 4, 5, 6, 4]


def test_a_state_of_many_objects_is_copied_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "SEGMENT_EVENTS", 3)
    copies = []

    def copy() -> snapshot.Snapshot:
        copies.append(1)
        return snapshot.take([[] for _ in range(9)], RecordingStore)  # ten objects

    log = EventLog(RecordingStore(Arena(10)), copy)
    for _ in range(11):
        log.end(0.0, ev.Tick(), log.begin(), [])
    assert len(copies) == 2


def test_a_large_state_does_not_make_the_log_larger_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "SEGMENT_EVENTS", 2)
    monkeypatch.setattr(event_log, "SEGMENT_EVENTS_MAX", 6)
    log = EventLog(RecordingStore(Arena(10)), lambda: snapshot.take([{} for _ in range(50)], RecordingStore))
    seen = []
    for number in range(20):
        log.end(float(number), ev.Tick(), log.begin(), [])
        seen.append(len(log.recording().entries))
    assert max(seen) == 12


def test_an_engine_replays_from_the_older_segment_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventLog, "_segment_events", lambda _log: 4)
    scene = busy()
    count = len(scene.engine.recording().entries)
    assert 4 < count <= 8
    assert scene.engine.recording().replay() == count


# ---- what is kept of an event ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        (gm.TellClient(5, cm.packed(cm.Accepted("j", 1))), ("TellClient", 5, len(cm.packed(cm.Accepted("j", 1))))),
        (fx.SendWorker(1, wm.Retire()), ("SendWorker", 1, "Retire")),
        (fx.SendNode(3, o.CloseJob(1)), ("SendNode", 3, "CloseJob")),
        (fx.SendCoordinator(sealed("c1")), ("SendCoordinator", "UpdateSealed")),
        (fx.SaveRound("j", 1, 2, "open", {"x": [1]}), ("SaveRound", "j", 1, 2, "open")),
        (fx.SavePlan("j", 1, 2, REQUEST, make_plan(REQUEST)), ("SavePlan", "j", 1, 2)),
        (fx.Publish("job.running", "j", {"rounds": 2}), ("Publish", "job.running", "j")),
        (gm.JobSchema("j", 1, ()), ("JobSchema", "j")),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else None,
)
def test_of_an_effect_is_kept_what_tells_it_from_others(effect: Any, expected: tuple[Any, ...]) -> None:
    assert shape(effect) == expected


@pytest.mark.parametrize(
    "effect",
    [
        fx.Route(3, None),
        fx.SendKeys(3, 1, (KEY,)),
        gm.HangUp(5),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_small_effect_is_kept_whole(effect: Any) -> None:
    assert shape(effect) is effect


def test_what_the_arena_answers_is_kept_and_given_again() -> None:
    arena = Arena(100)
    store = RecordingStore(arena)
    key = store.alloc(Kind.UPDATE, 1, EPOCH, 60, 0, "slab")
    arena.seal(key, "c1")

    def asked(of: Any) -> list[Any]:
        found = [of.alloc(Kind.UPDATE, 1, EPOCH, 30, 0, None), of.free_bytes, of.used_bytes, of.extent_bytes(key)]
        found += [of.sealed(key), of.epoch_of(key), of.members(key)]
        with pytest.raises(ArenaFull, match="the arena is full"):
            of.alloc(Kind.UPDATE, 1, EPOCH, 30, 0, None)
        arena.damaged = {key}
        with pytest.raises(RemoteFault, match="damaged"):
            of.members(key)
        of.close_slab("slab")
        of.free(key)
        return found

    store.answers = []
    found = asked(store)
    assert (arena.slabs, list(arena.objects)) == (set(), [found[0]])
    replay = ReplayStore()
    replay.answers = iter(store.answers)
    assert asked(replay) == found
    with pytest.raises(LocalFault, match="the replay asks the arena what the recording did not"):
        replay.sealed(key)
    assert type(RecordingStore.blank()) is ReplayStore


def test_who_looks_at_the_arena_between_events_is_not_recorded() -> None:
    scene = busy()
    before = len(scene.engine.recording().entries[-1].answers)
    for _ in range(5):
        assert scene.agent.quota.used_bytes
    assert len(scene.engine.recording().entries[-1].answers) == before


# ---- the story -------------------------------------------------------------------------------------------------------


def test_an_event_is_about_keys_addresses_and_clients() -> None:
    assert names_in(gm.Sealed(5, KEY.pack(), 10)) == {KEY.pack()}
    assert names_in(ev.Bounced(3, KEY)) == {3, KEY.pack()}
    assert names_in(ev.FromWorker(1, wm.TaskDropped(4, 1))) == {4}
    assert names_in(ev.FromNode(1, sealed("c1"))) == {"c1"}
    assert names_in(ev.Tick()) == set()


def impossible(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> tuple[gm.Aborted, Impossible]:
    """Let the arena and the books contradict each other about an update that ends."""
    scene.grant("c5")
    key = scene.keys["c5"]
    scene.handle(gm.Progress(key.pack(), 10))

    def no_such(key: Key) -> None:
        raise LocalFault(f"the arena has no {key}")

    event = gm.Aborted(5, key.pack(), "gone")
    with monkeypatch.context() as patched:
        patched.setattr(scene.arena, "free", no_such)
        with pytest.raises(Impossible) as fault:
            scene.handle(event, at=9.0)
    return event, fault.value


def test_what_is_impossible_is_told_with_the_story_of_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = busy()
    event, fault = impossible(scene, monkeypatch)
    text = str(fault)
    assert "the arena has no" in text and "the story of what Aborted names:" in text
    lines = text.splitlines()[1:]
    assert len(lines) == 3
    assert "Grant(" in lines[0] and "-> Granted(conn=5," in lines[0]
    assert "Progress(" in lines[1]
    assert lines[2].strip().startswith("9.000000 Aborted(conn=5")
    assert scene.keys["c1"].pack() not in text.encode()
    assert scene.engine.recording().entries[-1].event == event, "it is in the log too"


def test_a_story_finds_a_key_among_those_that_are_sent() -> None:
    scene = busy()
    lines = scene.engine._log.story(gm.Aborted(3, scene.keys["c3"].pack(), "gone"))
    assert "-> SendKeys(" in lines[-1]


def test_a_long_story_is_told_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = busy()
    monkeypatch.setattr(event_log, "STORY_LINES_MAX", 2)
    lines = scene.engine._log.story(gm.Aborted(3, scene.keys["c3"].pack(), "gone"))
    assert len(lines) == 2 and "Sealed(conn=3" in lines[0]


# ---- replays ---------------------------------------------------------------------------------------------------------


def test_a_recording_is_the_same_after_its_way_through_a_file() -> None:
    recording = busy().engine.recording()
    again = Recording.unpack(recording.pack())
    assert again == recording
    assert again.replay() == recording.replay() == len(recording.entries)


def test_a_replay_leaves_the_engine_that_was_recorded_as_it_is() -> None:
    scene = busy()
    before = snapshot.pack(scene.engine._copy().objects)
    scene.engine.recording().replay()
    assert snapshot.pack(scene.engine._copy().objects) == before


@pytest.mark.parametrize("what", ["effects", "event", "answer", "time", "lacks an answer"])
def test_a_replay_that_goes_another_way_is_noticed(what: str) -> None:
    recording = busy().engine.recording()
    entries = list(recording.entries)
    at = next(number for number, entry in enumerate(entries) if isinstance(entry.event, o.Grant))
    entry = entries[at]
    changed = {
        "effects": entry._replace(shapes=(*entry.shapes, ("HangUp", 1))),
        "event": entry._replace(event=msgspec.structs.replace(entry.event, conn=99)),
        "answer": entry._replace(answers=[0 if isinstance(each, int) else each for each in entry.answers]),
        "time": entry._replace(shapes=()),
        "lacks an answer": entry._replace(answers=[]),
    }
    entries[at] = changed[what]
    with pytest.raises(LocalFault, match=f"event {at}, Grant"):
        recording._replace(entries=entries).replay()


def test_events_that_were_impossible_or_refused_are_replayed_to_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = busy()
    with pytest.raises(RemoteFault):
        scene.handle(gm.Aborted(3, scene.keys["c3"].pack(), "gone"))
    impossible(scene, monkeypatch)
    recording = Recording.unpack(scene.engine.recording().pack())
    assert recording.replay() == len(recording.entries)


def test_an_engine_that_is_a_replay_s_handles_recorded_events_alone() -> None:
    engine = snapshot.restore(busy().engine.recording().state)
    with pytest.raises(LocalFault, match="this engine is a replay's"):
        engine.handle(ev.Tick(), 0.0)
    with pytest.raises(LocalFault, match="a replay is not recorded"):
        engine.recording()


GOOD = {"format": event_log.FORMAT, "state": [("dict", {})], "entries": []}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1], "this is no recording of format 1"),
        ({}, "this is no recording of format 1"),
        (GOOD | {"format": event_log.FORMAT + 1}, "replay it with the version that wrote it"),
        ({"format": event_log.FORMAT}, "has no events"),
        (GOOD | {"entries": 5}, "has no events"),
        (GOOD | {"entries": [5]}, "has no events"),
        (GOOD | {"entries": [(1.0, 2, 3, 4)]}, "has no events"),
    ],
)
def test_what_is_no_recording_is_refused(content: Any, said: str) -> None:
    with pytest.raises(RemoteFault, match=said):
        Recording.unpack(snapshot.pack(content))


@pytest.mark.parametrize("state", [None, [], [("dict", {})], [("lifl.core.agent.pool:Pool", {})], 7])
def test_a_recording_whose_state_is_no_engine_is_refused(state: Any) -> None:
    recording = Recording.unpack(snapshot.pack(GOOD | {"state": state}))
    with pytest.raises(RemoteFault, match="damaged"):
        recording.replay()


def test_a_recording_cut_short_is_refused() -> None:
    data = busy().engine.recording().pack()
    for length in (0, 1, 10, len(data) // 2, len(data) - 1):
        with pytest.raises(RemoteFault, match="the record is damaged"):
            Recording.unpack(data[:length])


def test_a_recording_with_an_entry_too_many_is_an_other_recording() -> None:
    recording = busy().engine.recording()
    more = [*recording.entries, Entry(1.0, ev.Tick(), [], (("HangUp", 0),))]
    with pytest.raises(LocalFault, match="Tick"):
        Recording.unpack(recording._replace(entries=more).pack()).replay()
