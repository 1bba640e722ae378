"""The top goes along with the last updates while they arrive."""

from __future__ import annotations

from agent_scene import EPOCH, HUGE, LARGE, NUMBER, Scene, aborted, granted, sealed

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.ids import Key, Kind
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm


def scene_of(updates: int = 3, *, elements: int = HUGE) -> Scene:
    """The top runs with the first update, two come."""
    scene = Scene(elements=elements)
    scene.has_model()
    scene.has_branch(updates)
    scene.grant("c1")
    scene.all_ready()
    scene.seal("c1")
    return scene


def arriving(scene: Scene, **received: int) -> fx.SendWorker:
    """What the top is told of updates that come."""
    updates = tuple((scene.keys[client].pack(), 1.0, nbytes) for client, nbytes in received.items())
    top, (sums,) = scene.tasks()[-1], sums_of(scene) or [None]
    message = wm.Arriving(top.address, top.attempt, updates, b"" if sums is None else sums.pack())
    return fx.SendWorker(top.worker, message)


def sums_of(scene: Scene) -> list[Key]:
    """The objects that the top sums up in: partials that no task will seal."""
    return [key for key in scene.arena.of(Kind.PARTIAL) if key not in [task.output for task in scene.tasks()]]


def test_all_that_the_top_lacks_is_followed_as_soon_as_it_is_on_its_way() -> None:
    scene = scene_of()
    assert scene.grant("c2") == [granted("c2", scene.keys["c2"])], "another may come first"
    led = scene.grant("c3")
    follow = [gm.FollowUpdate(conn, scene.keys[client].pack()) for conn, client in ((2, "c2"), (3, "c3"))]
    assert led == [granted("c3", scene.keys["c3"]), *follow, arriving(scene, c2=0, c3=0)]
    assert scene.runner().branch.followed == {scene.keys["c2"]: 0, scene.keys["c3"]: 0}


def test_of_what_a_client_writes_itself_the_gateway_is_not_asked() -> None:
    scene = scene_of(2)
    assert scene.grant("c2", direct=True)[1:] == [arriving(scene, c2=0)]


def test_the_top_hears_of_progress_when_something_of_each_is_there() -> None:
    scene = scene_of()
    scene.grant("c2")
    scene.grant("c3")
    assert scene.handle(gm.Progress(scene.keys["c2"].pack(), 100)) == []
    assert scene.handle(gm.Progress(scene.keys["c3"].pack(), 50)) == [arriving(scene, c2=100, c3=50)]
    assert scene.handle(gm.Progress(scene.keys["c2"].pack(), 300)) == [arriving(scene, c2=300, c3=50)]


def test_one_that_has_landed_is_sent_and_one_that_will_not_come_is_replaced() -> None:
    scene = scene_of()
    scene.grant("c2")
    scene.grant("c3")
    top = scene.tasks()[-1]
    assert scene.seal("c2") == [sealed("c2"), fx.SendKeys(top.address, 1, (scene.keys["c2"],))]
    assert scene.handle(gm.Aborted(3, scene.keys["c3"].pack(), "gone")) == [aborted("c3")]
    led = scene.grant("c4")
    assert led[1:] == [gm.FollowUpdate(4, scene.keys["c4"].pack()), arriving(scene, c4=0)]
    assert list(scene.runner().branch.followed) == [scene.keys["c4"]]


def test_one_more_than_the_top_lacks_is_not_followed() -> None:
    scene = scene_of(2)
    scene.grant("c2")
    assert scene.grant("c3") == [granted("c3", scene.keys["c3"])]


def test_small_updates_are_not_followed() -> None:
    scene = scene_of(2, elements=LARGE)
    assert scene.grant("c2") == [granted("c2", scene.keys["c2"])]


def test_a_top_that_lacks_a_partial_or_does_not_run_is_told_nothing() -> None:
    scene = Scene(elements=HUGE)
    scene.has_model()
    scene.has_branch(2, others=(1,))
    scene.upload("c1")
    scene.all_ready()
    assert scene.grant("c2")[1:] == []
    other = Scene(elements=HUGE)
    other.has_model()
    other.has_branch(6)
    for number in range(1, 4):
        other.upload(f"c{number}")
    other.all_ready()
    for number in (4, 5):
        assert not [each for each in other.grant(f"c{number}") if isinstance(each, gm.FollowUpdate)]


def test_a_branch_without_the_top_follows_nothing() -> None:
    scene = Scene(elements=HUGE)
    scene.has_model()
    scene.has_branch(2, branch=1)
    scene.upload("c1", branch=1)
    scene.all_ready()
    assert scene.grant("c2", branch=1) == [granted("c2", scene.keys["c2"])]
    assert scene.handle(gm.Progress(scene.keys["c2"].pack(), 5)) == []


def test_the_top_is_given_an_object_to_sum_up_in_as_long_as_it_works() -> None:
    scene = scene_of(2)
    assert sums_of(scene) == [], "others need the room before"
    scene.grant("c2")
    (sums,) = sums_of(scene)
    assert scene.arena.extent_bytes(sums) == scene.layout.accumulator_bytes == 2 * scene.layout.data_bytes
    (top,) = scene.tasks()
    scene.handle(ev.WorkerGone(top.worker))
    scene.all_ready()
    assert scene.handle(gm.Progress(scene.keys["c2"].pack(), 100)) == [arriving(scene, c2=100)]
    assert sums_of(scene) == [sums], "the next attempt writes it anew"
    scene.seal("c2")
    scene.done(top, "c1", "c2")
    assert sums_of(scene) == []


def test_where_the_arena_has_no_room_for_it_the_top_does_without() -> None:
    scene = scene_of(2)
    scene.arena.nbytes = scene.arena.used_bytes + scene.update_bytes + scene.layout.accumulator_bytes - 1
    assert scene.grant("c2")[-1] == arriving(scene, c2=0)
    assert sums_of(scene) == []
    scene.arena.nbytes += 1
    assert scene.handle(gm.Progress(scene.keys["c2"].pack(), 100)) == [arriving(scene, c2=100)]
    assert len(sums_of(scene)) == 1


def test_what_another_job_is_promised_is_not_taken_for_it() -> None:
    scene = scene_of(2)
    scene.agent.quota.reserve(NUMBER, 0)  # else no other could be promised so much
    scene.agent.quota.reserve(7, scene.arena.free_bytes - scene.update_bytes - scene.layout.accumulator_bytes + 1)
    scene.anew()
    assert scene.grant("c2")[-1] == arriving(scene, c2=0)
    assert sums_of(scene) == []


def test_a_round_that_is_over_gives_it_back_when_the_worker_has_let_go_of_it() -> None:
    scene = scene_of(2)
    scene.grant("c2")
    (sums,), (top,) = sums_of(scene), scene.tasks()
    scene.handle(o.DropBranch(NUMBER, EPOCH))
    assert sums in scene.arena.objects, "its worker may still write to it"
    scene.handle(ev.FromWorker(top.worker, wm.TaskDropped(top.address, top.attempt)))
    assert sums not in scene.arena.objects
