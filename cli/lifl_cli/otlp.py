"""A round's spans for OpenTelemetry, by OTLP over HTTP; the library is imported here and only when it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lifl.core.coordinator.spans import Span
from lifl.core.errors import Refused, RemoteFault, ResourceFault

TIMEOUT_S = 10


def send(url: str, job: str, line: Mapping[str, Any], spans: Sequence[Span]) -> int:
    """Send the spans of a round to a collector, the first above the others; return how many.  Raise `LiflError`."""
    ended_s = line["committed_unix_s"]
    if ended_s is None:
        text = "only a committed round has a time of day, which a span of OpenTelemetry needs; give -o FILE"
        raise Refused("no-times", "round", text)
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SpanExportResult
    except ImportError as error:
        text = "spans take the libraries of OpenTelemetry, which are not installed: pip install 'lifl[otlp]'"
        raise ResourceFault(text) from error
    opened_s = ended_s - line["receipt"]["timeline"]["ended_s"]
    resource = Resource.create({"service.name": "lifl", "lifl.job": job, "lifl.round": line["round"]})
    tracer = TracerProvider(resource=resource).get_tracer("lifl")

    def ns(at_s: float) -> int:
        return int((opened_s + at_s) * 1e9)

    made: list[Any] = []
    for span in spans:
        context = trace.set_span_in_context(made[0]) if made else None
        facts = {name: value for name, value in span.facts.items() if isinstance(value, str | int | float)}
        facts |= {"lifl.group": span.group, "lifl.row": span.row}
        begun = tracer.start_span(span.name, context, start_time=ns(span.begin_s), attributes=facts)
        begun.end(ns(span.end_s))
        made.append(begun)
    try:
        told = OTLPSpanExporter(endpoint=url, timeout=TIMEOUT_S).export(made)
    except Exception as error:
        raise RemoteFault(f"no spans can be sent to {url}: {error}") from error
    if told is not SpanExportResult.SUCCESS:
        text = f"{url} did not take the spans: is a collector of OpenTelemetry there, and its path /v1/traces?"
        raise RemoteFault(text)
    return len(made)
