"The HTTP interface: each route validates and delegates"
import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from fashion_serve import schemas as s
from fashion_serve.engine import Answer, Engine
from fashion_serve.errors import PROBLEMS, Problem
from fashion_serve.metrics import exposition
from fashion_serve.models import Model
from fashion_serve.openapi import PICTURE_BODY, problems
from fashion_serve.record import Record
from fashion_serve.upload import read_picture

PAGE = Path(__file__).parent / 'page'


def get_engine(request: Request) -> Engine:
    "The engine that the app was made with"
    return request.app.state.engine


EngineDep = Annotated[Engine, Depends(get_engine)]
v1 = APIRouter(prefix='/v1', responses=problems('not_ready'))
rest = APIRouter()


def describe(model: Model, default: str) -> s.ModelOut:
    "What `/v1/models` says about a model"
    info = model.predictor.info
    labels = [s.LabelOut(**label._asdict()) for label in info.labels]
    return s.ModelOut(
        name=model.name, version=info.version, default=model.name == default, height=info.height, width=info.width,
        channels=info.channels, resize=info.resize, labels=labels, metrics=info.metrics, data_hash=info.data_hash,
        created=info.created, licences=info.licences, provider=model.predictor.provider)


@v1.post('/predict', summary='Categorise one picture', openapi_extra=PICTURE_BODY, response_model=s.PredictionOut, tags=['predict'], responses=problems(
    'empty', 'bad_multipart', 'missing_file', 'incomplete_body', 'bad_length', 'unknown_model', 'too_large',
    'unsupported_format', 'too_many_pixels', 'side_too_long', 'too_many_scans', 'corrupt', 'bad_image', 'invalid_parameter', 'overloaded'))
async def predict(request: Request, engine: EngineDep, query: Annotated[s.PredictQuery, Query()]) -> Response:
    "The most likely labels of the picture sent, as the raw body or as the field `file` of a multipart form."
    record: Record = request.state.record
    model = engine.get(query.model)
    n = len(model.predictor.info.labels)
    if query.top_k > n:
        raise Problem('invalid_parameter', f'top_k is {query.top_k}, but {model.name} has {n} labels: give 1 to {n}')
    data = await read_picture(request, engine.settings.max_bytes, engine.settings.read_timeout)
    record.add('read', time.perf_counter() - record.begun)
    answer = await engine.predict(model, data, query.top_k, query.lang, record, _gone(request))
    return _json(encode_answer(record, model, answer), record)


def encode_answer(record: Record, model: Model, answer: Answer) -> dict:
    "A prediction as the contract has it (schemas.PredictionOut)"
    spent, top = answer.prediction.timing_ms, answer.prediction.top
    timing = dict(read=_ms(record.stages['read']), queue=_ms(answer.waited), decode=round(spent.decode, 3), infer=round(spent.infer, 3),
                  total=_ms(time.perf_counter() - record.begun))
    return dict(request_id=record.request_id, model=model.name, version=model.predictor.info.version,
                predictions=[score._asdict() for score in top], timing_ms=timing)


def _json(body: dict, record: Record) -> Response:
    begun = time.perf_counter()
    answer = Response(msgspec.json.encode(body), media_type='application/json')
    record.add('encode', time.perf_counter() - begun)
    return answer


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _gone(request: Request) -> Callable[[], bool]:
    "Tells, from any thread, whether the client has left; never, where another server's connections do not say it"
    cycle = request.scope.get('connection')
    return lambda: cycle is not None and cycle.disconnected


@v1.get('/models', summary='The models there are', tags=['models'])
async def models(engine: EngineDep) -> s.ModelList:
    "Every model, the one that answers when none is named, and the largest picture taken."
    engine.check_ready()
    limits = engine.settings.limits
    return s.ModelList(
        default=engine.default, models=[describe(model, engine.default) for model in engine.models.values()],
        limits=s.LimitsOut(max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, max_side=limits.max_side))


@v1.get('/models/{name}', summary='One model', tags=['models'], responses=problems('unknown_model'))
async def model(name: str, engine: EngineDep) -> s.ModelOut:
    "What a model's file says about itself."
    return describe(engine.get(name), engine.default)


@rest.head('/livez', include_in_schema=False)
@rest.get('/livez', summary='Is the process alive?', tags=['health'])
async def livez() -> s.Status:
    "Answers as long as the process does."
    return s.Status(status='ok')


@rest.head('/readyz', include_in_schema=False)
@rest.get('/readyz', summary='Would a picture be answered?', tags=['health'], responses=problems('not_ready'))
async def readyz(engine: EngineDep) -> s.Status:
    "Ready once every model is loaded and warmed up."
    engine.check_ready()
    if engine.draining: raise Problem('not_ready', 'the service is stopping')
    return s.Status(status='ready')


@rest.get('/metrics', summary='What Prometheus reads', tags=['health'], response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    "Counters of all workers, in Prometheus' text format."
    return Response(await asyncio.to_thread(exposition, request.app.state.pids), media_type=CONTENT_TYPE_LATEST)


@rest.get('/problems', summary='Every kind of problem', tags=['problems'])
async def problem_kinds() -> list[s.ProblemKind]:
    "The codes that errors carry, with their status and title."
    return [s.ProblemKind(code=code, **kind._asdict()) for code, kind in PROBLEMS.items()]


@rest.get('/problems/{code}', summary='One kind of problem', tags=['problems'], responses=problems('not_found'))
async def problem_kind(code: str) -> s.ProblemKind:
    "What a problem's `type` points to."
    if code not in PROBLEMS: raise Problem('not_found', f'there is no problem {code[:40]!r}: /problems lists all')
    return s.ProblemKind(code=code, **PROBLEMS[code]._asdict())


@rest.api_route('/', methods=['GET', 'HEAD'], include_in_schema=False)
async def page() -> FileResponse:
    "The page."
    return FileResponse(PAGE / 'index.html')
