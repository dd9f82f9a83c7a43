"The log: one line of JSON for a request, on standard output"
import asyncio
import logging
import random
import sys
import time
from collections import deque
from typing import BinaryIO

import msgspec
import structlog

from fashion_serve.record import Record

COMPLAINTS = 10 # lines a second about requests that were turned away
MOMENT = .05 # seconds that a line may wait for others
_encode = msgspec.json.Encoder().encode


def _bytes(event: dict, **_) -> bytes: return _encode(event)


class Lines:
    "A file that gathers what the event loop writes for a moment, so that many lines cost one system call"
    def __init__(self, file: BinaryIO): self.file, self.gathered = file, deque()

    def write(self, data: bytes): self.gathered.append(data)

    def flush(self):
        try: loop = asyncio.get_running_loop()
        except RuntimeError: return self.out() # another thread, or the end
        if len(self.gathered) == 1: loop.call_later(MOMENT, self.out)

    def out(self):
        "Write what has been gathered"
        self.file.write(b''.join(self.gathered.popleft() for _ in range(len(self.gathered))))
        self.file.flush()


_COMMON = structlog.stdlib.add_log_level, structlog.processors.TimeStamper(fmt='iso', utc=True), structlog.processors.format_exc_info


def make_log(file: BinaryIO | Lines) -> structlog.typing.FilteringBoundLogger:
    "A logger that writes JSON lines"
    structlog.configure(
        cache_logger_on_first_use=True, wrapper_class=structlog.make_filtering_bound_logger(logging.INFO), logger_factory=structlog.BytesLoggerFactory(file),
        processors=[*_COMMON, structlog.processors.JSONRenderer(_bytes)])
    return structlog.get_logger()


def log_in_json():
    "Warnings and errors, ours and uvicorn's, as the same kind of lines"
    text = structlog.processors.JSONRenderer(lambda event, **_: _encode(event).decode())
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_COMMON, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, text]))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class RequestLog:
    "Writes requests down: every problem that is ours, and a share of all others"
    def __init__(self, share: float):
        self.share, self.lines, self.complaints = share, Lines(sys.stdout.buffer), (0, 0) # the second, and how many in it
        self.log, self.close = make_log(self.lines), self.lines.out

    def write(self, r: Record):
        if r.status < 500 and self.share < 1 and random.random() >= self.share: return
        if r.code == 'overloaded' and not self._may_complain(): return
        fields = dict(request_id=r.request_id, method=r.method, route=r.route, status=r.status, ms=round(1000 * r.seconds, 2))
        if r.key: fields['key'] = r.key
        if r.code: fields['code'] = r.code
        if r.stages: fields['stages_ms'] = {stage: round(1000 * seconds, 2) for stage, seconds in r.stages.items()}
        if r.pictures: fields['pictures'] = [dict(model=p.model, version=p.version, label=p.label, probability=round(p.probability, 4), bytes=p.size) for p in r.pictures]
        self.log.info('request', **fields)

    def _may_complain(self) -> bool:
        "Not of every request that is turned away: the metrics count them, and writing would cost those that are not"
        second = int(time.monotonic())
        self.complaints = (second, self.complaints[1] + 1 if self.complaints[0] == second else 1)
        return self.complaints[1] <= COMPLAINTS
