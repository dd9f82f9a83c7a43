"Spans of requests, as a collector gets them"
import json
import os
import socket
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fashion_serve.main import create_app
from fashion_serve.tracing import PATIENCE, Traces

memory = pytest.importorskip('opentelemetry.sdk.trace.export.in_memory_span_exporter', reason='OpenTelemetry is not installed')
NAMES = {'POST /v1/predict', 'read', 'admit', 'queue', 'decode', 'infer', 'encode'}


def test_a_request_and_its_stages(client, samples):
    exporter = memory.InMemorySpanExporter()
    before, client.app.state.traces = client.app.state.traces, Traces('', exporter)
    try:
        client.post('/v1/predict', content=samples['bag'], headers={'traceparent': '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', 'X-Request-Id': 'mine'})
        client.app.state.traces.close()
    finally: client.app.state.traces = before
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == NAMES
    whole = spans['POST /v1/predict']
    assert f'{whole.context.trace_id:032x}' == '0af7651916cd43dd8448eb211c80319c' and f'{whole.parent.span_id:016x}' == 'b7ad6b7169203331'
    assert whole.attributes['http.route'] == '/v1/predict' and whole.attributes['http.response.status_code'] == 200 and whole.attributes['request.id'] == 'mine'
    for name, span in spans.items():
        if span is not whole: assert span.parent.span_id == whole.context.span_id and whole.start_time <= span.start_time <= span.end_time <= whole.end_time, name


def test_off_by_default(settings):
    assert not create_app(settings).state.traces.on


class Collector(ThreadingHTTPServer):
    "Takes spans by OTLP over HTTP, and keeps their names"
    def __init__(self):
        super().__init__(('127.0.0.1', 0), Receive)
        self.services, self.names = set(), []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str: return f'http://127.0.0.1:{self.server_port}/v1/traces'


class Receive(BaseHTTPRequestHandler):
    def do_POST(self):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers['Content-Length'])))
        for r in sent.resource_spans:
            self.server.services |= {a.value.string_value for a in r.resource.attributes if a.key == 'service.name'}
            self.server.names += [span.name for scope in r.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_): pass


@pytest.fixture
def collector():
    with Collector() as made:
        yield made
        made.shutdown()


@pytest.fixture
def refusing() -> str:
    "An address where nobody listens"
    with socket.create_server(('127.0.0.1', 0)) as free: return f'http://127.0.0.1:{free.getsockname()[1]}/v1/traces'


@pytest.fixture
def silent():
    "The address of one who listens and never answers"
    with socket.create_server(('127.0.0.1', 0)) as server: yield f'http://127.0.0.1:{server.getsockname()[1]}/v1/traces'


@pytest.fixture
def traced(serve, models_dir):
    "A maker of services that send their traces to an address, and take a process for stuck soon"
    def start(url: str):
        service = serve('--port', '0', '--models_dir', str(models_dir), '--workers', '1', '--default_model', 'fashion_mnist',
                        env=dict(os.environ, FASHION_OTLP_ENDPOINT=url, FASHION_HANG_TIMEOUT='1', FASHION_DEADLINE='30'))
        service.wait()
        return service
    return start


def ask(service, picture: bytes, n: int):
    for _ in range(n): assert urllib.request.urlopen(urllib.request.Request(service.url + 'v1/predict', picture), timeout=10).status == 200


def stop(service) -> float:
    "Seconds until it has ended as it should, with every request in its log"
    begun = time.monotonic()
    assert service.stop() == (0, '')
    return time.monotonic() - begun


def logged(service) -> int:
    service.reader.join(5)
    return sum(json.loads(line).get('route') == '/v1/predict' for line in service.lines)


def test_a_collector_gets_every_span(traced, collector, samples):
    service = traced(collector.url)
    ask(service, samples['bag'], 3)
    stop(service)
    assert collector.services == {'fashion_serve'} and {name: collector.names.count(name) for name in NAMES} == dict.fromkeys(NAMES, 3)


@pytest.mark.parametrize('kind', ['refusing', 'silent'])
def test_a_collector_that_is_away_delays_nothing(traced, samples, kind, request):
    "Neither the answers, of which more come than spans are kept, nor the end; one without traces, beside it, tells what an end takes"
    without, service = traced(''), traced(request.getfixturevalue(kind))
    ask(service, samples['bag'], 400)
    assert stop(service) < stop(without) + PATIENCE + 1
    assert logged(service) == 400
