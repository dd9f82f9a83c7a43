"What FastAPI cannot know for OpenAPI: picture bodies and problem answers"
import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from fashion_serve.errors import MEDIA_TYPE, PROBLEMS, problem_body
from fashion_serve.schemas import REQUEST_ID, BatchLine
from fashion_serve.tensors import EXAMPLE, MAX_JSON, InferRequest

REF = '#/components/schemas/{name}'
_BINARY = {'schema': {'type': 'string', 'format': 'binary'}}
_PICTURE = _BINARY | {'examples': {'dress': {'summary': 'A photograph of the page', 'externalValue': 'page/photographs/dress.jpg'}}}
_FORM = {'type': 'object', 'required': ['file'], 'properties': {'file': {'type': 'string', 'format': 'binary'}}}
PICTURE_BODY = {'requestBody': {
    'required': True,
    'description': 'One JPEG, PNG, WebP, GIF or BMP picture. Its content decides what it is, not the header.',
    'content': {'image/*': _PICTURE, 'application/octet-stream': _PICTURE, 'multipart/form-data': {'schema': _FORM}}}}
BATCH_BODY = {'requestBody': {
    'required': True,
    'description': 'Pictures, each in a field `file`.',
    'content': {'multipart/form-data': {'schema': {'type': 'object', 'required': ['file'], 'properties': {'file': {'type': 'array', 'items': _BINARY['schema']}}}}}}}
TENSOR_BODY = {'requestBody': {
    'required': True,
    'description': f'At most {MAX_JSON:,} bytes of JSON of the Open Inference Protocol, or with `Inference-Header-Content-Length` such JSON followed by the bytes of the tensor.',
    'content': {'application/json': {'schema': {'$ref': REF.format(name='InferRequest')}, 'example': EXAMPLE}, 'application/octet-stream': _BINARY}}}


def problems(*codes: str) -> dict[int, dict]:
    "The `responses` of a route that may end with these problems"
    found: dict[int, dict] = {}
    for code in codes:
        kind = PROBLEMS[code]
        example = {'summary': kind.title, 'value': problem_body(code, kind.title, REQUEST_ID)}
        entry = found.setdefault(kind.status, {'description': '', 'content': {MEDIA_TYPE: {
            'schema': {'$ref': REF.format(name='ProblemOut')}, 'examples': {}}}})
        entry['content'][MEDIA_TYPE]['examples'][code] = example
        entry['description'] = '; '.join(filter(None, (entry['description'], f'`{code}`: {kind.title}')))
    return found


KEYS = {'bearer': {'type': 'http', 'scheme': 'bearer'}, 'key': {'type': 'apiKey', 'in': 'header', 'name': 'X-API-Key'}}


def _describe_keys(doc: dict):
    "Where a key may be needed, and how it is sent; whoever runs the service decides whether one is"
    doc['components']['securitySchemes'] = KEYS
    for path in doc['paths'].values():
        for route in path.values():
            if '401' in route['responses']: route['security'] = [{}, {'bearer': []}, {'key': []}]
            elif '403' in route['responses']: route['security'] = [{}, {'bearer': []}]


def _drop_fastapis_own_errors(doc: dict):
    "FastAPI adds a 422 of its own to every route with a parameter; here errors are problems"
    for unused in ('HTTPValidationError', 'ValidationError'): doc['components']['schemas'].pop(unused, None)
    for path in doc['paths'].values():
        for route in path.values():
            if MEDIA_TYPE not in route['responses'].get('422', {}).get('content', {}): route['responses'].pop('422', None)


ANYWHERE = 'bad_request', 'slow_request', 'headers_too_large', 'internal_error' # what may happen to any request


def _describe_the_rest(doc: dict):
    "What may happen to any request, and answers in bytes"
    for path, routes in doc['paths'].items():
        for route in routes.values():
            for status, answer in problems(*ANYWHERE).items(): route['responses'].setdefault(str(status), answer)
            if path.endswith('/infer'): route['responses']['200']['content']['application/octet-stream'] = _BINARY


def add_openapi(app: FastAPI):
    "Make `/openapi.json` complete; it is built once, when first asked for"
    def build() -> dict:
        if not app.openapi_schema:
            doc = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = doc.setdefault('components', {}).setdefault('schemas', {})
            line = BatchLine.model_json_schema(ref_template=REF.format(name='{model}'))
            schemas |= line.pop('$defs') | {'BatchLine': line} | msgspec.json.schema_components([InferRequest], ref_template=REF)[1]
            schemas['ProblemOut']['properties']['code']['enum'] = list(PROBLEMS)
            doc['paths']['/v1/predict/batch']['post']['responses']['200']['content'] = {'application/x-ndjson': {'schema': {'$ref': REF.format(name='BatchLine')}}}
            _drop_fastapis_own_errors(doc)
            _describe_keys(doc)
            _describe_the_rest(doc)
            app.openapi_schema = doc
        return app.openapi_schema
    app.openapi = build
