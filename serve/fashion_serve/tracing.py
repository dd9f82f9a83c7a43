"OpenTelemetry: a span for each request and one for each of its stages, made when it has ended; off unless an address is set"
import time
from threading import Thread
from typing import Any

from fashion_nbdev import __version__
from fashion_nbdev.core import ConfigError
from fashion_serve.record import STAGES, Record

PATIENCE = 1.5 # seconds that a collector has for what is left when the service ends


class Traces:
    "Sends finished requests to an OTLP collector such as http://127.0.0.1:4318/v1/traces; raises `ConfigError` if OpenTelemetry is not installed"
    def __init__(self, endpoint: str, exporter: Any = None):
        self.on = bool(endpoint or exporter)
        if not self.on: return
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
                exporter = OTLPSpanExporter(endpoint)
        except ImportError:
            raise ConfigError('FASHION_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: pip install "fashion_nbdev[trace]"') from None
        self.api, self.incoming = trace, TraceContextTextMapPropagator()
        self.provider = TracerProvider(resource=Resource({'service.name': 'fashion_serve', 'service.version': __version__}), shutdown_on_exit=False) # which would wait for the collector
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self.provider.get_tracer('fashion_serve')

    def send(self, record: Record):
        "One request; its stages lie one after the other from its beginning, as they did"
        if not self.on: return
        end = time.time_ns()
        at = begun = end - int(record.seconds * 1e9)
        parent = self.incoming.extract({'traceparent': record.traceparent}) if record.traceparent else None
        span = self.tracer.start_span(f'{record.method} {record.route}', parent, self.api.SpanKind.SERVER, start_time=begun, attributes={
            'http.request.method': record.method, 'http.route': record.route, 'http.response.status_code': record.status, 'request.id': record.request_id})
        within = self.api.set_span_in_context(span)
        for stage in (stage for stage in STAGES if stage in record.stages):
            step = self.tracer.start_span(stage, within, start_time=at)
            at = min(at + int(record.stages[stage] * 1e9), end) # a thread may begin while the event loop still notes what it took on
            step.end(at)
        if record.status >= 500: span.set_status(self.api.StatusCode.ERROR, record.code)
        span.end(end)

    def close(self):
        "Send what has not been sent; a collector that is not quick about it goes without"
        if not self.on: return
        last = Thread(target=self.provider.shutdown, name='traces', daemon=True) # waits for the collector much longer
        last.start()
        last.join(PATIENCE)
