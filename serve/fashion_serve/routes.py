"The HTTP interface: each route validates and delegates"
import asyncio
import time
from pathlib import Path
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from fashion_serve import schemas as s
from fashion_serve.admission import Lane
from fashion_serve.answers import NDJSON, answered, as_json, gone, ms, note, pixels_of, timing_of
from fashion_serve.engine import Engine
from fashion_serve.errors import PROBLEMS, Problem, problem_of
from fashion_serve.keys import known
from fashion_serve.metrics import count_problem, exposition
from fashion_serve.models import Model
from fashion_serve.openapi import BATCH_BODY, PICTURE_BODY, problems
from fashion_serve.upload import read_picture, read_pictures
from fashion_serve.work import Classify

PAGE = Path(__file__).parent / 'page'


async def get_engine(request: Request) -> Engine:
    "The engine that the app was made with; async, or FastAPI would ask a thread for it"
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


_PICTURE = 'unsupported_format', 'too_many_pixels', 'side_too_long', 'too_many_scans', 'corrupt', 'bad_image' # what a picture can be
_UPLOAD = 'empty', 'bad_multipart', 'missing_file', 'incomplete_body', 'bad_length', 'unknown_model', 'too_large', 'invalid_parameter', 'overloaded', 'no_key', 'rate_limited'


def asked(query: s.PredictQuery, engine: Engine, one: bool) -> Classify:
    "Which model is asked, and for what; a candidate only for `one` picture. Raises `Problem`"
    engine.check_ready()
    model = (engine.registry.pick if one else engine.registry.get)(query.model)
    n = len(model.predictor.info.labels)
    if (top_k := query.top_k or min(3, n)) > n: raise Problem('invalid_parameter', f'top_k is {top_k}, but {model.name} has {n} labels: give 1 to {n}')
    return Classify(model, top_k, query.lang)


@v1.post('/predict', summary='Categorise one picture', openapi_extra=PICTURE_BODY, tags=['predict'], response_model=s.PredictionOut, responses=problems(*_UPLOAD, *_PICTURE), dependencies=[Depends(known)])
async def predict(request: Request, engine: EngineDep, query: Annotated[s.PredictQuery, Query()]) -> Response:
    "The most likely labels of the picture sent, as the raw body or as the field `file` of a multipart form."
    record, kind = request.state.record, asked(query, engine, one=True)
    with engine.budget.hold() as hold:
        data = await read_picture(request, engine.settings.max_bytes, engine.settings.read_timeout, hold)
        record.add('read', time.perf_counter() - record.begun)
        begun = time.perf_counter()
        pixels, left = pixels_of(data, engine), gone(request)
        coming = engine.submit(kind, data, pixels, left)
        record.add('admit', time.perf_counter() - begun)
        answer = await engine.tried(coming, kind, data, pixels, left)
    note(record, len(data), answer)
    timing = dict(read=ms(record.stages['read']), **timing_of(answer), total=ms(time.perf_counter() - record.begun))
    return as_json(dict(request_id=record.request_id, **answered(answer), timing_ms=timing), record)


@v1.post('/predict/batch', summary='Categorise several pictures', openapi_extra=BATCH_BODY, tags=['predict'], response_class=NDJSON, responses=problems(*_UPLOAD, 'unsupported_format'), dependencies=[Depends(known)])
async def predict_batch(request: Request, engine: EngineDep, query: Annotated[s.PredictQuery, Query()]) -> Response:
    "A line of JSON for each picture, in order, as soon as it is known (see BatchLine); a bad picture costs the others nothing. All are refused together where they are more than the service, or the key's rate, has room for."
    record, kind, limits = request.state.record, asked(query, engine, one=False), engine.settings
    engine.check_room(Lane.BATCH)
    hold = engine.budget.hold()
    try:
        files = await read_pictures(request, limits.max_batch_bytes, limits.max_batch, limits.read_timeout, hold)
        record.add('read', time.perf_counter() - record.begun)
        with request.app.state.keeper.charge(request, len(files)): found = engine.submit_all(kind, files, gone(request))
    except BaseException:
        hold.give_back()
        raise
    async def lines():
        for i, (data, coming) in enumerate(zip(files, found)):
            try: answer = await coming
            except Exception as e:
                line = dict(problem=problem_of(e, record.request_id))
                count_problem(line['problem']['code'])
            else:
                note(record, len(data), answer)
                line = dict(answered(answer), timing_ms=timing_of(answer))
            yield msgspec.json.encode(dict(index=i, **line)) + b'\n'
    return NDJSON(lines(), at_end=lambda: (found.end(), hold.give_back()))


@v1.get('/models', summary='The models there are', tags=['models'])
async def models(engine: EngineDep) -> s.ModelList:
    "Every model, the one that answers when none is named, and the largest picture taken."
    engine.check_ready()
    limits = engine.settings.limits
    return s.ModelList(
        default=engine.registry.default, models=[describe(model, engine.registry.default) for model in engine.registry.models.values()],
        limits=s.LimitsOut(max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, max_webp_pixels=limits.max_webp_pixels, max_side=limits.max_side))


@v1.get('/models/{name}', summary='One model', tags=['models'], responses=problems('unknown_model'))
async def model(name: str, engine: EngineDep) -> s.ModelOut:
    "What a model's file says about itself."
    engine.check_ready()
    return describe(engine.registry.get(name), engine.registry.default)


@rest.head('/livez', include_in_schema=False)
@rest.get('/livez', summary='Is the process alive?', tags=['health'])
async def livez() -> s.Status:
    "Answers as long as the process does."
    return s.Status(status='ok')


@rest.head('/readyz', include_in_schema=False)
@rest.get('/readyz', summary='Would a picture be answered?', tags=['health'], responses=problems('not_ready'))
async def readyz(engine: EngineDep) -> s.Status:
    "Ready once every model is loaded and warmed up."
    engine.check_lasting()
    return s.Status(status='ready')


@rest.get('/metrics', summary='What Prometheus reads', tags=['health'], response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    "Counters of all workers, in Prometheus' text format."
    return Response(await asyncio.to_thread(exposition, request.app.state.board.processes), media_type=CONTENT_TYPE_LATEST)


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
