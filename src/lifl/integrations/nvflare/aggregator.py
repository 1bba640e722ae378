"""NVFlare's `ModelAggregator` over LIFL: each model is folded when it arrives, and nothing of it is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.aggregators.weighted_aggregation_helper import (
    AggregationStatsKey,
    WeightedAggregationHelper,
    compute_key_match_stats,
    filter_aggregatable_metrics,
)
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.base_fedavg import make_fedavg_metrics_aggregation_info

from lifl.aggregator import Aggregator, FoldResult, UpdateRefused
from lifl.core.errors import LiflError, LocalFault
from lifl.integrations.memory import give_back
from lifl.integrations.nvflare.messages import AGGREGATOR, MODEL_TOPIC, Brought, Sent
from lifl.integrations.nvflare.round import Round, checked_factors, weight_of

LOCAL = ":local:"
AGAIN_ROUNDS = 10
"""After so many rounds a client that could not fetch the model is sent a reference again."""
TEXT_CHARS = 500
"""Of what a client says in the server's log."""
SITE_WEIGHT = "effective_fedavg_metric_weight"


class LiflAggregator(ModelAggregator):  # type: ignore[misc]
    """Aggregates the updates of a FedAvg job in a LIFL node: `aggregator=` of a recipe or of a `FedAvg` controller.

    `node`, `rule`, `options` and `arena_bytes` are those of `lifl.Aggregator`; nothing given: a node of its own, which
    the job's server process starts and ends, and FedAvg.  The controller's `aggregation_weights` and `exclude_vars`
    count as they do without it, and metrics are averaged by NVFlare's own helper.
    """

    def __init__(
        self,
        node: str = LOCAL,
        rule: str = "fedavg",
        options: Mapping[str, Any] | None = None,
        arena_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.arena_bytes = arena_bytes
        self.node = node
        self.rule = rule
        self.options = options
        self._aggregator: Aggregator | None = None
        self._round: Round | None = None
        self._rounds = 0
        self._factors: dict[str, float] = {}
        self._excluded: re.Pattern[str] | None = None
        self._excluded_names: set[str] = set()
        self._weights: dict[str, float] = {}
        self._metrics: Any = None
        self._model: Any = None  # the params of the round's model, for who cannot fetch them
        self._cut_off: dict[str, int] = {}
        self._said_changed = False

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Look at each round's model before it is sent, and end the node with the run."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            self._announce(fl_ctx)
        elif event_type == AppEventType.INITIAL_MODEL_LOADED:
            self._first_model(fl_ctx)
        elif event_type == AppEventType.BEFORE_TRAIN_TASK:
            self._before_sending(fl_ctx)
        elif event_type == EventType.END_RUN and self._aggregator is not None:
            with suppress(LiflError):
                self._aggregator.close()
            self._aggregator = self._round = self._model = None

    # ---- what FedAvg asks for --------------------------------------------------------------------------------------

    def reset_stats(self) -> None:
        """Begin a round.  Raise `LiflError` for what the job asks for and LIFL does not do."""
        if self._aggregator is None:
            self._read_controller()
            self._aggregator = Aggregator(self.node, self.rule, self.options, arena_bytes=self.arena_bytes)
        if self._round is not None:
            self._round.cancel()
        give_back()
        self._round = Round(self._aggregator, self.rule, self._expected())
        self._rounds += 1
        self._excluded_names = set()
        self._weights = {}
        self._metrics = WeightedAggregationHelper()

    def accept_model(self, model: FLModel) -> None:
        """Fold one client's model.  Raise `UpdateRefused`, which names what cannot be aggregated."""
        if self._round is None:
            raise LocalFault("an update has come before the round began (reset_stats)")
        client = self._client_of(model)
        if client in self._round.clients:
            self.warning(f"LIFL: client {client} has sent its update again: the first one counts")
            return
        weight = weight_of(model.meta, FLMetaKey.NUM_STEPS_CURRENT_ROUND, self._factors.get(client, 1.0))
        params_type = str(getattr(model.params_type, "value", model.params_type))
        brought = Brought.read(model.params)
        if brought is None:
            self._round.add(client, self._included(model.params), params_type, weight)
        elif brought.refused:
            raise UpdateRefused("refused", "params", brought.refused[:TEXT_CHARS], client)
        else:
            self._round.brought(client, brought.reference, params_type)
        self._weights[client] = weight
        if model.metrics is None:
            self._metrics = None  # as NVFlare does: a round whose clients have not all measured has no metrics
        measured = filter_aggregatable_metrics(model.metrics)
        if self._metrics is not None and measured:
            number = model.current_round
            self._metrics.add(data=measured, weight=weight, contributor_name=client, contribution_round=number)

    def aggregate_model(self) -> FLModel:
        """Return the round's aggregate.  Raise `LiflError` when there is none."""
        if self._round is None:
            raise LocalFault("a round ends that has not begun (reset_stats)")
        params, result = self._round.result()
        self._model = None
        give_back()
        self._tell(result)
        sites = [{"name": who, "weight": weight, "weight_key": SITE_WEIGHT} for who, weight in self._weights.items()]
        info = make_fedavg_metrics_aggregation_info(
            weight_key=SITE_WEIGHT,
            weight_formula="aggregation_weight * NUM_STEPS_CURRENT_ROUND",
            site_weights=sites,
        )
        return FLModel(
            params=params,
            params_type=ParamsType(self._round.params_type),
            metrics=(self._metrics.get_result() if self._metrics is not None else None) or None,
            meta={AppConstants.METRICS_AGGREGATION_INFO: info | {"use_contribution_sites": True}},
        )

    def _tell(self, result: FoldResult) -> None:
        """Say what was aggregated, and publish NVFlare's figures about it."""
        assert self._round is not None
        stats = compute_key_match_stats(self._round.clients)
        stats[AggregationStatsKey.SKIPPED_KEYS] = len(self._excluded_names)
        stats[AggregationStatsKey.KEYS_SEEN] += len(self._excluded_names)
        absent = self._round.absent(result)
        if absent:
            self.error(
                f"LIFL: {', '.join(absent)} said that they have brought an update, and the node has none of them"
            )
        if self.fl_ctx is not None:
            stats[AggregationStatsKey.ROUND] = self.fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
            self.fl_ctx.set_prop(AppConstants.AGGREGATION_STATS, stats, private=True, sticky=False)
        self.info(f"LIFL: the mean of {len(result.clients)} updates, of weight {result.weight:g}")

    # ---- tensors that go by LIFL -----------------------------------------------------------------------------------

    def sent_to(self, client: str, params: Mapping[str, Any]) -> Sent | None:
        """Return what a message to `client` carries instead of the model's `params`; None: it carries them.

        Raise `LiflError`.
        """
        if self._round is None or not self._round.is_prepared:
            return None
        since = self._cut_off.get(client)
        if since is not None and self._rounds - since < AGAIN_ROUNDS:
            return None
        if not self._round.is_model(self._included(params)):
            self._say_changed()
            return None
        reference = self._round.refer(client)
        rest = {name: params[name] for name in self._excluded_names if name in params}
        return Sent(reference, self._factors.get(client, 1.0), self._round.kinds, rest)

    def _say_changed(self) -> None:
        if not self._said_changed:
            self._said_changed = True
            text = "another filter has changed the model, or the task has another one"
            self.warning(f"LIFL: {text}: its tensors go in NVFlare's own messages")

    def _announce(self, fl_ctx: FLContext) -> None:
        """Let the filters find this, and clients ask for a model that they cannot fetch."""
        fl_ctx.set_prop(AGGREGATOR, self, private=True, sticky=True)
        fl_ctx.get_engine().register_aux_message_handler(MODEL_TOPIC, self._give_model)

    def _give_model(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        peer = fl_ctx.get_peer_context()
        client = str(peer.get_identity_name() if peer is not None else "")
        if self._model is None or not client:
            return make_reply(ReturnCode.BAD_REQUEST_DATA)
        self._cut_off[client] = self._rounds
        self.log_warning(
            fl_ctx,
            f"LIFL: client {client} cannot fetch the model: {str(request.get('why'))[:TEXT_CHARS]!r}; its tensors go "
            f"in NVFlare's own messages for {AGAIN_ROUNDS} rounds",
        )
        reply: Shareable = DXO(DataKind.WEIGHTS, data=self._model).update_shareable(make_reply(ReturnCode.OK))
        return reply

    # ---- what the job is -------------------------------------------------------------------------------------------

    def _first_model(self, fl_ctx: FLContext) -> None:
        """Open a fold by the run's first model, before anything is sent: what cannot be is said now."""
        model = fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)
        params = model.get(ModelLearnableKey.WEIGHTS) if isinstance(model, Mapping) else None
        try:
            if params:
                self.reset_stats()
                self._prepare(params)
        except LiflError as error:
            self._panic(error, fl_ctx)

    def _before_sending(self, fl_ctx: FLContext) -> None:
        """Open the round's fold by the model that goes to the clients."""
        if self._round is None or self._round.is_prepared:
            return
        try:
            params = from_shareable(fl_ctx.get_prop(AppConstants.TRAIN_SHAREABLE)).data
        except ValueError:  # no model
            return
        try:
            if params:
                self._prepare(params)
        except LiflError as error:
            self._panic(error, fl_ctx)

    def _prepare(self, params: Any) -> None:
        assert self._round is not None
        self._round.prepare(self._included(params))
        self._model = params

    def _panic(self, error: LiflError, fl_ctx: FLContext) -> None:
        """End the run."""
        self.system_panic(f"LIFL cannot aggregate this job's model: {error}", fl_ctx)

    def _controller(self) -> Any:
        """Return the controller whose aggregator this is, where it can be found."""
        runner = self.fl_ctx.get_prop(FLContextKey.RUNNER) if self.fl_ctx is not None else None
        workflows = getattr(getattr(runner, "config", None), "workflows", None) or ()
        controllers = [getattr(workflow, "controller", None) for workflow in workflows]
        return next((each for each in controllers if getattr(each, "aggregator", None) is self), None)

    def _read_controller(self) -> None:
        """Take over what the controller applies where it aggregates by itself.  Raise `LocalFault`."""
        controller = self._controller()
        self._factors = checked_factors(getattr(controller, "aggregation_weights", None) or {})
        pattern = getattr(controller, "exclude_vars", None)
        try:
            self._excluded = re.compile(pattern) if pattern else None
        except (re.error, TypeError) as error:
            raise LocalFault(f"exclude_vars={pattern!r} is no regular expression: {error}") from error

    def _expected(self) -> int:
        """Return about how many updates a round has."""
        wanted = getattr(self._controller(), "num_clients", 0)
        engine = self.fl_ctx.get_engine() if self.fl_ctx is not None else None
        return int(wanted or len(engine.get_clients() if engine is not None else ()) or 1)

    def _included(self, params: Any) -> Any:
        """Return the params without those that the controller excludes."""
        if self._excluded is None or not isinstance(params, Mapping):
            return params
        excluded = {name for name in params if self._excluded.search(str(name))}
        self._excluded_names |= excluded
        return {name: value for name, value in params.items() if name not in excluded}

    def _client_of(self, model: FLModel) -> str:
        name = (model.meta or {}).get("client_name")
        if not name and self.fl_ctx is not None:
            peer = self.fl_ctx.get_peer_context()
            name = peer.get_identity_name() if peer is not None else ""
        return str(name or AppConstants.CLIENT_UNKNOWN)
