"Pictures out of a request: the raw body, or the files of a multipart form; counted while they are read, never on disk"
import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from fashion_serve.errors import Problem
from fashion_serve.metrics import SHED

FORM_EXTRA = 64 * 1024 # bytes that a form may add around its files
MAX_FIELDS = 10 # fields beside the files
ASKED = {'model', 'top_k', 'lang'} # which belong into the address
MAX_BUFFERED = 1 << 40 # bytes of a file before Starlette writes it to disk: never, for bodies are bounded before


class Budget:
    "Bytes of requests that one process holds at once"
    def __init__(self, limit: int): self.limit, self.held = limit, 0

    def hold(self) -> 'Hold': return Hold(self)


class Hold:
    "The bytes of one request, given back when it has ended"
    def __init__(self, budget: Budget): self.budget, self.size = budget, 0
    def __enter__(self): return self
    def __exit__(self, *_): self.give_back()

    def give_back(self): self.budget.held, self.size = self.budget.held - self.size, 0

    def grow(self, size: int):
        "Raises the `Problem` if all requests together hold too much"
        if self.budget.held + size > self.budget.limit:
            SHED.labels('bytes').inc()
            raise Problem('overloaded', 'too many uploads are coming in at once: please try again in 1 s', {'Retry-After': '1'})
        self.budget.held, self.size = self.budget.held + size, self.size + size


class _InMemory(MultiPartParser):
    "Starlette's parser, never writing an upload to disk, which says whether the last boundary came"
    spool_max_size = MAX_BUFFERED
    ended = False

    def on_end(self): self.ended = True


def _too_large(limit: int) -> Problem:
    return Problem('too_large', f'the body is larger than the {limit:,} bytes allowed')


async def _counted(request: Request, limit: int, hold: Hold) -> AsyncIterator[bytes]:
    "The body's chunks, cut off with a `Problem` when more than `limit` bytes are declared or come"
    if (coding := request.headers.get('content-encoding', 'identity').lower()) != 'identity':
        raise Problem('unsupported_format', f'the body comes with Content-Encoding {coding[:40]!r}: send the picture as it is')
    declared = request.headers.get('content-length', '0')
    if not (declared.isascii() and declared.isdigit()): raise Problem('bad_length', 'Content-Length must be a whole number')
    if int(declared[:20]) > limit: raise _too_large(limit)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit: raise _too_large(limit)
        hold.grow(len(chunk))
        yield chunk


async def _form(request: Request, limit: int, max_files: int, hold: Hold) -> FormData:
    stream = _counted(request, limit + FORM_EXTRA, hold)
    parser = _InMemory(request.headers, stream, max_files=max_files, max_fields=MAX_FIELDS, max_part_size=1024)
    try: form = await parser.parse()
    except MultiPartException as e:
        files = 'one file' if max_files == 1 else f'up to {max_files} files'
        raise Problem('bad_multipart', f'{e.message.rstrip(".")}: send {files} in the field file') from None
    except (UnicodeError, LookupError) as e: raise Problem('bad_multipart', 'the form is not in the charset it names: send it as UTF-8') from e
    if parser.ended: return form
    await form.close()
    raise Problem('bad_multipart', 'the form ends before its last boundary: please send it again, whole')


async def _form_files(request: Request, limit: int, max_files: int, hold: Hold) -> list[bytes]:
    "The contents of the form's fields `file`, in order"
    form = await _form(request, limit, max_files, hold)
    try:
        fields = {field for field, f in form.multi_items() if isinstance(f, UploadFile)}
        if 'file' not in fields: raise Problem('missing_file', 'the form has no file in a field named file')
        if len(fields) > 1: raise Problem('bad_multipart', 'the form has files in several fields: send all of them in the field file')
        if asked := ASKED & {field for field, _ in form.multi_items()}: raise Problem('bad_multipart', f'the form has a field {min(asked)}, which is not read: give it in the address, such as ?{min(asked)}=...')
        return [await f.read() for f in form.getlist('file') if isinstance(f, UploadFile)]
    finally: await form.close()


def _is_form(request: Request) -> bool:
    return request.headers.get('content-type', '').partition(';')[0].strip().lower() == 'multipart/form-data'


async def _in_time(coming, seconds: float):
    "What is awaited, or a `Problem` after so many seconds"
    try:
        async with asyncio.timeout(seconds): return await coming
    except TimeoutError:
        raise Problem('incomplete_body', f'the body had not all come after {seconds:g} seconds: please send it again', {'Connection': 'close'}) from None


async def read_body(request: Request, limit: int, timeout: float, hold: Hold) -> bytes:
    "The whole body, within `timeout` seconds; raises `Problem`"
    async def read(): return b''.join([chunk async for chunk in _counted(request, limit, hold)])
    if _is_here(request): return await read()
    return await _in_time(read(), timeout)


def _is_here(request: Request) -> bool:
    "Whether the whole body has come already, as far as the connection can say"
    return not getattr(request.scope.get('connection'), 'more_body', True)


async def read_picture(request: Request, limit: int, timeout: float, hold: Hold) -> bytes:
    "The picture sent, whole within `timeout` seconds; its content decides what it is, not its headers. Raises `Problem`"
    if not _is_form(request): return await read_body(request, limit, timeout, hold)
    return (await _in_time(_form_files(request, limit, 1, hold), timeout))[0]


async def read_pictures(request: Request, limit: int, max_files: int, timeout: float, hold: Hold) -> list[bytes]:
    "All pictures of a form, likewise"
    if not _is_form(request): raise Problem('bad_multipart', 'a batch is a multipart form (multipart/form-data) with a field file for each picture')
    return await _in_time(_form_files(request, limit, max_files, hold), timeout)
