"HTTP connections that nobody holds for nothing: headers are bounded, everything has a time limit, refusals are problems"
import asyncio
import select
from http import HTTPStatus
from types import SimpleNamespace

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fashion_serve.errors import MEDIA_TYPE, PROBLEMS, problem_body
from fashion_serve.middleware import request_id_of
from fashion_serve.record import Record

PICTURES = b'/v1/predict'

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024 # of the address and all headers
PIPELINED = 32 # requests that a client may send ahead of their answers
LAST_MOMENT = .3 # seconds that an idle connection is kept when the service stops
OFFERS = {b'connection', b'upgrade', b'http2-settings'} # headers with which a client offers another protocol
GRACE = 1.0 # seconds after which a body that the app has given up on costs its connection


_ANSWERED = SimpleNamespace(response_complete=True, disconnected=False, message_event=SimpleNamespace(set=lambda: None)) # a request as far as the protocol looks at it


class Refused(Exception):
    "Ends parsing; the connection gets the problem `code` and is closed"
    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code, self.detail = code, detail


class BoundedProtocol(HttpToolsProtocol):
    "uvicorn's HTTP/1.1 with the limits that it leaves to a proxy; its `config` carries the settings of the service"
    def __init__(self, config, server_state, app_state, _loop=None):
        super().__init__(config, server_state, app_state, _loop)
        self.timeout = config.settings.read_timeout
        self.timers: dict[str, asyncio.TimerHandle] = {}
        self.refusal: Refused | None = None
        self.n_headers = self.header_bytes = 0
        self.in_body = False

    def _start(self, timer: str, seconds: float, call):
        self._stop(timer)
        self.timers[timer] = self.loop.call_later(seconds, call)

    def _stop(self, timer: str):
        if handle := self.timers.pop(timer, None): handle.cancel()

    def connection_made(self, transport):
        super().connection_made(transport)
        self.await_client()
        self.config.tell()
        self._start('headers', self.timeout, self._slow_headers)

    def connection_lost(self, exc):
        for timer in list(self.timers): self._stop(timer)
        super().connection_lost(exc)
        self.config.waiting.pop(self, None)
        self.config.tell()

    def _answering(self) -> bool: return self.cycle is not None and not self.cycle.response_complete

    def await_client(self):
        "It has waited for its client for no time at all"
        self.config.waiting.pop(self, None)
        self.config.waiting[self] = None # behind all others

    def has_said_nothing(self) -> bool:
        "Whether nothing of its client's has come that only has not been read yet"
        if self.transport.is_closing(): return True
        (look := select.poll()).register(self.transport.get_extra_info('socket').fileno(), select.POLLIN)
        return not look.poll(0)

    def give_way(self):
        "Others need the place of a connection whose client has nothing to say"
        self.config.waiting.pop(self)
        self.transport.abort() if self._answering() or self.transport.is_closing() else self._close()

    def _close(self):
        "Close; who does not read what is on its way to him has a while for it"
        self.transport.close()
        self._start('closing', self.timeout, self.transport.abort)

    def timeout_keep_alive_handler(self): self._close()

    def data_received(self, data: bytes):
        self._unset_keepalive_if_required()
        while data: data = self._feed(data)
        if self.timeout_keep_alive_task or self.timers or self._answering() or self.transport.is_closing(): return
        self.header_bytes = 0
        self._start('headers', self.timeout, self._slow_headers) # an empty line between requests, which begins none

    def _feed(self, data: bytes) -> bytes:
        "Parse; what is left begins with a request that offered another protocol, now without the offer: it is answered in this one"
        try: self.parser.feed_data(data)
        except httptools.HttpParserError: self.send_400_response('')
        except httptools.HttpParserUpgrade as e: return self._without_offer() + data[e.args[0]:]
        return b''

    def _without_offer(self) -> bytes:
        "The head of the request that was just parsed, for a parser that has not stopped at the offer"
        begin = b'%s %s HTTP/%s' % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        closing = [] if self.parser.should_keep_alive() else [b'connection: close']
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True) # as uvicorn's own
        return b'\r\n'.join([begin, *(b'%s: %s' % h for h in self.headers if h[0] not in OFFERS), *closing, b'', b''])

    def on_message_begin(self):
        super().on_message_begin()
        if not self._answering(): self.await_client()
        self.n_headers = self.header_bytes = 0
        self.in_body = False
        self._start('headers', self.timeout, self._slow_headers)

    def on_url(self, url: bytes):
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes):
        self.n_headers += 1
        self._count(len(name) + len(value) + 4) # with ': ' and the end of the line
        if not self.in_body: super().on_header(name, value) # what follows a chunked body is no header of the request

    def _count(self, size: int):
        self.header_bytes += size
        if self.n_headers <= MAX_HEADERS and self.header_bytes <= MAX_HEADER_BYTES: return
        self._end_parsing('headers_too_large', f'at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES:,} bytes with the address are taken')

    def _end_parsing(self, code: str, detail: str):
        self.refusal = Refused(code, detail)
        raise self.refusal

    def on_headers_complete(self):
        if self.parser.get_method() == b'CONNECT': self._end_parsing('bad_request', 'CONNECT asks for a proxy, which this is not')
        if self.parser.should_upgrade(): return # it begins again, see `_without_offer`
        if len(self.pipeline) >= PIPELINED: self._end_parsing('bad_request', f'at most {PIPELINED} requests may be sent ahead of their answers')
        self.in_body = True
        self._stop('headers')
        self._start('body', self.timeout + GRACE, self._slow_body)
        if self._turned_away(): return
        super().on_headers_complete()
        self.scope['connection'] = self.cycle # says whether the client has left
        if self.config.engine.draining: self.cycle.keep_alive = False # the client makes its next connection elsewhere

    def _turned_away(self) -> bool:
        "Where more is waiting than can be done in time, a picture is refused here, before it costs anything; its body is passed over"
        if self.url.partition(b'?')[0] != PICTURES or self.parser.get_method() != b'POST' or self._answering(): return False
        if not (problem := self.config.engine.refusal()): return False
        record = Record(request_id_of(dict(self.headers)), 'POST', PICTURES.decode(), PROBLEMS[problem.code].status, code=problem.code)
        self.cycle = _ANSWERED
        goes_on = self.parser.should_keep_alive() and self.parser.get_http_version() != '1.0' and not self.config.engine.draining
        headers = {**problem.headers, 'cache-control': 'no-store'} | ({} if goes_on else {'connection': 'close'})
        self.transport.write(_answer(problem.code, problem.detail, record.request_id, headers))
        self.on_response_complete() if goes_on else self._close()
        self.config.app.state.done(record)
        return True

    def on_message_complete(self):
        if self.parser.should_upgrade(): return
        self.in_body = False
        self._stop('body')
        if self._answering(): self.config.waiting.pop(self, None)
        super().on_message_complete()
        if not self.pipeline and not self.transport.is_closing(): self.flow.resume_reading() # only so is it noticed that the client leaves

    def on_response_complete(self):
        super().on_response_complete()
        if self.pipeline and not self.transport.is_closing(): self.flow.pause_reading() # enough has been read ahead
        if not self._answering() and not self.transport.is_closing(): self.await_client()

    def shutdown(self):
        "The service stops: a request that is on its way, on a connection that is idle as far as one can see, still has a moment to come"
        if not self._answering(): self._start('headers', LAST_MOMENT, self._close)
        else: super().shutdown()

    def pause_writing(self):
        super().pause_writing()
        self._start('answer', self.timeout, self.transport.abort) # nobody reads what was asked for

    def resume_writing(self):
        self._stop('answer')
        super().resume_writing()

    def _slow_headers(self):
        if self.header_bytes: self._refuse(Refused('slow_request', f'the headers had not all come after {self.timeout:g} seconds'))
        else: self._close()

    def _slow_body(self):
        self._close() if self.cycle.response_complete else self.transport.abort()

    def send_400_response(self, msg: str):
        self._refuse(self.refusal or Refused('bad_request', 'this is not a valid HTTP/1.1 request'))

    def _refuse(self, why: Refused):
        "Answer and close; just close where the answer to an earlier request of the connection is still to come"
        waiting = self._answering()
        if self.in_body and not waiting: return self._close() # this request has its answer
        if waiting and self.in_body and not self.cycle.response_started and not self.pipeline: # the app reads no further
            waiting, self.cycle.disconnected = False, True
            self.cycle.message_event.set()
        if not waiting:
            record = Record(request_id_of({}), 'unknown', status=PROBLEMS[why.code].status, code=why.code)
            self.transport.write(_answer(why.code, why.detail, record.request_id, {'connection': 'close'}))
            self.config.app.state.done(record)
        self._close()


def _answer(code: str, detail: str, request_id: str, headers: dict[str, str]) -> bytes:
    "A whole HTTP answer that carries a problem"
    problem = problem_body(code, detail, request_id)
    status, body = HTTPStatus(problem['status']), msgspec.json.encode(problem)
    head = {'content-type': MEDIA_TYPE, 'content-length': len(body), 'x-request-id': request_id, 'x-content-type-options': 'nosniff', **headers}
    lines = [f'HTTP/1.1 {status.value} {status.phrase}', *(f'{k}: {v}' for k, v in head.items()), '', '']
    return '\r\n'.join(lines).encode() + body
