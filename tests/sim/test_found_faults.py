"""Faults that the core once had, each as the life that shows it: found by random lives, or by reading."""

from __future__ import annotations

import pytest
import sim_clients
from lives import live
from scenes import MIB, job, scene, until, writing

from lifl.core.agent.branch_runner import BranchRunner
from lifl.core.errors import ArenaFull, LocalFault
from lifl.core.ids import Kind
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm

LIVES = {
    "what an earlier life had left was asked for twice, and dropped the second time": (2518, 3, True),
    "a round began while two before it were still being saved, and found no room": (1831, 3, True),
    "the same, where the coordinator stays": (4037, 3, False),
    "a node with more updates than its branch takes had a number below none moved to another": (
        17097,
        3,
        False,
    ),
    "tops that took partials of other nodes needed more than they were promised, and waited for each other": (
        15550,
        3,
        False,
    ),
    "what was free was in pieces, each too short for a partial": (6424, 3, False),
    "what a node had said was compared when it was true no more: an update was on its way, and accepted": (
        21698,
        3,
        True,
    ),
    "a top failed for want of room while a branch beside it had all that it needs to end": (145795, 3, False),
}
"""Seeds that found a fault by themselves: seed, hosts, and whether the coordinator moves.

A life that a change of the simulator has made another one shows nothing any more, and costs nothing.
"""


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES.keys())
def test_a_life_that_showed_a_fault_goes_well(life: tuple[int, int, bool]) -> None:
    live(*life)


def test_a_round_to_which_a_job_falls_back_is_evaluated_as_the_attempt_that_committed_it() -> None:
    """What was found stood with an attempt that had failed: the number was that of the damaged round's."""
    live(3099, 1, returns=True)


def test_what_counted_in_a_round_behind_one_that_failed_expires() -> None:
    """Its clients had been told that they are in, and it was opened anew as if it never had been."""
    live(148243, 1, returns=True)


def test_a_job_that_comes_back_does_not_go_on_with_the_round_that_ended_it() -> None:
    """Its row still said that it runs, and another node came to coordinate before there was a newer one."""
    live(146700, 3, moves=True, returns=True)


@pytest.mark.parametrize("seed", [38921, 100050])
def test_a_job_that_is_paused_before_it_goes_on_with_a_round_keeps_what_was_accepted_for_it(seed: int) -> None:
    """Paused while a model was to be evaluated, it gave its room back, and with it an earlier life's updates."""
    live(seed, 1, returns=True)


def test_a_coordinator_that_has_more_at_home_than_the_goal_waits_for_the_others_with_books_that_agree() -> None:
    live(120411, 3, moves=True, returns=True)


def test_a_top_waits_for_the_room_that_a_branch_beside_it_gives_back() -> None:
    """An update was on its way to that branch, and all of the arena was the job's: the round failed at once."""
    live(145267, 3, moves=True, returns=True)


def test_a_job_that_is_to_wait_in_line_is_no_job_that_has_begun_to_who_coordinates_next() -> None:
    """A first row said that it runs, a second that it waits, and the coordinator ended in between."""
    live(80018, 3, moves=True, returns=True)


@pytest.mark.parametrize(("seed", "hosts"), [(146948, 1), (152537, 1), (157304, 1), (151076, 3)])
def test_a_job_that_was_to_enter_the_line_when_lifld_died_is_given_no_room_that_another_has(
    seed: int, hosts: int
) -> None:
    """New, or let go on after it was over: the row that came before the line said that it runs."""
    live(seed, hosts, moves=hosts > 1, returns=True)


def test_a_top_whose_arena_has_no_room_for_leaves_is_granted_nothing_when_the_others_are_lost() -> None:
    """As the last branch of its round it was granted what came, and the node's books were wrong for good."""
    live(70014, 3, moves=True, stalls=True)


def test_a_round_that_is_open_again_and_has_no_branch_any_more_does_not_wait_for_a_model_of_too_few() -> None:
    """A node with all updates died when all was closed; the branch in its place was on a node that began to drain."""
    live(161063, 3, moves=True)


def test_a_trainer_that_is_selected_while_an_answer_about_an_earlier_round_is_on_its_way_takes_part() -> None:
    """A fault of the simulator's trainers: by that answer they forgot the selection, and the quorum was not reached."""
    live(155336, 3)


@pytest.mark.parametrize("seed", [52, 2502, 2542])
def test_a_top_with_the_last_of_the_arena_has_no_spare_places_for_more_branches(seed: int) -> None:
    """Reckoned for its own updates they just fitted: what came late to home, or its partial, found no room there."""
    live(seed, 3, drains=True)


@pytest.fixture
def _all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trainer reads the model before it submits."""
    monkeypatch.setattr(sim_clients, "WANTS_MODEL", 1.0)


@pytest.mark.usefixtures("_all_read")
def test_a_model_that_is_read_when_its_job_ends_is_freed_with_the_reading() -> None:
    cluster = scene(job("a", goal=1, rounds=1), job("b"))
    reader = until(cluster, lambda: next((r for r in cluster.home.readers if r.conn in _conns(cluster, "a")), None))
    cluster.home.readers = [each._replace(stuck=each == reader) for each in cluster.home.readers]
    cluster.faults.cancel("a")
    cluster.home.validate()
    assert reader.key in cluster.home.store.things, "a model is freed while it is sent"
    cluster.home.readers = [each._replace(stuck=False) for each in cluster.home.readers]
    cluster.run(0)


@pytest.mark.usefixtures("_all_read")
def test_a_model_that_is_read_when_its_job_ends_is_freed_when_the_gateway_ends() -> None:
    cluster = scene(job("a", goal=1, rounds=1), job("b"))
    reader = until(cluster, lambda: next((r for r in cluster.home.readers if r.conn in _conns(cluster, "a")), None))
    cluster.faults.cancel("a")
    cluster.lives.kill_gateway(cluster.home)
    assert reader.key not in cluster.home.store.things
    cluster.run(0)


def _conns(cluster, name: str) -> set[int]:
    return {client.conn for client in cluster.jobs[name].clients.values()}


def test_who_waits_for_a_model_when_its_job_ends_is_refused() -> None:
    cluster = scene(job("a", goal=1), arena_bytes=64 * MIB)
    client = cluster.jobs["a"].clients["c0"]
    cluster.clients.connect(client)
    cluster.home.questions[client.conn] = "a", 1
    cluster.handle(cluster.home, gm.WantModel(client.conn, "a", 1))  # it is being read from its file
    assert cluster.home.questions
    cluster.faults.cancel("a")
    assert not cluster.home.questions
    cluster.run(0)


def test_who_waits_for_room_when_its_job_ends_is_refused_and_may_leave() -> None:
    """The grant of a job that was over stood in the line, and its client's Leave ended the node."""
    goal, model_bytes = 12, 8 * MIB
    plan = job("a", goal, model_bytes=model_bytes)
    need = scene(plan).by_number[1].spec.bytes_min()
    cluster = scene(plan, arena_bytes=need)
    uploads = cluster.engine.agent.uploads
    order = until(cluster, lambda: next(iter(uploads.waiting), None))
    cluster.faults.cancel("a")
    assert not uploads.waiting
    assert order.conn not in cluster.home.questions
    cluster.handle(cluster.home, gm.ClientLeft(order.conn, "a"))
    cluster.run(0)


def test_a_top_whose_worker_dies_is_placed_again_while_its_room_is_promised_to_others() -> None:
    """A slot that rests is on no job's account: what it took of a reservation is promised once more."""
    cluster = scene(job("a", goal=2, model_bytes=16 * MIB), job("b", model_bytes=16 * MIB))
    quota = cluster.engine.agent.quota

    def top():
        for replica in cluster.engine.agent.replicas.values():
            for runner in replica.runners.values():
                root = runner.branch.tree.root
                if root.role == "top" and root.state is TaskState.RUNNING and root.worker in cluster.home.workers:
                    return root
        return None

    task = until(cluster, top)
    output, reserved = task.output, quota._reserved[2]
    quota._reserved[2] += quota.store.free_bytes  # as if so much of b's account had come to rest
    cluster.workers.kill(cluster.home, cluster.home.workers[task.worker])
    assert task.output != output
    quota._reserved[2] = reserved
    cluster.run(0)


def test_a_full_disk_does_not_end_a_job() -> None:
    cluster = scene(job("a"))
    worker, checkpoint = until(cluster, writing(cluster, 1))
    worker.file = None
    worker.fail(checkpoint, "No space left on device", retry=True)
    cluster.run(0)
    assert cluster.jobs["a"].row == ("finished", "")


def test_a_round_that_is_being_saved_is_committed_when_the_next_one_fails() -> None:
    cluster = scene(job("a", goal=1))
    worker, _ = until(cluster, writing(cluster, 1))
    worker.frozen_until = 1000.0
    until(cluster, lambda: any(worker.tasks for worker in cluster.home.workers.values()))
    for worker in cluster.home.workers.values():
        for task in list(worker.tasks.values()):
            worker.fail(task, "the rule raised ValueError", retry=False)
    cluster.by_number[1].excuse = "the rule raised ValueError"
    cluster.disk.calm = False
    cluster.run(0)
    assert 1 in cluster.jobs["a"].commits


def test_a_job_is_cancelled_while_its_checkpoint_is_being_written() -> None:
    cluster = scene(job("a"), job("b"))
    until(cluster, lambda: next((w for w in cluster.home.workers.values() if _writes(w, "a")), None))
    cluster.faults.cancel("a")
    cluster.run(0)


def _writes(worker, name: str) -> bool:
    return isinstance(worker.file, wm.Checkpoint) and worker.file.job == name


def test_a_fault_of_one_job_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scene(job("a"), job("b"))
    right = BranchRunner.feed_waiting

    def feed(self: BranchRunner):
        if self.job == 1:
            raise LocalFault("the books of job a contradict each other")
        return right(self)

    monkeypatch.setattr(BranchRunner, "feed_waiting", feed)
    cluster.by_number[1].excuse = "its books contradict each other"
    cluster.run(0)
    assert cluster.jobs["b"].row == ("finished", "")
    status, reason = cluster.jobs["a"].row
    assert status == "failed" and "the books of job a contradict each other" in reason


def test_a_fault_of_a_jobs_part_on_another_node_costs_that_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scene(job("a", goal=8), job("b", goal=8), hosts=3)
    away = {id(host.engine.agent.tasks) for host in cluster.others()}
    right, faults = BranchRunner.feed_waiting, []

    def feed(self: BranchRunner):
        if self.job == 1 and not faults and id(self._tasks) in away:
            faults.append(self)
            raise LocalFault("the books of job a contradict each other")
        return right(self)

    monkeypatch.setattr(BranchRunner, "feed_waiting", feed)
    cluster.by_number[1].excuse = "its books contradict each other"
    cluster.disk.calm = False  # the round that lost its part is tried again
    cluster.run(0)
    assert faults
    assert [cluster.jobs[name].row for name in "ab"] == [("finished", "")] * 2


def test_a_worker_that_hangs_holds_no_round_up_for_ever() -> None:
    cluster = scene(job("a"))
    worker = until(cluster, lambda: next((w for w in cluster.home.workers.values() if w.tasks), None))
    worker.frozen_until = 1e9
    cluster.disk.calm = False
    until(cluster, lambda: cluster.jobs["a"].over or cluster.now > 1e6)
    assert cluster.now < 1e6


def test_a_failure_is_told_again_after_the_connection_was_down() -> None:
    cluster = scene(job("a", goal=8), hosts=3)
    host = until(cluster, lambda: next((h for h in cluster.others() if any(w.tasks for w in h.workers.values())), None))
    cluster.lives.unlink(host)
    worker = next(w for w in host.workers.values() if w.tasks)
    worker.fail(next(iter(worker.tasks.values())), "an object is gone", retry=True)
    until(cluster, lambda: not worker.out)
    cluster.lives.link(host)
    cluster.disk.calm = False
    cluster.run(0)
    assert cluster.jobs["a"].row == ("finished", "")


def test_two_jobs_that_find_no_room_after_a_restart_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reservations count bytes; the gaps between what was left may all be too short for an output."""
    cluster = scene(job("a", goal=8), job("b", goal=8))
    until(cluster, lambda: all(each.status == "running" for each in cluster.engine.jobs.values()))
    with monkeypatch.context() as patch:
        patch.setattr(cluster.workers, "choices", lambda host, found: None)
        until(cluster, lambda: all(len(each.round.accepted) == 8 for each in cluster.engine.jobs.values()))
    cluster.lives.crash()
    store, right = cluster.home.store, cluster.home.store.alloc

    def alloc(kind, *given):
        if (
            kind is Kind.PARTIAL
            and len({thing.job for thing in store.things.values() if thing.kind is Kind.UPDATE}) > 1
        ):
            raise ArenaFull("no gap is long enough")
        return right(kind, *given)

    store.alloc = alloc
    cluster.disk.calm = False
    cluster.run(0)
