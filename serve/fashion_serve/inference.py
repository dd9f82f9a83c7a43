"The Open Inference Protocol (V2, REST) with its binary and classification extensions, so that existing clients work unchanged"
import math
import struct
import time
from itertools import chain
from typing import Annotated

import msgspec
import numpy as np
from fastapi import APIRouter, Depends, Path, Request, Response

from fashion_nbdev import __version__
from fashion_serve import tensors as t
from fashion_serve.answers import gone, note_tensor
from fashion_serve.engine import Engine
from fashion_serve.errors import Problem
from fashion_serve.keys import known
from fashion_serve.models import Model
from fashion_serve.openapi import TENSOR_BODY, problems
from fashion_serve.routes import EngineDep
from fashion_serve.upload import read_body
from fashion_serve.work import Infer

HEADER = 'inference-header-content-length' # where the JSON of a binary body ends

v2 = APIRouter(prefix='/v2', tags=['Open Inference Protocol'])
Name = Annotated[str, Path(description='name of a model in /v1/models')]


def _version(request: Request) -> str | None: return request.path_params.get('version') # of the paths that have one


Version = Annotated[str | None, Depends(_version)]


def _wrong(detail: str) -> Problem: return Problem('bad_tensor', detail)


def parse(body: bytes, header: str | None) -> tuple[t.InferRequest, bytes]:
    "The JSON of a request, and the bytes behind it; raises `Problem`"
    size = len(body)
    if header is not None:
        if not (header.isascii() and header.isdigit() and len(header) <= 12 and int(header) <= size): raise _wrong(f'Inference-Header-Content-Length must be a number from 0 to {size}, the length of the body')
        size = int(header)
    if size > t.MAX_JSON: raise Problem('too_large', f'the JSON of a request may have {t.MAX_JSON:,} bytes, but has {size:,}: send the pictures as binary data behind it')
    try: return msgspec.json.decode(body[:size], type=t.InferRequest), body[size:]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e: raise _wrong(f'the request is not as the protocol has it: {e}') from None


def tensor(request: t.InferRequest, tail: bytes, model: Model) -> np.ndarray: # uint8 [n, height, width, channels]
    "The images of a request; raises `Problem`"
    i = model.predictor.info
    if len(request.inputs) != 1 or request.inputs[0].name != 'image': raise _wrong('there must be one input, image')
    given = request.inputs[0]
    if given.datatype != 'UINT8' or len(given.shape) != 4 or given.shape[1:] != [i.height, i.width, i.channels] or not 1 <= given.shape[0] <= t.MAX_IMAGES:
        raise _wrong(f'input image is {given.datatype[:20]} {given.shape[:9]}, but must be UINT8 [1 to {t.MAX_IMAGES}, {i.height}, {i.width}, {i.channels}]')
    values = _binary(given, tail) if 'binary_data_size' in given.parameters else _listed(given, tail)
    if len(values) != (size := math.prod(given.shape)): raise _wrong(f'input image has {len(values):,} values, but its shape asks for {size:,}')
    return np.frombuffer(values if isinstance(values, bytes) else _in_bytes(values), np.uint8).reshape(given.shape)


def _binary(given: t.InferInput, tail: bytes) -> bytes:
    if given.parameters['binary_data_size'] != len(tail) or given.data is not None: raise _wrong(f'binary_data_size must be the {len(tail):,} bytes behind the JSON, and data not be given')
    return tail


def _listed(given: t.InferInput, tail: bytes) -> list:
    "What the JSON holds, as a flat list"
    if given.data is None or tail: raise _wrong('input image needs data, or bytes behind the JSON and their binary_data_size')
    values = given.data
    for _ in given.shape[1:]: # it may be nested as the shape is
        if not any(isinstance(row, list) for row in values): break
        if not all(isinstance(row, list) and len(row) == len(values[0]) for row in values): raise _wrong('data of input image is not of one shape')
        values = list(chain.from_iterable(values))
    return values


def _in_bytes(values: list) -> bytes:
    try:
        if {*map(type, values)} == {int}: return bytes(values)
    except ValueError: pass
    raise _wrong('data of input image must be whole numbers from 0 to 255')


def _checked_outputs(request: t.InferRequest) -> list[t.InferRequestedOutput]:
    for output in request.outputs:
        if output.name not in t.OUTPUTS: raise _wrong(f'there is no output {output.name[:40]!r}: choose from {", ".join(t.OUTPUTS)}')
        k = output.parameters.get('classification', 0)
        if type(k) is not int or k < 0: raise _wrong(f'classification of output {output.name} must be a whole number of classes')
    if len({output.name for output in request.outputs}) < len(request.outputs): raise _wrong('an output is asked for more than once')
    return request.outputs or [t.InferRequestedOutput(name=name) for name in t.OUTPUTS]


def _output(output: t.InferRequestedOutput, model: Model, logits: np.ndarray, everything_binary: bool) -> tuple[dict, bytes]:
    "An output's JSON, and its bytes if it was asked for in binary"
    values = logits if output.name == 'logits' else model.predictor.calibrated(logits).astype(np.float32)
    kind, shape, k = 'FP32', list(values.shape), output.parameters.get('classification', 0)
    if k:
        kind, texts = 'BYTES', _classified(values, model, k)
        shape = [len(texts), len(texts[0])]
    head = dict(name=output.name, datatype=kind, shape=shape)
    if not output.parameters.get('binary_data', everything_binary):
        return head | dict(data=[text for row in texts for text in row] if k else values.ravel().tolist()), b''
    tail = b''.join(struct.pack('<I', len(raw)) + raw for row in texts for text in row for raw in [text.encode()]) if k else values.tobytes()
    return head | dict(parameters=dict(binary_data_size=len(tail))), tail


def _classified(values: np.ndarray, model: Model, k: int) -> list[list[str]]:
    "The k highest of each row as 'value:index:label'"
    labels = model.predictor.info.labels
    return [[f'{row[i]:.6f}:{i}:{labels[i].key}' for i in np.argsort(-row, kind='stable')[:k]] for row in values]


def answer(request: t.InferRequest, outputs: list[t.InferRequestedOutput], model: Model, logits: np.ndarray) -> Response:
    "The response, binary if any output was asked for so"
    made = [_output(o, model, logits, bool(request.parameters.get('binary_data_output'))) for o in outputs]
    head = dict(model_name=model.name, model_version=model.version, outputs=[json for json, _ in made]) | (dict(id=request.id) if request.id else {})
    body, tail = msgspec.json.encode(head), b''.join(raw for _, raw in made)
    if not tail: return Response(body, media_type='application/json')
    return Response(body + tail, media_type='application/octet-stream', headers={HEADER: str(len(body))})


def _model(engine: Engine, name: str, version: str | None) -> Model:
    engine.check_ready()
    model = engine.registry.get(name)
    if version not in (None, model.predictor.info.version): raise Problem('unknown_model', f'{name} has no version {version[:40]!r}: it is {model.version}')
    return model


@v2.get('', summary='The server')
async def server() -> t.ServerOut:
    "Name, version and extensions."
    return t.ServerOut(name='fashion_nbdev', version=__version__, extensions=['binary_tensor_data', 'classification'])


@v2.get('/health/live', summary='Is the process alive?')
async def live() -> t.LiveOut:
    "As /livez."
    return t.LiveOut(live=True)


@v2.get('/health/ready', summary='Would a tensor be answered?', responses=problems('not_ready'))
async def ready(engine: EngineDep) -> t.ReadyOut:
    "As /readyz."
    engine.check_lasting()
    return t.ReadyOut(ready=True)


@v2.get('/models/{name}', summary='Inputs and outputs of a model', responses=problems('not_ready', 'unknown_model'))
@v2.get('/models/{name}/versions/{version}', include_in_schema=False)
async def metadata(engine: EngineDep, name: Name, version: Version = None) -> t.MetadataOut:
    "One input, image; logits and calibrated probabilities as outputs."
    model = _model(engine, name, version)
    i = model.predictor.info
    image = t.TensorOut(name='image', datatype='UINT8', shape=[-1, i.height, i.width, i.channels])
    outputs = [t.TensorOut(name=output, datatype='FP32', shape=[-1, len(i.labels)]) for output in t.OUTPUTS]
    return t.MetadataOut(name=name, versions=[i.version], platform='openvino' if model.predictor.provider == 'openvino' else 'onnxruntime_onnx', inputs=[image], outputs=outputs)


@v2.get('/models/{name}/ready', summary='Would this model answer?', responses=problems('not_ready', 'unknown_model'))
@v2.get('/models/{name}/versions/{version}/ready', include_in_schema=False)
async def model_ready(engine: EngineDep, name: Name, version: Version = None) -> t.ModelReadyOut:
    "Whether it is loaded, and the service not about to stop."
    engine.check_lasting()
    return t.ModelReadyOut(name=_model(engine, name, version).name, ready=True)


@v2.post('/models/{name}/infer', summary='Logits of images of the size of the model', openapi_extra=TENSOR_BODY, response_model=t.InferAnswer, responses=problems(
    'not_ready', 'unknown_model', 'bad_tensor', 'too_large', 'incomplete_body', 'bad_length', 'unsupported_format', 'overloaded', 'no_key', 'rate_limited'), dependencies=[Depends(known)])
@v2.post('/models/{name}/versions/{version}/infer', include_in_schema=False, dependencies=[Depends(known)])
async def infer(request: Request, engine: EngineDep, name: Name, version: Version = None) -> Response:
    "Logits, probabilities or the classes ranked first, for tensors in JSON or binary."
    record, model = request.state.record, _model(engine, name, version)
    engine.check_room()
    with engine.budget.hold() as hold:
        body = await read_body(request, engine.settings.max_bytes, engine.settings.read_timeout, hold)
        record.add('read', time.perf_counter() - record.begun)
        asked, tail = parse(body, request.headers.get(HEADER))
        outputs, images = _checked_outputs(asked), tensor(asked, tail, model)
        with request.app.state.keeper.charge(request, len(images)): coming = engine.submit(Infer(model), images, images.size // images.shape[-1], gone(request))
        found = await coming
    note_tensor(record, found)
    return answer(asked, outputs, model, found.value)
