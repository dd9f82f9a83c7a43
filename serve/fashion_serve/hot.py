"The way of what is asked a thousand times a second: one picture, without the framework's routing and dependencies"
from functools import lru_cache
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from fashion_serve.errors import HANDLERS, answer_to
from fashion_serve.routes import predict, v1
from fashion_serve.schemas import PredictQuery

ROUTE = next(route for route in v1.routes if route.name == 'predict')
LONGEST = 200 # bytes of a query that is worth remembering


@lru_cache(1024)
def usual(query: bytes) -> PredictQuery | None:
    "The parameters, if they are as they should be"
    try: return PredictQuery(**dict(parse_qsl(query.decode('ascii'), keep_blank_values=True, strict_parsing=bool(query))))
    except (ValidationError, ValueError, TypeError): return None


class HotPath:
    "Calls the route's own function; whatever is unusual goes the ordinary way, where FastAPI says what is wrong"
    def __init__(self, app: ASGIApp): self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        hot = scope['type'] == 'http' and scope['path'] == ROUTE.path and scope['method'] == 'POST' and len(scope['query_string']) <= LONGEST
        if not hot or (query := usual(scope['query_string'])) is None: return await self.app(scope, receive, send)
        scope['route'], state, request = ROUTE, scope['app'].state, Request(scope, receive)
        try:
            state.keeper.admit(request)
            answer = await predict(request, state.engine, query)
        except tuple(HANDLERS) as e: answer = answer_to(request, e)
        await answer(scope, receive, send)
