"What a connection may do: raw sockets against a real process, which waits one second and no longer"
import asyncio
import io
import json
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from PIL import Image
from uvicorn.config import Config
from uvicorn.server import ServerState

from fashion_nbdev.load import http_request, open_loop, pictures, summary
from fashion_serve.errors import Problem
from fashion_serve.protocol import PIPELINED, BoundedProtocol
from fashion_serve.settings import load_settings
from fashion_serve.worker import ServeConfig, Worker

HEAD = b'POST /v1/predict HTTP/1.1\r\nHost: shop\r\n'


@pytest.fixture(scope='module')
def address(started, models_dir):
    "Where a service with short patience listens"
    with started('--port', '0', '--models_dir', str(models_dir), FASHION_READ_TIMEOUT='1') as service:
        url = urlsplit(service.url)
        yield url.hostname, url.port


class Talk:
    "One connection: what is sent, and everything that comes back until it is closed"
    def __init__(self, address, *parts: bytes, pause: float = 0.0):
        self.begun = time.perf_counter()
        self.socket = socket.create_connection(address, timeout=20)
        try:
            for part in parts:
                self.socket.sendall(part)
                time.sleep(pause)
        except OSError: pass # closed on the other side

    def answer(self) -> tuple[int, dict, float]:
        "Status, body, and the seconds until the connection was closed; 0 and {} if nothing was answered"
        data = b''
        try:
            while chunk := self.socket.recv(65536): data += chunk
        except ConnectionResetError: pass
        seconds = time.perf_counter() - self.begun
        self.socket.close()
        if not data: return 0, {}, seconds
        head, _, body = data.partition(b'\r\n\r\n')
        assert b'application/problem+json' in head and b'connection: close' in head.lower(), head
        return int(head.split()[1]), json.loads(body), seconds


def test_ten_thousand_headers(address):
    status, problem, seconds = Talk(address, HEAD, *(b'X-%d: 1\r\n' % i for i in range(10_000)), b'\r\n').answer()
    assert (status, problem['code']) == (431, 'headers_too_large') and seconds < 2


@pytest.mark.parametrize('head', [HEAD + b'X: ' + b'a' * 40_000 + b'\r\n\r\n', b'GET /' + b'a' * 40_000 + b' HTTP/1.1\r\nHost: shop\r\n\r\n'], ids=['header', 'address'])
def test_long_ones(address, head):
    status, problem, _ = Talk(address, head).answer()
    assert (status, problem['code'], problem['status']) == (431, 'headers_too_large', 431)


@pytest.mark.parametrize('text', [b'\x16\x03\x01\x02\x00\x01\x00', b'HELLO\r\n\r\n', b'GET / HTTP/9.9\r\n\r\n', HEAD + b'Content-Length: 3\r\nContent-Length: 4\r\n\r\n',
                                  HEAD + b'Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n', HEAD + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n', HEAD + b'no colon\r\n\r\n'])
def test_what_is_not_http(address, text):
    status, problem, seconds = Talk(address, text).answer()
    assert status == 400 and problem['code'] in ('bad_request', 'incomplete_body') and problem['request_id'] and seconds < 2


def test_nothing_said(address):
    status, _, seconds = Talk(address).answer()
    assert status == 0 and .8 < seconds < 3


def test_slow_headers(address):
    status, problem, seconds = Talk(address, *(HEAD[i:i + 1] for i in range(len(HEAD))), pause=.1).answer()
    assert (status, problem['code']) == (408, 'slow_request') and seconds < 6


@pytest.mark.parametrize('length', [b'Content-Length: 100\r\n', b'Transfer-Encoding: chunked\r\n'])
def test_slow_body(address, length):
    part = b'a' if length.startswith(b'C') else b'1\r\na\r\n'
    status, problem, seconds = Talk(address, HEAD + length + b'\r\n', *[part] * 30, pause=.1).answer()
    assert (status, problem['code']) == (400, 'incomplete_body') and seconds < 6


def test_a_body_that_nobody_asked_for(address):
    "Answered at once, but still dripping: the connection does not stay"
    talk = Talk(address, b'GET /livez HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000\r\n\r\n')
    def drip():
        try:
            for _ in range(100):
                talk.socket.sendall(b'a')
                time.sleep(.1)
        except OSError: pass
    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    thread.join(8)
    assert not thread.is_alive(), 'the connection was still open after eight seconds'


def test_one_request_has_one_answer(address):
    "Also if what follows of its body is bad"
    talk = Talk(address, b'POST /nothing HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n')
    assert b'404' in (said := talk.socket.recv(65536))
    talk.socket.sendall(b'ZZZ\r\n')
    with suppress(ConnectionResetError):
        while more := talk.socket.recv(65536): said += more
    assert said.count(b'HTTP/1.1 ') == 1


@pytest.mark.parametrize('version', ['1.1', '1.0'])
@pytest.mark.parametrize('draining', [False, True])
def test_who_is_turned_away_is_not_kept_beyond_the_end(version, draining):
    said, closed = [], []
    transport = SimpleNamespace(write=said.append, is_closing=lambda: bool(closed), close=lambda: closed.append(True), abort=lambda: None, get_extra_info=lambda name, default=None: default)
    engine = SimpleNamespace(draining=draining, refusal=lambda: Problem('overloaded', 'busy', {'Retry-After': '1'}))
    config = Config('none', lifespan='off', ws='none', interface='asgi3')
    config.load_app = lambda: None
    config.settings, config.engine, config.waiting, config.tell, config.app = load_settings(), engine, {}, lambda: None, SimpleNamespace(state=SimpleNamespace(done=lambda record: None))
    config.loaded_app, config.ws_protocol_class, config.encoded_headers = None, None, []
    async def ask():
        (protocol := BoundedProtocol(config, ServerState(), {})).connection_made(transport)
        protocol.data_received(f'POST /v1/predict HTTP/{version}\r\nHost: shop\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na'.encode())
        ends = draining or version == '1.0'
        assert b' 429 ' in said[0] and (b'connection: close' in said[0]) == bool(closed) == ends
        protocol.connection_lost(None)
    asyncio.run(ask())


def test_the_second_request_of_a_connection_has_the_same_limits(address):
    first = b'GET /livez HTTP/1.1\r\nHost: shop\r\n\r\n'
    talk = Talk(address, first)
    assert b'200' in talk.socket.recv(65536)
    talk.socket.sendall(b'GET /livez HTTP/1.1\r\nHo')
    talk.begun = time.perf_counter()
    status, problem, seconds = talk.answer()
    assert (status, problem['code']) == (408, 'slow_request') and .8 < seconds < 3


def test_an_empty_line_does_not_keep_a_connection(address):
    talk = Talk(address, b'GET /livez HTTP/1.1\r\nHost: shop\r\n\r\n')
    data = b''
    while not data.endswith(b'}'): data += talk.socket.recv(65536)
    talk.socket.sendall(b'\r\n')
    talk.socket.settimeout(8)
    begun = time.perf_counter()
    assert talk.socket.recv(65536) == b'' and time.perf_counter() - begun < 6


def test_requests_ahead_of_their_answers(address):
    line = b'GET /livez HTTP/1.1\r\nHost: shop\r\n'
    connection = socket.create_connection(address, timeout=20)
    connection.sendall((line + b'\r\n') * 20 + line + b'Connection: close\r\n\r\n')
    data = b''
    while chunk := connection.recv(65536): data += chunk
    assert data.count(b'HTTP/1.1 200') == 21


def test_too_many_of_them_cost_the_connection(address):
    connection, data = socket.create_connection(address, timeout=20), b''
    connection.sendall(b'GET /livez HTTP/1.1\r\nHost: shop\r\n\r\n' * 500)
    with suppress(ConnectionResetError):
        while chunk := connection.recv(65536): data += chunk
    assert data.count(b'HTTP/1.1 200') <= PIPELINED + 1


@pytest.mark.parametrize('size', [10_000, 150_000])
def test_who_has_left_costs_no_inference(started, models_dir, png, size):
    slow = _white(6000, 4000)
    with started('--port', '0', '--models_dir', str(models_dir), '--workers', '1', FASHION_DEADLINE='30') as service:
        url = urlsplit(service.url)
        connect = lambda: socket.create_connection((url.hostname, url.port), timeout=20)
        busy = [connect() for _ in range(4)]
        for connection in busy: connection.sendall(HEAD + b'Content-Length: %d\r\n\r\n' % len(slow) + slow)
        time.sleep(.1)
        body = png().ljust(size, b'\0')
        for _ in range(5):
            leaving = connect()
            leaving.sendall(HEAD + b'Content-Length: %d\r\n\r\n' % size)
            time.sleep(.02)
            leaving.sendall(body)
            leaving.close()
        for connection in busy: assert connection.recv(15) == b'HTTP/1.1 200 OK'
        time.sleep(.5)
        metrics = urllib.request.urlopen(service.url + 'metrics', timeout=5).read().decode()
    assert 'fashion_shed_total{reason="left"} 5.0' in metrics, metrics


def _white(width: int, height: int) -> bytes:
    Image.new('L', (width, height), 255).save(out := io.BytesIO(), 'PNG')
    return out.getvalue()


OFFER = b'Connection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n'


@pytest.mark.parametrize('chunked', [False, True])
@pytest.mark.parametrize('pause', [0, .05])
def test_an_offer_of_another_protocol_is_passed_over(address, png, chunked, pause):
    picture = png()
    body = b'%x\r\n%s\r\n0\r\n\r\n' % (len(picture), picture) if chunked else picture
    length = b'Transfer-Encoding: chunked\r\n' if chunked else b'Content-Length: %d\r\n' % len(picture)
    half = len(body) // 2
    talk = Talk(address, HEAD, OFFER, length + b'\r\n', body[:half], body[half:], pause=pause)
    answer = b''.join(iter(lambda: talk.socket.recv(65536), b''))
    assert answer.startswith(b'HTTP/1.1 200') and answer.count(b'HTTP/1.1') == 1 and b'"label"' in answer


def test_a_body_behind_such_an_offer_is_no_request(address):
    hidden = b'POST /v1/models/fashion_mnist/reload HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n'
    for method in (b'POST /v1/predict', b'CONNECT shop:80'):
        talk = Talk(address, method + b' HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 1.2.3.4\r\n' + OFFER.replace(b'close, ', b'') + b'Content-Length: %d\r\n\r\n' % len(hidden), hidden, pause=.2)
        answer = talk.socket.recv(65536)
        assert answer.count(b'HTTP/1.1') == 1 and answer.startswith((b'HTTP/1.1 415', b'HTTP/1.1 400')), answer
        talk.socket.close()


def test_trailers_are_no_headers(address, samples):
    "What follows a chunked body cannot change what the request was"
    picture = samples['bag']
    body = b'%x\r\n' % len(picture) + picture + b'\r\n0\r\nContent-Type: multipart/form-data; boundary=cut\r\nX-Request-Id: forged\r\n\r\n'
    talk = Talk(address, b'POST /v1/predict?model=fashion_mnist HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n' + body)
    head, _, answer = b''.join(iter(lambda: talk.socket.recv(65536), b'')).partition(b'\r\n\r\n')
    assert head.startswith(b'HTTP/1.1 200') and b'forged' not in head and json.loads(answer)['predictions']


def _drip(slow: list[Talk], done: threading.Event):
    "A byte to each, again and again, until all is done"
    while not done.wait(.5):
        for talk in slow: talk.socket.sendall(b'a')


def test_slow_ones_do_not_disturb_others(started, turns):
    "200 headers and bodies that come byte by byte, beside predictions at a modest rate"
    with started('--port', '0', FASHION_READ_TIMEOUT='120', FASHION_DEADLINE='60', FASHION_LOG_SHARE='0') as service:
        url = urlsplit(service.url)
        requests = [http_request('/v1/predict?model=clothing', data) for data in pictures('clothing')]
        open_loop(service.url, requests, 10, 2) # what happens once is over
        slow, done = [Talk((url.hostname, url.port), HEAD + more) for more in (b'X: ', b'Content-Length: 5000\r\n\r\n') for _ in range(100)], threading.Event()
        with ThreadPoolExecutor(1) as pool:
            dripping = pool.submit(_drip, slow, done)
            try: found = summary(open_loop(service.url, requests, 20, turns(5, 30)))
            finally: done.set()
            dripping.result()
        assert not any(_is_closed(talk.socket) for talk in slow) # all of them were there
        for talk in slow: talk.socket.close()
    assert found['outcomes'] == {'200': found['n']} and found['p99_ms'] <= turns(1000, 200), found # on a machine that does nothing else 200 ms


def test_connections_that_say_nothing_make_room(serve, models_dir):
    "More than a process may open files for: those that have been silent longest are closed, and whoever asks is answered"
    service = serve('--port', '0', '--models_dir', str(models_dir), '--workers', '1', files=250)
    where = urlsplit(service.wait())
    address = where.hostname, where.port
    asking = Talk(address, HEAD) # has begun to ask, and is as silent as the others
    silent = [Talk(address) for _ in range(400)]
    for _ in range(20):
        status, seconds = _ask_livez(address)
        assert status == 200 and seconds < 1
    assert asking.socket.recv(100) == b'', 'the first was not closed'
    open_ = [talk for talk in silent if not _is_closed(talk.socket)]
    assert 50 < len(open_) < 200 and open_ == silent[-len(open_):], 'not the last ones were kept'


def _ask_livez(address) -> tuple[int, float]: # status, and seconds
    begun = time.perf_counter()
    with socket.create_connection(address, timeout=5) as one:
        one.sendall(b'GET /livez HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n')
        answer = b''.join(iter(lambda: one.recv(65536), b''))
    return int(answer.split()[1]), time.perf_counter() - begun


def _is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try: return sock.recv(1) == b''
    except BlockingIOError: return False
    except ConnectionResetError: return True


class Client:
    "A connection as far as making room for others looks at it"
    def __init__(self, waiting: dict, spoke: bool): self.waiting, self.spoke, self.gone = waiting, spoke, False
    def has_said_nothing(self): return not self.spoke
    def await_client(self): self.waiting[self] = self.waiting.pop(self)
    def give_way(self):
        self.waiting.pop(self)
        self.gone = True


def test_who_has_spoken_is_heard_before_others_are_let_in(tmp_path):
    "A request that has come and has only not been read yet is not lost"
    config = ServeConfig(load_settings(), tmp_path)
    clients = [Client(config.waiting, spoke) for spoke in (True, True, False, False)]
    config.waiting.update(dict.fromkeys(clients))
    worker = Worker(config)
    assert worker._make_room() and [c.gone for c in clients] == [False, False, True, False]
    assert list(config.waiting) == [clients[3], clients[0], clients[1]]
    assert worker._make_room() and clients[3].gone
    assert not worker._make_room() and not clients[0].gone
