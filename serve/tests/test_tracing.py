"Spans of requests, as a collector gets them"
import pytest

from fashion_serve.main import create_app
from fashion_serve.tracing import Traces

memory = pytest.importorskip('opentelemetry.sdk.trace.export.in_memory_span_exporter', reason='OpenTelemetry is not installed')


def test_a_request_and_its_stages(client, samples):
    exporter = memory.InMemorySpanExporter()
    before, client.app.state.traces = client.app.state.traces, Traces('', exporter)
    try:
        client.post('/v1/predict', content=samples['bag'], headers={'traceparent': '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', 'X-Request-Id': 'mine'})
        client.app.state.traces.close()
    finally: client.app.state.traces = before
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {'POST /v1/predict', 'read', 'admit', 'queue', 'decode', 'infer', 'encode'}
    whole = spans['POST /v1/predict']
    assert f'{whole.context.trace_id:032x}' == '0af7651916cd43dd8448eb211c80319c' and f'{whole.parent.span_id:016x}' == 'b7ad6b7169203331'
    assert whole.attributes['http.route'] == '/v1/predict' and whole.attributes['http.response.status_code'] == 200 and whole.attributes['request.id'] == 'mine'
    for name, span in spans.items():
        if span is not whole: assert span.parent.span_id == whole.context.span_id and whole.start_time <= span.start_time <= span.end_time <= whole.end_time, name


def test_off_by_default(settings):
    assert not create_app(settings).state.traces.on
