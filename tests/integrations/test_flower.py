"""Flower's strategies with LIFL as their aggregator, beside the same ones alone; its Grid is a stand-in.

The real one, with SuperLink, SuperNodes and processes of ClientApps, is in test_flower_runs.py.
"""

# ruff: noqa: E402
from __future__ import annotations

import copy
import inspect
import logging
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

flower = pytest.importorskip("flwr.app", reason="NOT TESTED: make test-integrations installs flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp import strategy as strategies
from flwr.supercore.task_identity import TaskIdentity
from nodes import Node, running

from lifl.core.errors import Refused, ResourceFault
from lifl.integrations import references
from lifl.integrations.flower import LiflStrategy, lifl_mod
from lifl.integrations.flower.records import RECORD, LentArray, as_record, view, views

FLWR = f"flwr {version('flwr')}"
MODEL = {
    "head": np.linspace(-1, 1, 300, dtype=np.float32),
    "conv": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7),
    "scale": np.float32(0.5).reshape(()),
}
NODES = 3
NODE: list[Node] = []
"""On which the tests' folds are made, but for those of a node of their own."""
Train = Callable[[Message, Any], Message]


@pytest.fixture(scope="module", autouse=True)
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node of this account, and a run of Flower's, of which its messages are."""
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = 1, 9, 1
    with running(tmp_path_factory.mktemp("node") / "state") as found:
        NODE.append(found)
        yield found
        NODE.clear()


def on_node(strategy: Any, **more: Any) -> LiflStrategy:
    return LiflStrategy(strategy, node=NODE[0].state_dir, **more)


def record(tensors: dict[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in tensors.items()})


def trained(msg: Message, context: Any) -> Message:
    """What stands for training: each weight moves, by another amount at each node and in each round."""
    node, number = context.node_id, int(msg.content["config"]["server-round"])
    step = dict.fromkeys(msg.content["arrays"], 1 + node / 4 + number / 8)
    new = {name: array.numpy() + array.numpy().dtype.type(step[name]) for name, array in msg.content["arrays"].items()}
    metrics = MetricRecord({"train_loss": node / number, "num-examples": 10 * node, "both": [1.0, float(node)]})
    return Message(RecordDict({"arrays": record(new), "metrics": metrics}), reply_to=msg)


def evaluated(msg: Message, context: Any) -> Message:
    mean = float(msg.content["arrays"]["head"].numpy().mean())
    metrics = MetricRecord({"eval_mean": mean + context.node_id, "num-examples": 3})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)


def client_app(train: Train = trained, mods: Iterable[Any] = ()) -> ClientApp:
    app = ClientApp(mods=[])
    app.train(mods=list(mods))(train)
    app.evaluate(mods=list(mods))(evaluated)
    return app


class StandIn(Grid):
    """A Grid whose nodes 1, 2, ... run their ClientApps when their replies are pulled."""

    def __init__(self, apps: list[Any]) -> None:
        self.apps = dict(enumerate(apps, 1))
        self.sent: list[Message] = []
        self.rounds: list[int] = []
        """Of each message that was sent, its round, as it was then: its configuration may be another's, too."""
        self.replies: list[Message] = []
        self.reply_bytes: list[int] = []
        self.pulls: list[int] = []
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        return SimpleNamespace(fab_id="me/quick", run_id=1)

    def create_message(self, *_given: Any, **_more: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(f"message-{len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent.append(message)
            self.rounds.append(int(message.content["config"]["server-round"]))
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for each in message_ids:
            sent = self._waiting.pop(each)
            content = RecordDict(dict(sent.content))  # as over a wire: not the sender's object
            message = Message(metadata=sent.metadata, content=content)  # type: ignore[call-overload]
            context = SimpleNamespace(node_id=sent.metadata.dst_node_id, node_config={}, state=RecordDict())
            try:
                found.append(self.apps[sent.metadata.dst_node_id](message, context))
            except Exception as error:  # noqa: BLE001 - Flower makes it an error reply
                found.append(Message(Error(2, repr(error)), reply_to=message))
        self.pulls.append(len(found))
        self.replies += found
        self.reply_bytes += [size(each) for each in found]
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(self.pull_messages(self.push_messages(messages)))


def size(message: Message) -> int:
    """The bytes of arrays in a message."""
    records = message.content.array_records.values() if message.has_content() else ()
    return sum(len(array.data) for each in records for array in each.values())


def both(
    make: Callable[[], Any], apps: Callable[[], list[Any]], model: dict[str, Any], rounds: int = 3, **more: Any
) -> tuple[Any, Any, StandIn]:
    """The results of a strategy alone (its ClientApps without the mod), and with LIFL; and the Grid of the latter."""
    alone = make().start(
        StandIn([client_app(app.train if isinstance(app, Both) else trained) for app in apps()]), record(model), rounds
    )
    grid = StandIn(apps())
    return alone, on_node(make(), **more).start(grid, record(model), rounds), grid


def check_same(found: Any, wanted: Any) -> None:
    assert list(found.arrays) == list(wanted.arrays)
    for name, array in wanted.arrays.items():
        np.testing.assert_allclose(found.arrays[name].numpy(), array.numpy(), rtol=2e-6, atol=2e-6, err_msg=name)
    for which in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
        mine, theirs = getattr(found, which), getattr(wanted, which)
        assert list(mine) == list(theirs)
        for number, metrics in theirs.items():
            assert set(mine[number]) == set(metrics)
            for name, value in metrics.items():
                np.testing.assert_allclose(mine[number][name], value, rtol=1e-5, atol=1e-5)


# ---- the strategy ----------------------------------------------------------------------------------------------------

OURS = {
    "FedAvg": {},
    "FedProx": {"proximal_mu": 0.3},
    "FedAvgM": {"server_learning_rate": 0.7, "server_momentum": 0.9},
    "FedAdagrad": {"eta": 0.2},
    "FedAdam": {"eta": 0.05, "beta_1": 0.8},
    "FedYogi": {"tau": 1e-2},
}


@pytest.mark.parametrize("mods", [(), (lifl_mod,)], ids=["strategy", "mod"])
@pytest.mark.parametrize("name", OURS)
def test_the_results_are_those_of_the_strategy_alone(name: str, mods: tuple[Any, ...]) -> None:
    alone, found, grid = both(
        lambda: getattr(strategies, name)(**OURS[name]), lambda: [client_app(mods=mods)] * NODES, MODEL, rounds=4
    )
    check_same(found, alone)
    assert not [reply for reply in grid.replies if reply.content.array_records], "arrays are kept"


def test_replies_are_pulled_one_by_one_while_they_have_arrays() -> None:
    grid = StandIn([client_app()] * NODES)
    on_node(strategies.FedAvg(fraction_evaluate=0.0)).start(grid, record(MODEL), 2)
    assert [each for each in grid.pulls if each] == [1] * (2 * NODES)


def test_half_precision_and_integers_are_right_where_the_strategy_alone_is_not() -> None:
    model = {"half": np.ones(4, np.float16), "count": np.array([2**53 + 1, 7], np.int64)}

    def same(msg: Message, _context: Any) -> Message:
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": msg.content["arrays"], "metrics": metrics}), reply_to=msg)

    result = on_node(strategies.FedAvg(fraction_evaluate=0.0)).start(StandIn([same] * 200), record(model), 1)
    half, count = result.arrays["half"].numpy(), result.arrays["count"].numpy()
    assert half.dtype == np.float16 and (half == 1).all()
    assert count.dtype == np.int64 and count.tolist() == [2**53 + 1, 7]


def broken(how: str) -> Train:
    """A ClientApp whose reply cannot count."""

    def reply(msg: Message, context: Any) -> Message:
        good = trained(msg, context)
        if how == "raises":
            raise RuntimeError("out of memory")
        if how == "no number":
            good.content["arrays"]["head"] = Array(np.full(300, np.nan, np.float32))
        if how == "another shape":
            good.content["arrays"]["head"] = Array(np.zeros((2, 3), np.float32))
        if how == "another tensor":
            good.content["arrays"]["tail"] = Array(np.zeros(3, np.float32))
        if how == "damaged":
            good.content["arrays"]["head"] = Array("float32", (300,), "numpy.ndarray", b"\x93NUMPY junk")
        if how == "no arrays":
            del good.content["arrays"]
        if how == "two records of arrays":
            good.content["more"] = record(MODEL)
        if how == "no weight":
            del good.content["metrics"]["num-examples"]
        if how == "a list as weight":
            good.content["metrics"]["num-examples"] = [1, 2]
        if how == "a negative weight":
            good.content["metrics"]["num-examples"] = -3
        return good

    return reply


BROKEN = (
    "raises",
    "no number",
    "another shape",
    "another tensor",
    "damaged",
    "no arrays",
    "two records of arrays",
    "no weight",
    "a list as weight",
    "a negative weight",
)


@pytest.mark.parametrize("mods", [(), (lifl_mod,)], ids=["strategy", "mod"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_reply_that_cannot_count_is_a_failure_and_the_others_count(
    how: str, mods: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    good = client_app(mods=mods)
    make = lambda: strategies.FedAvg(fraction_evaluate=0.0)  # noqa: E731
    with caplog.at_level(logging.INFO, "flwr"):
        found = on_node(make()).start(StandIn([good, good, client_app(broken(how), mods)]), record(MODEL), 2)
    alone = make().start(StandIn([client_app(), client_app()]), record(MODEL), 2)
    check_same(found, alone)
    assert caplog.text.count("Received 2 results and 1 failures") == 2, caplog.text


def test_a_weight_of_zero_counts_for_nothing_and_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    def empty(msg: Message, context: Any) -> Message:
        good = trained(msg, context)
        good.content["metrics"]["num-examples"] = 0
        return good

    with caplog.at_level(logging.INFO, "flwr"):
        for mods in ((), (lifl_mod,)):
            apps = [client_app(mods=mods), client_app(mods=mods), client_app(empty, mods)]
            found = on_node(strategies.FedAvg()).start(StandIn(apps), record(MODEL), 2)
            check_same(
                found,
                strategies.FedAvg().start(StandIn([client_app(), client_app(), client_app(empty)]), record(MODEL), 2),
            )
            found = on_node(strategies.FedAvg()).start(StandIn([client_app(empty, mods)] * 2), record(MODEL), 1)
            assert not found.arrays, "there is no new model"
    assert "failures" in caplog.text and "1 failures" not in caplog.text


def test_a_round_without_replies_leaves_the_model_and_the_next_goes_on() -> None:
    def late(msg: Message, context: Any) -> Message:
        if msg.content["config"]["server-round"] == 1:
            raise RuntimeError("not yet")
        return trained(msg, context)

    alone, found, _grid = both(lambda: strategies.FedAvgM(server_momentum=0.5), lambda: [Both(late)] * 2, MODEL)
    check_same(found, alone)
    assert 1 not in found.train_metrics_clientapp


class Both:
    """A ClientApp without the mod, whose training function `both` finds."""

    def __init__(self, train: Train) -> None:
        self.train = train
        self._app = client_app(train)

    def __call__(self, message: Message, context: Any) -> Message:
        return self._app(message, context)


def test_a_timeout_ends_a_round_with_those_who_have_replied() -> None:
    class Slow(StandIn):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            slow = {each for each in message_ids if self._waiting[each].metadata.dst_node_id == 3}
            return super().pull_messages(set(message_ids) - slow)

    strategy = strategies.FedAvg(fraction_evaluate=0.0, min_train_nodes=3)
    found = on_node(strategy).start(Slow([client_app()] * 3), record(MODEL), 1, timeout=0.5)
    alone = strategies.FedAvg(fraction_evaluate=0.0).start(StandIn([client_app()] * 2), record(MODEL), 1)
    check_same(found, alone)


def test_some_of_the_nodes_train_and_metrics_go_to_the_strategys_own_functions() -> None:
    seen: list[Any] = []

    def aggregate(contents: list[RecordDict], key: str) -> MetricRecord:
        seen.append(([set(content) for content in contents], key))
        return MetricRecord({"of": len(contents)})

    make = lambda: strategies.FedAvg(  # noqa: E731
        fraction_train=0.5, fraction_evaluate=0.25, min_train_nodes=1, min_evaluate_nodes=1,
        weighted_by_key="num-examples", train_metrics_aggr_fn=aggregate, evaluate_metrics_aggr_fn=aggregate,
    )  # fmt: skip
    grid = StandIn([client_app(mods=[lifl_mod])] * 8)
    found = on_node(make()).start(grid, record(MODEL), 2)
    assert [metrics["of"] for metrics in found.train_metrics_clientapp.values()] == [4, 4]
    assert [metrics["of"] for metrics in found.evaluate_metrics_clientapp.values()] == [2, 2]
    assert all(key == "num-examples" and set.union(*names) == {"metrics"} for names, key in seen)
    assert all(RECORD not in sent.content or sent.content[RECORD] for sent in grid.sent)


def test_metrics_that_not_all_replies_have_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def more(msg: Message, context: Any) -> Message:
        good = trained(msg, context)
        good.content["metrics"]["odd"] = 1.0
        return good

    strategy = strategies.FedAvg(fraction_evaluate=0.0)
    found = on_node(strategy).start(StandIn([client_app(), client_app(more)]), record(MODEL), 1)
    assert set(found.train_metrics_clientapp[1]) == {"train_loss", "both"}
    assert "the metrics odd" in caplog.text


# ---- what is refused -------------------------------------------------------------------------------------------------

NEEDED: dict[str, Any] = {
    "QFedAvg": {"client_learning_rate": 0.1, "q": 0.1, "train_loss_key": "train_loss"},
}


def made(name: str) -> Any:
    """One of Flower's strategies, or a class that stands for it where it cannot be made without more."""
    kind = getattr(strategies, name)
    return kind.__new__(kind)


@pytest.mark.parametrize("name", sorted(set(strategies.__all__) - set(OURS) - {"Result", "Strategy"}))
def test_other_strategies_are_refused_by_name_with_the_reason(name: str) -> None:
    with pytest.raises(Refused, match=f"^{name} cannot be aggregated by LIFL: (it|its) .* FedYogi") as refused:
        LiflStrategy(made(name))
    assert (refused.value.code, refused.value.field) == ("bad-strategy", "strategy")


def test_a_strategy_whose_own_methods_would_not_be_called_is_refused() -> None:
    class Saves(strategies.FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            return super().aggregate_train(server_round, replies)

    class Decays(strategies.FedAdam):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            config["lr"] = 0.1 / server_round
            return super().configure_train(server_round, arrays, config, grid)

    with pytest.raises(Refused, match=r"Saves has a `aggregate_train` of its own.*subclass of LiflStrategy"):
        LiflStrategy(Saves())
    grid = StandIn([client_app()] * 2)
    on_node(Decays(fraction_evaluate=0.0)).start(grid, record(MODEL), 2)
    assert [sent.content["config"]["lr"] for sent in grid.sent][::2] == [0.05, 0.05]  # Flower's config is one object
    for wrong in (strategies.FedAvg, object(), None):
        with pytest.raises(Refused, match=r"is a class|is no strategy"):
            LiflStrategy(wrong)


def test_an_arena_that_is_too_small_is_refused_before_the_first_message() -> None:
    grid = StandIn([client_app()] * NODES)
    large = {"w": np.zeros(8 << 20, np.float32)}
    with pytest.raises(Refused, match="arena") as refused:
        LiflStrategy(strategies.FedAvg(), arena_bytes=64 << 20).start(grid, record(large), 1)
    assert not grid.sent
    assert "MiB" in str(refused.value) or "bytes" in str(refused.value)


def test_what_start_is_given_beside_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def start(self: Any, grid: Any, initial_arrays: Any, num_rounds: int = 3, **more: Any) -> str:
        given.update(more, num_rounds=num_rounds)
        return "result"

    monkeypatch.setattr(strategies.Strategy, "start", start)
    strategy = LiflStrategy(strategies.FedAvg())
    assert strategy.start(StandIn([]), record(MODEL), 7, should_stop=print) == "result"
    assert given == {"num_rounds": 7, "should_stop": print}


# ---- the mod ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "REACH_S", 0.3)


def with_mod(**more: Any) -> tuple[Any, StandIn]:
    grid = StandIn([client_app(mods=[lifl_mod])] * NODES)
    return on_node(strategies.FedAvg()).start(grid, record(MODEL), 3, **more), grid


def test_from_the_first_answer_on_no_message_has_arrays() -> None:
    _found, grid = with_mod()
    first = 2 * NODES  # a round of training, and one of evaluation: whether there is a mod is not known before
    assert all(map(size, grid.sent[:first])) and not any(map(size, grid.sent[first:]))
    assert len(grid.sent) == 6 * NODES, "a message was sent twice"
    assert not any(grid.reply_bytes)


BOTH = ("train", "evaluate")


def test_where_it_is_said_that_the_client_apps_have_the_mod_no_message_has_arrays() -> None:
    grid = StandIn([client_app(mods=[lifl_mod])] * NODES)
    found = on_node(strategies.FedAvg(), with_mod=BOTH).start(grid, record(MODEL), 3)
    check_same(found, strategies.FedAvg().start(StandIn([client_app()] * NODES), record(MODEL), 3))
    assert len(grid.sent) == 6 * NODES and not any(map(size, grid.sent)) and not any(grid.reply_bytes)


@pytest.mark.parametrize("mods", [(), (lifl_mod,)], ids=["nowhere", "in training alone"])
def test_where_it_is_said_and_is_not_so_arrays_go_in_a_second_message(mods: tuple[Any, ...]) -> None:
    app = ClientApp()
    app.train(mods=list(mods))(trained)
    app.evaluate()(evaluated)
    grid = StandIn([app] * NODES)
    found = on_node(strategies.FedAvg(), with_mod=BOTH).start(grid, record(MODEL), 3)
    check_same(found, strategies.FedAvg().start(StandIn([client_app()] * NODES), record(MODEL), 3))


@pytest.mark.parametrize("wrong", ["train", ("test",), ("train", "evaluate", "query")])
def test_a_kind_of_messages_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(Refused, match="with_mod="):
        LiflStrategy(strategies.FedAvg(), with_mod=wrong)


def test_the_apps_own_code_sees_what_it_always_sees() -> None:
    seen: list[Any] = []

    def look(msg: Message, context: Any) -> Message:
        seen.append((list(msg.content), [array.numpy().shape for array in msg.content["arrays"].values()]))
        return trained(msg, context)

    on_node(strategies.FedAvg()).start(StandIn([client_app(look, [lifl_mod])] * 2), record(MODEL), 3)
    assert seen == [(["arrays", "config"], [(300,), (2, 3, 4), ()])] * 6
    seen.clear()
    on_node(strategies.FedAvg()).start(StandIn([client_app(look)] * 2), record(MODEL), 3)
    assert [names for names, _shapes in seen[2:]] == [["arrays", "config"]] * 4, "it is known that there is no mod"


def unreachable(message: Message, context: Any, call_next: Any) -> Message:
    """A mod that stands before LIFL's: no gateway is reached from that node."""
    if RECORD in message.content and "lifl-ticket" in message.content[RECORD]:
        message.content[RECORD] = ConfigRecord({**message.content[RECORD], "lifl-ticket": "of a node far away"})
    return call_next(message, context)


@pytest.mark.parametrize("how", ["no gateway", "no mod"])
def test_a_node_whose_tensors_cannot_go_by_lifl_gets_a_second_message(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = client_app(mods=[lifl_mod])
    cut_off = client_app(mods=[unreachable, lifl_mod] if how == "no gateway" else [])
    grid = StandIn([good, good, cut_off])
    with caplog.at_level(logging.WARNING, "flwr"):
        found = on_node(strategies.FedAvg()).start(grid, record(MODEL), 4)
    check_same(found, strategies.FedAvg().start(StandIn([client_app()] * 3), record(MODEL), 4))
    of_it = [sent for sent in grid.sent if sent.metadata.dst_node_id == 3]
    assert len(of_it) == 9, "one message for each round, and one again"
    said = [each for each in caplog.messages if each.startswith("LIFL: node 3 does not get its tensors by LIFL")]
    assert len(said) == 1, caplog.text


def test_an_update_that_could_not_be_brought_rides_in_the_reply(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    submit = references.Taking.submit

    def cut(self: references.Taking, tensors: Any, weight: float, *more: Any) -> None:
        if weight == 20:
            raise references.NotReached("the cable is cut")
        submit(self, tensors, weight, *more)

    monkeypatch.setattr(references.Taking, "submit", cut)
    found, grid = with_mod()
    check_same(found, strategies.FedAvg().start(StandIn([client_app()] * NODES), record(MODEL), 3))
    assert len([each for each in grid.reply_bytes if each]) == 3 and len(grid.sent) == 6 * NODES
    said = [each for each in caplog.records if "the cable is cut" in each.message and each.levelname == "WARNING"]
    assert len(said) == 1, caplog.text


def test_who_says_that_its_update_is_in_lifl_where_it_is_not_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    def lies(message: Message, context: Any) -> Message:
        reply = client_app()(message, context)
        if "arrays" in reply.content:
            del reply.content["arrays"]
            reply.content[RECORD] = ConfigRecord({"did": "submitted", "why": ""})
        return reply

    good = client_app(mods=[lifl_mod])
    with caplog.at_level(logging.INFO, "flwr"):
        strategy = on_node(strategies.FedAvg(fraction_evaluate=0.0))
        found = strategy.start(StandIn([good, good, lies]), record(MODEL), 2)
    alone = strategies.FedAvg(fraction_evaluate=0.0).start(StandIn([client_app()] * 2), record(MODEL), 2)
    check_same(found, alone)
    assert caplog.text.count("Received 2 results and 1 failures") == 2


def test_without_lifls_grid_nothing_is_sent_that_needs_it() -> None:
    strategy, grid = on_node(strategies.FedAvg()), StandIn([client_app(mods=[lifl_mod])] * 2)
    arrays = record(MODEL)
    for number in (1, 2):
        sent = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        new, metrics = strategy.aggregate_train(number, grid.send_and_receive(sent))
        assert new is not None and metrics is not None
        arrays = new
    strategy.close()
    assert not [each for each in grid.sent if RECORD in each.content]
    alone = strategies.FedAvg(fraction_evaluate=0.0).start(StandIn([client_app()] * 2), record(MODEL), 2)
    np.testing.assert_allclose(arrays["head"].numpy(), alone.arrays["head"].numpy(), rtol=1e-6)


# ---- many rounds for one message -------------------------------------------------------------------------------------


class Busy(StandIn):
    """A Grid whose nodes are threads: each runs its ClientApp for one message after the other."""

    def __init__(self, apps: list[Any]) -> None:
        super().__init__(apps)
        self._pools = {node: ThreadPoolExecutor(1) for node in self.apps}
        self._running: dict[str, Future[Message]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = list(super().push_messages(messages))
        for each in ids:
            sent = self._waiting.pop(each)
            self._running[each] = self._pools[sent.metadata.dst_node_id].submit(self._run, sent)
        return ids

    def _run(self, sent: Message) -> Message:
        content = RecordDict(dict(sent.content))
        content["config"] = ConfigRecord(dict(content["config"]))
        message = Message(metadata=sent.metadata, content=content)  # type: ignore[call-overload]
        context = SimpleNamespace(node_id=sent.metadata.dst_node_id, node_config={}, state=RecordDict())
        try:
            reply: Message = self.apps[context.node_id](message, context)
        except Exception as error:  # noqa: BLE001 - Flower makes it an error reply
            reply = Message(Error(2, repr(error)), reply_to=message)
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = [self._running.pop(each).result() for each in message_ids if self._running[each].done()]
        self.replies += found
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return [self._running.pop(each).result() for each in self.push_messages(messages)]


def plain_metrics(msg: Message, context: Any) -> Message:
    """Training whose metrics are single numbers."""
    reply = trained(msg, context)
    del reply.content["metrics"]["both"]
    return reply


@pytest.mark.parametrize("name", ["FedAvg", "FedAdam"])
def test_in_many_rounds_for_one_message_the_results_are_the_same(name: str) -> None:
    make = lambda: getattr(strategies, name)(**OURS[name])  # noqa: E731
    grid = Busy([client_app(plain_metrics, [lifl_mod])] * NODES)
    found = on_node(make(), rounds_per_message=4).start(grid, record(MODEL), 9)
    alone = make().start(StandIn([client_app(plain_metrics)] * NODES), record(MODEL), 9)
    for number in (1, 2, 3, 5, 6, 7):
        assert number not in found.evaluate_metrics_clientapp
        del alone.evaluate_metrics_clientapp[number]
    check_same(found, alone)
    trains = [sent for sent in grid.sent if sent.metadata.message_type == "train"]
    assert len(trains) == 3 * NODES, "a message for rounds 1 to 4, one for 5 to 8, one for 9"


def test_a_node_that_fails_between_messages_is_replaced_at_the_next(caplog: pytest.LogCaptureFixture) -> None:
    def fails(msg: Message, context: Any) -> Message:
        if msg.content["config"]["server-round"] in (2, 6):
            raise RuntimeError("out of memory")
        return plain_metrics(msg, context)

    good = client_app(plain_metrics, [lifl_mod])
    grid = Busy([good, good, client_app(fails, [lifl_mod])])
    with caplog.at_level(logging.INFO, "flwr"):
        strategy = on_node(strategies.FedAvg(fraction_evaluate=0.0), rounds_per_message=4)
        strategy.start(grid, record(MODEL), 6, timeout=60)
    counts = [each for each in caplog.messages if each.startswith("aggregate_train")]
    said = [(int(each.split()[2]), int(each.split()[5])) for each in counts]
    assert said == [(3, 0), (2, 1), (2, 0), (2, 0), (3, 0), (2, 1)]


def test_nodes_without_the_mod_take_part_in_the_first_round_of_each_message() -> None:
    grid = Busy([client_app(plain_metrics)] * 2)
    found = on_node(strategies.FedAvg(fraction_evaluate=0.0), rounds_per_message=3).start(grid, record(MODEL), 4)
    alone = strategies.FedAvg(fraction_evaluate=0.0).start(StandIn([client_app(plain_metrics)] * 2), record(MODEL), 4)
    check_same(found, alone)
    assert len(grid.sent) == 8, "none takes part any longer: the next round has its messages at once"


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "20", None])
def test_a_number_of_rounds_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(Refused, match="rounds_per_message="):
        LiflStrategy(strategies.FedAvg(), rounds_per_message=wrong)


# ---- messages that are sent ahead -----------------------------------------------------------------------------------


def round_in(message: Message) -> int:
    return int(message.content["config"]["server-round"])


def trained_in(grid: StandIn) -> list[tuple[int, int]]:
    """Of each message for training that was sent, its round and its node, in the order in which they were sent."""
    return [
        (number, each.metadata.dst_node_id)
        for each, number in zip(grid.sent, grid.rounds, strict=True)
        if each.metadata.message_type == "train"
    ]


def counts(caplog: pytest.LogCaptureFixture) -> list[tuple[int, int]]:
    """Results and failures of each round."""
    said = [each.split() for each in caplog.messages if each.startswith("aggregate_train")]
    return [(int(each[2]), int(each[5])) for each in said]


@pytest.mark.parametrize("name", ["FedAvg", "FedAdam"])
def test_with_messages_sent_ahead_the_results_are_the_same(name: str) -> None:
    make = lambda: getattr(strategies, name)(**OURS[name])  # noqa: E731
    grid = Busy([client_app(mods=[lifl_mod])] * NODES)
    found = on_node(make(), send_ahead=True).start(grid, record(MODEL), 6, timeout=60)
    check_same(found, make().start(StandIn([client_app()] * NODES), record(MODEL), 6))
    assert [number for number, _node in trained_in(grid)] == sorted([1, 2, 3, 4, 5, 6] * NODES)
    kinds = [each.metadata.message_type for each in grid.sent]
    assert kinds[2 * NODES : 5 * NODES] == ["train"] * 2 * NODES + ["evaluate"] * NODES, "round 3 goes with round 2"
    assert not [each for each in grid.sent[NODES:] if each.metadata.message_type == "train" and size(each)]


def test_each_round_has_nodes_of_its_own_and_who_has_brought_nothing_yet_is_sent_nothing_ahead() -> None:
    class Turns(strategies.FedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            messages = super().configure_train(server_round, arrays, config, grid)
            return [each for each in messages if each.metadata.dst_node_id in turns[server_round]]

    turns = {1: (1, 2), 2: (1, 3), 3: (2, 4), 4: (3, 4), 5: (1,)}
    grid = Busy([client_app(mods=[lifl_mod])] * 4)
    found = on_node(Turns(fraction_evaluate=0.0), send_ahead=True).start(grid, record(MODEL), 5, timeout=60)
    check_same(found, Turns(fraction_evaluate=0.0).start(StandIn([client_app()] * 4), record(MODEL), 5))
    sent = trained_in(grid)
    assert sorted(sent) == [(number, node) for number, nodes in turns.items() for node in nodes]
    assert sent[4:] == [(3, 2), (3, 4), (4, 3), (4, 4), (5, 1)], "node 4 has its first message in its round"


class Losing(Busy):
    """A Grid that has an error in the place of the replies of `gone`, rounds and nodes, while these are not there."""

    gone: tuple[tuple[int, int], ...] = ()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted, found = set(message_ids), []
        for each in sorted(wanted):
            number = int(each.partition("-")[2])
            message = self.sent[number]
            if (self.rounds[number], message.metadata.dst_node_id) in self.gone and each in self._running:
                wanted.discard(each)
                if not self._running.pop(each).done():
                    found.append(Message(Error(3, "the node is away"), reply_to=message))
        return [*found, *super().pull_messages(wanted)]


def test_who_comes_too_late_to_a_message_is_through_with_it_at_once(caplog: pytest.LogCaptureFixture) -> None:
    goes_on, is_there = threading.Event(), threading.Event()
    trained_rounds: list[int] = []
    replies: list[tuple[int, bool]] = []

    def slow(msg: Message, context: Any) -> Message:
        trained_rounds.append(round_in(msg))
        if round_in(msg) == 3:
            goes_on.wait(60)
        if round_in(msg) == 5:
            is_there.set()
        return trained(msg, context)

    def quick(msg: Message, context: Any) -> Message:
        if round_in(msg) == 5:
            goes_on.set()
            is_there.wait(60)
        return trained(msg, context)

    def watched(message: Message, context: Any) -> Message:
        reply: Message = late(message, context)
        replies.append((round_in(message), reply.has_error()))
        return reply

    late = client_app(slow, [lifl_mod])
    grid = Losing([client_app(quick, [lifl_mod]), watched])
    grid.gone = (3, 2), (4, 2)
    with caplog.at_level(logging.INFO, "flwr"):
        strategy = on_node(strategies.FedAvg(fraction_evaluate=0.0), send_ahead=True)
        strategy.start(grid, record(MODEL), 5, timeout=60)
    assert trained_rounds == [1, 2, 3, 5] and replies[2:] == [(3, True), (4, True), (5, False)]
    assert counts(caplog) == [(2, 0), (2, 0), (1, 1), (1, 1), (2, 0)]


def test_who_cannot_get_the_model_and_has_its_next_message_is_out_of_that_round(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, lost, take_part = threading.local(), {3}, references.take_part

    def app(message: Message, context: Any) -> Message:
        here.round = round_in(message) if context.node_id == 2 else 0
        reply: Message = good(message, context)
        return reply

    def blocked(ticket: str, **more: Any) -> Any:
        if here.round in lost:
            lost.discard(here.round)
            raise OSError("no route to host")
        return take_part(ticket, **more)

    monkeypatch.setattr(references, "take_part", blocked)
    good = client_app(mods=[lifl_mod])
    grid = Busy([app, app])
    with caplog.at_level(logging.INFO, "flwr"):
        strategy = on_node(strategies.FedAvg(fraction_evaluate=0.0), send_ahead=True)
        strategy.start(grid, record(MODEL), 6, timeout=60)
    assert counts(caplog) == [(2, 0), (2, 0), (1, 1), (2, 0), (2, 0), (2, 0)]
    assert "no route to host" in caplog.text
    of_two = [
        (each, number) for each, number in zip(grid.sent, grid.rounds, strict=True) if each.metadata.dst_node_id == 2
    ]
    assert [number for each, number in of_two if size(each)] == [1, 5, 6], "arrays, while it is blocked"


def test_a_strategy_with_arrays_of_its_own_has_nothing_sent_ahead(caplog: pytest.LogCaptureFixture) -> None:
    class Own(strategies.FedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            if server_round > 2:
                arrays = ArrayRecord({name: Array(np.asarray(array.numpy() * 2)) for name, array in arrays.items()})
            return super().configure_train(server_round, arrays, config, grid)

    make = lambda: Own(fraction_evaluate=0.0)  # noqa: E731
    grid = Busy([client_app(mods=[lifl_mod])] * 2)
    found = on_node(make(), send_ahead=True).start(grid, record(MODEL), 4, timeout=60)
    check_same(found, make().start(StandIn([client_app()] * 2), record(MODEL), 4))
    assert caplog.text.count("nothing is sent ahead") == 1 and len(grid.sent) == 8
    with pytest.raises(Refused, match="send_ahead or rounds_per_message"):
        LiflStrategy(strategies.FedAvg(), send_ahead=True, rounds_per_message=2)


# ---- a ServerApp that is killed --------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process of the ServerApp ends here."""


def dies_in(number: int, app: Any) -> Any:
    def client(message: Message, context: Any) -> Message:
        if message.content["config"]["server-round"] == number and message.metadata.message_type == "train":
            raise Killed
        return app(message, context)

    return client


def evaluation(seen: list[int]) -> Callable[[int, ArrayRecord], MetricRecord]:
    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(number)
        return MetricRecord({"sum": float(arrays["head"].numpy().sum())})

    return evaluate


def resumed(grid: StandIn, seen: list[int], rounds: int = 6, model: Any = MODEL) -> Any:
    strategy = on_node(strategies.FedAvg(fraction_evaluate=0.0), resume=True)
    return strategy.start(grid, record(model), rounds, evaluate_fn=evaluation(seen))


def test_a_run_goes_on_at_the_round_in_which_its_server_app_was_killed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIFL_FLOWER_STATE", str(tmp_path / "runs"))
    seen: list[int] = []
    app = client_app(mods=[lifl_mod])
    with pytest.raises(Killed):
        resumed(StandIn([app, dies_in(4, app)]), seen)
    assert seen == [0, 1, 2, 3]
    found = resumed(grid := StandIn([app, app]), seen)
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    assert len(grid.sent) == 3 * 2, "rounds 4, 5 and 6"
    alone = strategies.FedAvg(fraction_evaluate=0.0).start(StandIn([client_app()] * 2), record(MODEL), 6)
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(found.arrays[name].numpy(), array.numpy(), rtol=2e-6, atol=2e-6)
    assert list(found.train_metrics_clientapp) == [4, 5, 6]
    assert not list((tmp_path / "runs").iterdir()), "a run that has come to its end is forgotten"


def test_a_run_of_another_model_or_strategy_begins_at_round_1(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFL_FLOWER_STATE", str(tmp_path))
    with pytest.raises(Killed):
        resumed(StandIn([client_app(), dies_in(2, client_app())]), [])
    resumed(grid := StandIn([client_app()] * 2), [], 1, {**MODEL, "more": np.zeros(2, np.float32)})
    assert len(grid.sent) == 2
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"damaged")
    with pytest.raises(ResourceFault, match="remove the file"):
        resumed(StandIn([]), [])
    with pytest.raises(Refused, match="FedAdam has a state"):
        LiflStrategy(strategies.FedAdam(), resume=True)


# ---- seams -----------------------------------------------------------------------------------------------------------


def test_views_are_the_numbers_where_they_lie() -> None:
    arrays = [
        np.arange(12, dtype=np.int16).reshape(3, 4),
        np.asfortranarray(np.ones((2, 5))),
        np.zeros((0, 3)),
        np.array(True),
    ]
    for array in arrays:
        made = Array(array)
        found = view("x", made)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype and found.shape == array.shape
        assert not found.flags.owndata and not found.flags.writeable
    for data in (b"", b"\x93NUMPY", made.data[:-1], b"\x93NUMPY\x09\x00" + made.data[8:]):
        with pytest.raises(Refused, match="array 'x' cannot be read"):
            view("x", Array("bool", (), "numpy.ndarray", data))


def test_a_record_of_ours_is_flowers_and_copies_nothing_before_its_bytes_are_wanted() -> None:
    tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0, 3)), "n": np.array(7)}
    tensors["w"].flags.writeable = False

    def lent() -> Any:
        return as_record(tensors)["w"]

    record, plain = as_record(tensors), ArrayRecord({name: Array(array) for name, array in tensors.items()})
    assert views(record)["w"] is tensors["w"]
    copied = record["w"].numpy()
    copied += 1
    np.testing.assert_array_equal(tensors["w"].ravel(), range(6))
    assert type(record["w"]) is LentArray, "nobody has asked for bytes"
    assert lent() == plain["w"] == lent() != Array(copied)
    for alike in (copy.deepcopy(lent()), pickle.loads(pickle.dumps(lent()))):
        assert alike == plain["w"] and type(alike) is Array
    changed = lent()
    changed.data = Array(copied).data
    np.testing.assert_array_equal(changed.numpy(), copied)
    assert record.count_bytes() == plain.count_bytes()
    assert as_record(tensors).object_id == plain.object_id, "it goes by Flower's messages as any other"
    assert type(record["w"]) is Array
    half = as_record({"h": np.ones(3, ml_dtypes.bfloat16)})
    assert half.object_id == ArrayRecord({"h": Array(np.ones(3, ml_dtypes.bfloat16))}).object_id


def test_the_seams_that_are_used_are_there() -> None:
    """What of Flower's public names is built upon: a release without one is named by this test."""
    start = list(inspect.signature(strategies.Strategy.start).parameters)
    assert start[:5] == ["self", "grid", "initial_arrays", "num_rounds", "timeout"], FLWR
    for name, wanted in {
        "configure_train": ["self", "server_round", "arrays", "config", "grid"],
        "configure_evaluate": ["self", "server_round", "arrays", "config", "grid"],
        "aggregate_train": ["self", "server_round", "replies"],
        "aggregate_evaluate": ["self", "server_round", "replies"],
        "summary": ["self"],
    }.items():
        assert list(inspect.signature(getattr(strategies.Strategy, name)).parameters) == wanted, (FLWR, name)
    assert set(strategies.Strategy.__abstractmethods__) <= set(vars(LiflStrategy)), FLWR
    strategy = strategies.FedAvg()
    for name in ("arrayrecord_key", "configrecord_key", "weighted_by_key", "train_metrics_aggr_fn"):
        assert hasattr(strategy, name), (FLWR, name)
    for name in ("push_messages", "pull_messages", "send_and_receive", "get_node_ids", "run"):
        assert hasattr(Grid, name), (FLWR, name)
    assert list(inspect.signature(ClientApp.__init__).parameters)[-1] == "mods", FLWR
    assert set(OURS) < set(strategies.__all__), FLWR
    assert {"data", "dtype", "shape", "stype"} <= set(vars(Array(np.zeros(1)))), FLWR
