"The outermost layer, pure ASGI: request ids, security headers, a record of each request, and nothing unforeseen gets out"
import random
import re
import time
from collections.abc import Callable

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fashion_serve.errors import log, respond
from fashion_serve.record import Record

REQUEST_ID = re.compile(r'[A-Za-z0-9._:-]{1,64}')
POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"))
SECURITY_HEADERS = tuple((k.encode(), v.encode()) for k, v in {
    'content-security-policy': POLICY,
    'x-content-type-options': 'nosniff',
    'x-frame-options': 'DENY',
    'referrer-policy': 'no-referrer',
    'cross-origin-opener-policy': 'same-origin',
    'cross-origin-resource-policy': 'same-origin',
    'permissions-policy': 'camera=(), geolocation=(), microphone=()',
}.items())


def request_id_of(headers: dict[bytes, bytes]) -> str:
    "The client's own id, if it is a plain one"
    asked = headers.get(b'x-request-id', b'').decode('latin-1')
    return asked if REQUEST_ID.fullmatch(asked) else f'{random.getrandbits(128):032x}' # to tell requests apart, not a secret


class Edge:
    "Gives each request an id (the client's own, if it is a plain one) and each answer its headers; hands on what is known of it when it has ended"
    def __init__(self, app: ASGIApp, done: Callable[[Record], None]):
        self.app, self.done = app, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope['type'] != 'http': return await self.app(scope, receive, send)
        headers = dict(scope['headers'])
        request_id = request_id_of(headers)
        record = Record(request_id, scope['method'], traceparent=headers.get(b'traceparent', b'').decode('latin-1'))
        scope.setdefault('state', {}).update(request_id=request_id, record=record)
        if b'range' in headers: scope['headers'] = [(k, v) for k, v in scope['headers'] if k != b'range'] # every answer is small, and comes whole
        caching = b'no-store' if scope['path'].startswith('/v1/') else b'no-cache'
        extra = [*SECURITY_HEADERS, (b'x-request-id', request_id.encode()), (b'cache-control', caching)]
        started = False

        async def send_out(message: Message):
            nonlocal started
            if message['type'] == 'http.response.start':
                started, record.status = True, message['status']
                message['headers'] = [*message.get('headers', ()), *extra]
            await send(message)

        try: await self.app(scope, receive, send_out)
        except Exception:
            log.exception('request %s failed', request_id)
            if started: raise
            answer = respond(Request(scope), 'internal_error', 'the mistake is ours and has been logged: please try again')
            await answer(scope, receive, send_out)
        finally:
            record.route, record.seconds = getattr(scope.get('route'), 'path', 'other'), time.perf_counter() - record.begun
            self.done(record)
