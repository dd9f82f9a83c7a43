"What routes share: from what a thread has found to the bytes of an answer, and what is noted of it"
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from fashion_serve.engine import Engine
from fashion_serve.record import Picture, Record
from fashion_serve.work import Answer


class NDJSON(StreamingResponse):
    "Lines of JSON, and what is to be given back when they have been sent, or will never be"
    media_type = 'application/x-ndjson'
    def __init__(self, lines: AsyncIterator[bytes], status_code: int = 200, at_end: Callable[[], Any] = lambda: None): # FastAPI reads the status here
        super().__init__(lines, status_code)
        self.at_end = at_end

    async def __call__(self, scope, receive, send):
        try: await super().__call__(scope, receive, send)
        finally: self.at_end() # not in the lines: they are not begun for a client that has left


def ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def gone(request: Request) -> Callable[[], bool]:
    "Tells, from any thread, whether the client has left; never, where another server's connections do not say it"
    connection = request.scope.get('connection')
    return lambda: connection is not None and connection.disconnected


def pixels_of(data: bytes, engine: Engine) -> int:
    "What the picture file says it has; raises `ImageError`"
    found = engine.pixels(data)
    if isinstance(found, Exception): raise found
    return found


def answered(answer: Answer) -> dict:
    "The part of a prediction that says what the picture shows (schemas.PredictionOut)"
    return dict(model=answer.model.name, version=answer.model.version, predictions=[score._asdict() for score in answer.value.top])


def timing_of(answer: Answer) -> dict:
    spent = answer.value.timing_ms
    return dict(queue=ms(answer.waited), decode=round(spent.decode, 3), infer=round(spent.infer, 3))


def note(record: Record, size: int, answer: Answer):
    "What the log and the metrics want to know of an answer"
    best, spent = answer.value.top[0], answer.value.timing_ms
    for stage, seconds in (('queue', answer.waited), ('decode', spent.decode / 1000), ('infer', spent.infer / 1000)): record.add(stage, seconds)
    record.pictures.append(Picture(answer.model.name, answer.model.version, best.label, best.probability, size))


def note_tensor(record: Record, answer: Answer):
    "The same of an answer to a tensor, which had no file"
    record.add('queue', answer.waited)
    i, chances = answer.model.predictor.info, answer.model.predictor.calibrated(answer.value)
    record.pictures += [Picture(answer.model.name, i.version, i.labels[best].key, float(row[best]), 0) for row in chances for best in [row.argmax()]]


def as_json(body: dict, record: Record) -> Response:
    begun = time.perf_counter()
    answer = Response(msgspec.json.encode(body), media_type='application/json')
    record.add('encode', time.perf_counter() - begun)
    return answer
