"""NVFlare's filters by which the tensors go by LIFL: its messages carry references, configuration and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import Filter, FilterChainType, FilterContextKey
from nvflare.apis.fl_constant import FilterKey, FLContextKey, FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from lifl.aggregator import FoldFailed, UpdateRefused
from lifl.client.tensors import Array
from lifl.core.errors import LocalFault, Refused
from lifl.core.schema import Layout
from lifl.integrations.nvflare.messages import AGGREGATOR, MODEL_TOPIC, Brought, Sent
from lifl.integrations.nvflare.params import as_params, as_tensors, layout_of
from lifl.integrations.nvflare.round import weight_of
from lifl.integrations.references import NotReached, Taking

TASK = "train"
TAKEN = "lifl.taken"
"""The property of a task under which a client's filters keep what they know."""
MODEL_S = 3600.0
"""Within this time a model comes by NVFlare's own message."""


class Taken(NamedTuple):
    """What a client knows of its task: what was sent, and the layout of the model."""

    sent: Sent
    layout: Layout


class LiflFilter(Filter):  # type: ignore[misc]
    """Sends the tensors of a task by LIFL; the same on the server and at the clients, for task data and task results.

    It is the last filter of what goes out, and the first of what comes in: to others the tensors are where they were.
    The job's aggregator is a `LiflAggregator`.  `identity` is the folder of a client's certificate, as of
    `lifl.Client`, for a node that asks for one.
    """

    def __init__(self, identity: str = "") -> None:
        super().__init__()
        self.identity = identity
        self._said = False

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Put a reference in the place of tensors, or tensors in the place of a reference."""
        chain = self.get_prop(FilterContextKey.CHAIN_TYPE)
        goes_out = fl_ctx.get_prop(FLContextKey.FILTER_DIRECTION) == FilterKey.OUT
        if chain == FilterChainType.TASK_DATA_CHAIN:
            return self._send_model(shareable, fl_ctx) if goes_out else self._take_model(shareable, fl_ctx)
        return self._send_update(shareable, fl_ctx) if goes_out else shareable

    def add_to_fed_job(self, job: Any, ctx: Any, **more: Any) -> None:
        """Add it to a job, which then holds no copies of LIFL's files: it is installed where the job runs."""
        known = getattr(getattr(job, "job", None), "app_packages", None) or []
        job.set_app_packages(sorted({*known, "lifl"}))
        super().add_to_fed_job(job, ctx, **more)

    # ---- on the server ---------------------------------------------------------------------------------------------

    def _send_model(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        aggregator = fl_ctx.get_prop(AGGREGATOR)
        if aggregator is None:
            text = "LiflFilter sends references, and only a LiflAggregator takes what comes of them: give the job one"
            self.system_panic(text, fl_ctx)
            raise LocalFault(text)
        dxo = _dxo_of(shareable)
        if dxo is None:
            return shareable
        peer = fl_ctx.get_peer_context()
        sent = aggregator.sent_to(str(peer.get_identity_name()), dxo.data)
        return shareable if sent is None else _with(shareable, dxo, sent.data())

    # ---- at a client -----------------------------------------------------------------------------------------------

    def _take_model(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        dxo = _dxo_of(shareable)
        sent = Sent.read(dxo.data) if dxo is not None else None
        if sent is None:
            return shareable
        try:
            with Taking(sent.reference, identity=self.identity or None) as taking:
                model = taking.model()
        except NotReached as error:
            return _with(shareable, dxo, self._ask_for_model(str(error), fl_ctx))
        fl_ctx.set_prop(TAKEN, Taken(sent, layout_of(model)), private=True, sticky=False)
        return _with(shareable, dxo, as_params(model, sent.kinds) | sent.rest)

    def _ask_for_model(self, why: str, fl_ctx: FLContext) -> Any:
        """Return the model's params, which come in NVFlare's own message.  Raise `LocalFault`."""
        self._say(f"LIFL cannot be reached, so the tensors go in NVFlare's own messages: {why}", fl_ctx)
        request = Shareable()
        request["why"] = why
        replies = fl_ctx.get_engine().send_aux_request(
            targets=None, topic=MODEL_TOPIC, request=request, timeout=MODEL_S, fl_ctx=fl_ctx
        )
        for reply in replies.values():
            if reply.get_return_code() == ReturnCode.OK:
                return from_shareable(reply).data
        raise LocalFault(f"the model comes neither by LIFL ({why}) nor in NVFlare's own message")

    def _send_update(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        taken = fl_ctx.get_prop(TAKEN)
        dxo = _dxo_of(shareable)
        if taken is None or dxo is None or shareable.get_return_code() not in (None, ReturnCode.OK):
            return shareable
        fl_ctx.set_prop(TAKEN, None, private=True, sticky=False)
        rest = taken.sent.rest
        try:
            tensors, _kinds = as_tensors({name: value for name, value in dxo.data.items() if name not in rest})
            if layout_of(tensors).digest != _ordered(taken.layout, tensors).digest:
                self._say("the update is not laid out as the model, so it goes in NVFlare's own message", fl_ctx)
                return shareable
            weight = weight_of(dxo.meta, FLMetaKey.NUM_STEPS_CURRENT_ROUND, taken.sent.factor)
            with Taking(taken.sent.reference, identity=self.identity or None) as taking:
                taking.submit(tensors, weight)
        except UpdateRefused as refused:
            self.log_error(fl_ctx, f"the update cannot count: {refused}")
            return _with(shareable, dxo, Brought(taken.sent.reference, str(refused)).data())
        except (NotReached, FoldFailed, Refused) as error:
            self._say(f"the update goes in NVFlare's own message: {error}", fl_ctx)
            return shareable
        return _with(shareable, dxo, Brought(taken.sent.reference).data())

    def _say(self, text: str, fl_ctx: FLContext) -> None:
        """Say it once."""
        if not self._said:
            self._said = True
            self.log_warning(fl_ctx, text)


def send_by_lifl(recipe: Any, tasks: Sequence[str] = (TASK,), identity: str = "") -> None:
    """Have the tensors of a recipe's tasks go by LIFL; call it behind all other filters that are added.

    `identity` is the folder of the clients' certificates, as of `lifl.Client`.
    """
    recipe.add_server_output_filter(LiflFilter(), tasks=list(tasks))
    recipe.add_client_input_filter(LiflFilter(identity), tasks=list(tasks))
    recipe.add_client_output_filter(LiflFilter(identity), tasks=list(tasks))


def _ordered(layout: Layout, tensors: dict[str, Array]) -> Layout:
    """Return a layout in the order of `tensors`, so far as they are in it: the order of names says nothing."""
    places = {name: place for place, name in enumerate(tensors)}
    return Layout(sorted(layout.tensors, key=lambda tensor: places.get(tensor.name, len(places))))


def _dxo_of(shareable: Shareable) -> DXO | None:
    """Return the params that a message carries, if it does."""
    try:
        dxo = from_shareable(shareable)
    except ValueError:
        return None
    has_params = dxo.data_kind in (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF) and isinstance(dxo.data, dict) and dxo.data
    return dxo if has_params else None


def _with(shareable: Shareable, dxo: DXO | None, data: Any) -> Shareable:
    """Return the message with other data."""
    assert dxo is not None
    changed: Shareable = DXO(dxo.data_kind, data=data, meta=dxo.meta).update_shareable(shareable)
    return changed
