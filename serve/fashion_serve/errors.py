"Errors as RFC 9457 problems: one table of codes, one exception, one way out"
import logging
from http import HTTPStatus
from typing import NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fashion_nbdev.image import ImageError

log = logging.getLogger('fashion_serve')


class Kind(NamedTuple):
    "A kind of problem: what a client may build on"
    status: int
    title: str


# code -> kind. Codes are stable: clients compare them. The first group comes from `fashion_nbdev.image`.
PROBLEMS = {
    'empty': Kind(400, 'The request carries no picture'),
    'too_large': Kind(413, 'The file is too large'),
    'unsupported_format': Kind(415, 'Not a picture of a supported format'),
    'too_many_pixels': Kind(422, 'The picture has too many pixels'),
    'side_too_long': Kind(422, 'A side of the picture is too long'),
    'too_many_scans': Kind(422, 'The JPEG has too many scans'),
    'corrupt': Kind(422, 'The picture is damaged'),
    'bad_image': Kind(422, 'The picture cannot be used'),
    'bad_tensor': Kind(400, 'The tensor cannot be used'),
    'bad_multipart': Kind(400, 'The multipart form cannot be read'),
    'missing_file': Kind(400, 'The form has no file'),
    'incomplete_body': Kind(400, 'The request ended early'),
    'bad_length': Kind(400, 'Content-Length is not a number'),
    'invalid_parameter': Kind(422, 'A parameter is not valid'),
    'unknown_model': Kind(404, 'No such model'),
    'bad_model': Kind(422, 'The model file cannot be used'),
    'no_trial': Kind(404, 'No candidate is being tried'),
    'no_key': Kind(401, 'A key is needed'),
    'rate_limited': Kind(429, 'Too many requests with this key'),
    'not_allowed': Kind(403, 'Not allowed'),
    'not_found': Kind(404, 'No such address'),
    'method_not_allowed': Kind(405, 'This address does not take that method'),
    'bad_request': Kind(400, 'The request cannot be understood'),
    'overloaded': Kind(429, 'More work is waiting than can be done in time'),
    'client_left': Kind(499, 'The client left before the answer'),
    'headers_too_large': Kind(431, 'The headers are too large'),
    'slow_request': Kind(408, 'The request took too long to come'),
    'not_ready': Kind(503, 'The service is not ready'),
    'internal_error': Kind(500, 'The service made a mistake'),
}
MEDIA_TYPE = 'application/problem+json'


class Problem(Exception):
    "Ends a request with the problem `code`; `detail` is one line for the person who sent it"
    def __init__(self, code: str, detail: str, headers: dict[str, str] | None = None):
        super().__init__(detail)
        self.code, self.detail, self.headers = code, detail, headers


def problem_body(code: str, detail: str, request_id: str) -> dict:
    "The JSON of a problem"
    kind = PROBLEMS[code]
    return dict(type=f'/problems/{code}', title=kind.title, status=kind.status, detail=detail, code=code,
                request_id=request_id)


def problem_of(e: Exception, request_id: str) -> dict:
    "The problem that an error is"
    if isinstance(e, Problem): return problem_body(e.code, e.detail, request_id)
    if isinstance(e, ImageError): return problem_body(e.code if e.code in PROBLEMS else 'bad_image', str(e), request_id)
    log.error('request %s failed', request_id, exc_info=e)
    return problem_body('internal_error', 'the mistake is ours and has been logged: please try again', request_id)


def respond(request: Request, code: str, detail: str, headers=None) -> JSONResponse:
    "The answer that carries a problem"
    body = problem_body(code, detail, getattr(request.state, 'request_id', ''))
    if record := getattr(request.state, 'record', None): record.code = code
    if request.url.path.startswith('/v2'): body['error'] = detail # where clients of that protocol look
    return JSONResponse(body, body['status'], headers=headers, media_type=MEDIA_TYPE)


def _on_problem(request: Request, e: Problem):
    return respond(request, e.code, e.detail, e.headers)


def _on_image_error(request: Request, e: ImageError):
    from_curl = request.headers.get('content-type') == 'application/x-www-form-urlencoded' and e.code in ('corrupt', 'unsupported_format')
    hint = '; curl -d changes what it sends, --data-binary does not' if from_curl else ''
    return respond(request, e.code if e.code in PROBLEMS else 'bad_image', f'{e}{hint}')


def _on_invalid(request: Request, e: RequestValidationError):
    first = e.errors()[0]
    where, name = first['loc'][0], '.'.join(map(str, first['loc'][1:])) or 'body'
    if first['type'] == 'extra_forbidden':
        return respond(request, 'invalid_parameter', f'unknown {where} parameter {name[:40]!r}: it may be model, top_k or lang')
    said = first['msg'][:1].lower() + first['msg'][1:]
    return respond(request, 'invalid_parameter', f'{where} parameter {name} is {str(first["input"])[:40]!r}: {said}')


def _on_http(request: Request, e: HTTPException):
    path = request.url.path[:80]
    said = {404: ('not_found', f'there is nothing at {path}: /openapi.json lists what there is'),
            405: ('method_not_allowed', f'{request.method} is not possible at {path}: /openapi.json lists what is')}
    if e.status_code in said: return respond(request, *said[e.status_code], e.headers)
    code = 'bad_request' if e.status_code < 500 else 'internal_error'
    return respond(request, code, HTTPStatus(e.status_code).phrase, e.headers)


def _on_disconnect(request: Request, e: ClientDisconnect):
    return respond(request, 'incomplete_body', 'the request ended before all of its body had come')


HANDLERS = {Problem: _on_problem, ImageError: _on_image_error, RequestValidationError: _on_invalid, HTTPException: _on_http, ClientDisconnect: _on_disconnect}


def answer_to(request: Request, e: Exception) -> JSONResponse:
    "The problem that an error of one of these kinds ends in"
    return next(handler for kind, handler in HANDLERS.items() if isinstance(e, kind))(request, e)


def add_error_handlers(app: FastAPI):
    "Every error leaves as a problem; what nobody foresaw is caught in `middleware.Edge`"
    async def handle(request, e): return answer_to(request, e)
    for kind in HANDLERS: app.add_exception_handler(kind, handle)
