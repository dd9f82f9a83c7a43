"One picture out of a request: the raw body, or the file of a multipart form; counted while it is read"
import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.formparsers import MultiPartException, MultiPartParser

from fashion_serve.errors import Problem

FORM_EXTRA = 64 * 1024 # bytes that a form may add around its file
MAX_FIELDS = 10 # fields beside the file


class _InMemory(MultiPartParser):
    "Starlette's parser, never writing an upload to disk (its size is bounded before it comes here)"
    spool_max_size = 1 << 40


def _too_large(limit: int) -> Problem:
    return Problem('too_large', f'the body is larger than the {limit:,} bytes allowed')


async def _counted(request: Request, limit: int) -> AsyncIterator[bytes]:
    "The body's chunks, cut off with a `Problem` when more than `limit` bytes are declared or come"
    declared = request.headers.get('content-length', '0')
    if not (declared.isascii() and declared.isdigit()): raise Problem('bad_length', 'Content-Length must be a whole number')
    if int(declared[:20]) > limit: raise _too_large(limit)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit: raise _too_large(limit)
        yield chunk


async def _form_file(request: Request, max_bytes: int) -> bytes:
    "The bytes of the form's field `file`"
    stream = _counted(request, max_bytes + FORM_EXTRA)
    try: form = await _InMemory(request.headers, stream, max_files=1, max_fields=MAX_FIELDS, max_part_size=1024).parse()
    except MultiPartException as e: raise Problem('bad_multipart', f'{e.message.rstrip(".")}: send one file in the field file') from None
    except (UnicodeError, LookupError) as e: raise Problem('bad_multipart', 'the form is not in the charset it names: send it as UTF-8') from e
    try:
        file = form.get('file')
        if file is None or isinstance(file, str): raise Problem('missing_file', 'the form has no file in a field named file')
        return await file.read()
    finally: await form.close()


async def read_picture(request: Request, max_bytes: int, timeout: float) -> bytes:
    "The picture sent, whole within `timeout` seconds; its content decides what it is, not its headers. Raises `Problem`"
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    try:
        async with asyncio.timeout(timeout):
            if kind == 'multipart/form-data': return await _form_file(request, max_bytes)
            return b''.join([chunk async for chunk in _counted(request, max_bytes)])
    except TimeoutError:
        raise Problem('incomplete_body', f'the body had not all come after {timeout:g} seconds: please send it again', {'Connection': 'close'}) from None
