"""The ServerApp's side: one of Flower's strategies, whose updates are folded by LIFL as they come.

    strategy = LiflStrategy(FedAvg(...), node=":local:")

Selection, configuration, metrics and evaluation stay those of the strategy that is given.  What LIFL does is the
aggregation: each reply is pulled by itself, its update goes into a fold where it lies, its arrays are freed.  From the
nodes whose ClientApp has `lifl_mod` updates come past Flower's servers.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Collection, Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from lifl.aggregator import Aggregator, FoldFailed
from lifl.core.errors import Refused
from lifl.integrations.flower.ahead import AheadExchange
from lifl.integrations.flower.exchanges import NodeExchange, SeriesExchange, TrainExchange, name_of
from lifl.integrations.flower.grid import LiflGrid
from lifl.integrations.flower.records import RECORD, as_record, views, with_same_metrics, without
from lifl.integrations.flower.resume import RunFile, later
from lifl.integrations.flower.routes import Routes
from lifl.integrations.flower.rules import rule_of
from lifl.integrations.memory import give_back
from lifl.integrations.references import digest_of

log = logging.getLogger("flwr")
_KINDS = ("train", "evaluate")
_KEPT = "current_arrays"
"""Where FedAvgM and the adaptive strategies keep the model, for a step that is LIFL's here."""


class LiflStrategy(Strategy):  # type: ignore[misc]
    """Does as `strategy` does, with LIFL's node as its aggregator.

    `node`, `arena_bytes` and `identity` are those of `lifl.Aggregator`: ``":local:"`` is a node of its own.  Raise
    `Refused` for a strategy that cannot be aggregated so.

    With `with_mod`, some of ``("train", "evaluate")``, it is said for which messages the ClientApps have the mod: so
    not even the first of these carry the model, which Flower's servers then never have.

    With `rounds_per_message` a node whose ClientApp has the mod takes part in so many rounds for one message: its
    process and its data stay warm, and no round waits for Flower's servers.  Nodes are chosen, and evaluate, once for
    each message.

    With `send_ahead` the next round's messages are sent while this one runs, so that no SuperNode sleeps in between:
    nodes are chosen in each round, one round early.

    With `resume` each round's model is written to the disk, and a ServerApp that was killed goes on behind it.
    """

    def __init__(
        self,
        strategy: Strategy,
        node: str | os.PathLike[str] = ":local:",
        *,
        arena_bytes: int | None = None,
        identity: str | None = None,
        with_mod: Collection[str] = (),
        rounds_per_message: int = 1,
        send_ahead: bool = False,
        resume: bool = False,
    ) -> None:
        if isinstance(rounds_per_message, bool) or not (isinstance(rounds_per_message, int) and rounds_per_message > 0):
            text = f"rounds_per_message={rounds_per_message!r}: in how many rounds a node takes part for one message"
            raise Refused("bad-rounds", "rounds_per_message", f"{text}, 1 or more")
        if send_ahead and rounds_per_message > 1:
            text = "of many rounds for one message none but the first has messages that could be sent ahead"
            raise Refused("bad-rounds", "send_ahead", f"{text}: give send_ahead or rounds_per_message")
        if isinstance(with_mod, str) or not set(with_mod) <= set(_KINDS):
            text = f"with_mod={with_mod!r}: for which messages the ClientApps have lifl_mod"
            raise Refused("bad-with-mod", "with_mod", f"{text}, some of {_KINDS}")
        rule = rule_of(strategy)
        if resume and rule.name != "fedavg":
            text = f"{type(strategy).__name__} has a state on LIFL's node, which would begin anew: resume=True is for"
            raise Refused("bad-strategy", "resume", f"{text} FedAvg and FedProx")
        self.strategy = strategy
        self._aggregator = Aggregator(node, rule.name, rule.options, arena_bytes=arena_bytes, identity=identity)
        self._routes = Routes(with_mod)
        self._training: TrainExchange | None = None
        self._evaluation: NodeExchange | None = None
        self._rounds_per_message = rounds_per_message
        self._series: SeriesExchange | None = None
        self._send_ahead = send_ahead
        self._next: AheadExchange | None = None  # whose messages are sent
        self._last_round = sys.maxsize
        self._resume = resume
        self._run: RunFile | None = None
        self._done = 0  # rounds that an earlier ServerApp of the run has done

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **more: Any) -> Result:
        """Run the rounds, as `Strategy.start` does; what it takes besides is handed on."""
        given = inspect.signature(super().start).bind(grid, initial_arrays, *args, **more)
        given.apply_defaults()
        self._last_round = int(given.arguments.get("num_rounds", sys.maxsize))
        given.arguments["grid"] = LiflGrid(grid)
        if self._resume:
            self._find_run(grid, given.arguments)
        try:
            result = super().start(*given.args, **given.kwargs)
        finally:
            self.close()
        if self._run is not None:
            if not result.arrays:
                result.arrays = given.arguments["initial_arrays"]
            self._run.remove()
        return result

    def _find_run(self, grid: Any, given: dict[str, Any]) -> None:
        """Have the run go on where an earlier ServerApp was killed, if one was.  Raise `ResourceFault`, `Refused`."""
        app = str(grid.run.fab_id)
        self._run = RunFile(app, type(self.strategy).__name__, views(given["initial_arrays"]))
        found = self._run.found()
        if found is None:
            return
        log.info("LIFL: an earlier run of %s was ended behind round %d: this one goes on there", app, found.round)
        self._done = found.round
        given["initial_arrays"] = as_record(found.tensors)
        given["evaluate_fn"] = later(given.get("evaluate_fn"), found.round)

    def close(self) -> None:
        """End a round that is open, and the node, if it is one of its own; done by `start` at its end."""
        self._aggregator.close()

    def summary(self) -> None:
        """Say what is aggregated how."""
        log.info("\t├──> %s, aggregated by LIFL", type(self.strategy).__name__)
        self.strategy.summary()

    # ---- training ----------------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the strategy choose nodes, and open a fold for their updates.  Raise `Refused`: nothing is sent then."""
        self._end_rounds()
        give_back()
        if server_round <= self._done:
            return []
        if self._series is not None and self._series.more():
            return self._go_on(self._series, server_round, arrays, grid)
        next_, self._next = self._next, None
        if next_ is not None:
            self._open(next_, arrays)
            round_: TrainExchange = next_
            messages = next_.rest()
        else:
            messages = self._chosen(server_round, arrays, config, grid)
            if not messages:
                return messages
            round_ = self._exchange(server_round, arrays, isinstance(grid, LiflGrid))
            shared = isinstance(round_, SeriesExchange)
            round_.fold = self._aggregator.open(views(arrays), len(messages), shared=shared)
        self._training = round_
        if not isinstance(grid, LiflGrid):  # nobody would send a second message where that is needed
            return messages
        grid.expect(round_, self._early(round_, server_round, arrays, config, grid))
        if round_.wants_model(messages):
            round_.digest = digest_of(views(arrays))
        return [round_.outgoing(message) for message in messages]

    def _chosen(self, server_round: int, arrays: Any, config: Any, grid: Any) -> list[Message]:
        """Return the messages to the nodes that the strategy chooses for a round."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        if hasattr(self.strategy, _KEPT):
            setattr(self.strategy, _KEPT, None)
        return messages

    def _early(
        self, round_: TrainExchange, server_round: int, arrays: Any, config: Any, grid: Any
    ) -> tuple[AheadExchange, list[Message]] | None:
        """Have the strategy choose nodes for the next round, too, and return what is sent to them behind this one's."""
        number = server_round + 1
        if not self._send_ahead or number > self._last_round or not self._routes.any_brings:
            return None
        messages = self._chosen(number, arrays, ConfigRecord(dict(config)), grid)
        if not messages:
            return None
        theirs = self.strategy
        about = (number, self._routes, arrays, theirs.arrayrecord_key, theirs.weighted_by_key)
        next_ = AheadExchange(*about)
        early = next_.early(messages, round_.fold)
        if early is None:
            text = "puts arrays of its own into messages: they would be of the round before, so nothing is sent ahead"
            log.warning("LIFL: %s %s", type(theirs).__name__, text)
            self._send_ahead = False
            return None
        self._next, round_.sent_ahead = next_, next_.out
        return next_, early

    def _open(self, round_: AheadExchange, arrays: Any) -> None:
        """Open the fold of a round whose messages are sent, if it is not open with this model."""
        if not round_.is_about(arrays):
            if round_.is_open:
                round_.fold.cancel()
            round_.begin(arrays, self._aggregator.open(views(arrays), round_.size, shared=True))

    def _exchange(self, server_round: int, arrays: Any, may_be_series: bool) -> TrainExchange:
        """Return a new round, or the first of several for one message."""
        theirs = self.strategy
        about = (server_round, self._routes, arrays, theirs.arrayrecord_key, theirs.weighted_by_key)
        rounds = min(self._rounds_per_message, self._last_round - server_round + 1)
        if not may_be_series or rounds < 2:
            return TrainExchange(*about)
        earlier = set() if self._series is None else self._series.waiting
        self._series = SeriesExchange(*about, rounds=rounds, config_key=theirs.configrecord_key, earlier=earlier)
        return self._series

    def _go_on(self, series: SeriesExchange, server_round: int, arrays: Any, grid: Any) -> list[Message]:
        """Open the next fold for those who take part for an earlier message: nothing is sent."""
        series.begin(server_round, self._aggregator.open(views(arrays), series.size, shared=True))
        self._training = series
        grid.expect(series)
        log.info("configure_train: %d nodes go on, %s", series.size, "for the last time" if not series.more() else "")
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the updates of replies as they come, and return the new model and the metrics.

        A reply that is an error, or whose update is refused, is a failure: it is logged, and the others count.
        """
        round_, self._training = self._training, None
        if round_ is None:
            return None, None
        contents: dict[str, Any] = {}
        failures: list[tuple[int, str]] = []
        with round_.fold as fold:
            for reply in replies:
                node = reply.metadata.src_node_id
                if reply.has_error():
                    failures.append((node, f"{reply.error.reason}"))
                    continue
                try:
                    content = round_.take(reply)
                    if content is not None:
                        contents[name_of(node)] = content
                except (Refused, FoldFailed) as error:
                    failures.append((node, str(error)))
            round_.take_brought(contents)
            result = self._result(fold, contents) if contents else None
            if result is None:
                _tell(contents, failures)
                return None, None
            for name in round_.by_lifl.difference(result.clients):
                del contents[name]
                failures.append((int(name.partition("-")[2]), "it says that its update is in LIFL, where it is not"))
        give_back()
        _tell(contents, failures)
        past = len(round_.by_lifl & contents.keys())
        log.info("LIFL: %d updates came past Flower's servers, %d by them", past, len(contents) - past)
        if self._run is not None:
            self._run.save(server_round, result)
        arrays = as_record(result)
        if not contents:
            return arrays, None
        found = with_same_metrics(list(contents.values()))
        return arrays, self.strategy.train_metrics_aggr_fn(found, self.strategy.weighted_by_key)

    def _result(self, fold: Any, contents: dict[str, Any]) -> Any:
        """Return the fold's result, or None, which is said: there is no new model in this round."""
        try:
            return fold.result()
        except Refused as refused:
            if refused.code != "no-updates":
                raise
            log.warning("LIFL: no update of this round has a weight: the model stays as it is")
        except FoldFailed as error:
            log.warning("LIFL: %d updates have no aggregate, the model stays as it is: %s", len(contents), error)
        return None

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the strategy choose nodes; the model goes to those with `lifl_mod` past Flower's servers."""
        if server_round <= self._done or (self._series is not None and self._series.more()):
            return []
        if self._next is not None:  # its nodes may have that message before the one for evaluation
            self._open(self._next, arrays)
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        if not messages or not isinstance(grid, LiflGrid):
            return messages
        round_ = NodeExchange("evaluate", server_round, self._routes, arrays, self.strategy.arrayrecord_key)
        if round_.wants_model(messages):
            model = views(arrays)
            round_.fold = self._next.fold if self._next is not None else self._aggregator.open(model, len(messages))
            round_.digest = digest_of(model)
        self._evaluation = round_
        grid.expect(round_)
        return [round_.outgoing(message) for message in messages]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Have the strategy aggregate the metrics of evaluation."""
        found = []
        for reply in replies:
            if reply.has_content():
                reply.content = without(reply.content, RECORD)
            found.append(reply)
        self._end_rounds()
        return self.strategy.aggregate_evaluate(server_round, found)

    def _end_rounds(self) -> None:
        """Give up what is open: evaluation has its answers, or the caller began another round."""
        for round_ in (self._evaluation, self._training):
            if round_ is None or round_.fold is None or (self._next is not None and round_.fold is self._next.fold):
                continue
            round_.fold.cancel()
        self._evaluation = self._training = None


def _tell(contents: dict[str, Any], failures: list[tuple[int, str]]) -> None:
    """Log what came, as Flower's strategies do."""
    log.info("aggregate_train: Received %s results and %s failures", len(contents), len(failures))
    for node, reason in failures:
        log.info("\t> Received error in reply from node %d: %s", node, reason)
