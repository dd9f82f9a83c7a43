"The log: one line of JSON for a request, on standard output"
import logging
import random
import sys

import msgspec
import structlog

from fashion_serve.record import Record

_encode = msgspec.json.Encoder().encode


def _bytes(event: dict, **_) -> bytes: return _encode(event)


def make_log() -> structlog.typing.FilteringBoundLogger:
    "A logger that writes JSON lines"
    structlog.configure(
        cache_logger_on_first_use=True, wrapper_class=structlog.make_filtering_bound_logger(logging.INFO), logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt='iso', utc=True), structlog.processors.format_exc_info,
                    structlog.processors.JSONRenderer(_bytes)])
    return structlog.get_logger()


class RequestLog:
    "Writes requests down: every problem that is ours, and a share of all others"
    def __init__(self, share: float):
        self.share, self.log = share, make_log()

    def write(self, r: Record):
        if r.status < 500 and self.share < 1 and random.random() >= self.share: return
        fields = dict(request_id=r.request_id, method=r.method, route=r.route, status=r.status, ms=round(1000 * r.seconds, 2))
        if r.key: fields['key'] = r.key
        if r.code: fields['code'] = r.code
        if r.stages: fields['stages_ms'] = {stage: round(1000 * seconds, 2) for stage, seconds in r.stages.items()}
        if r.pictures: fields['pictures'] = [dict(model=p.model, version=p.version, label=p.label, probability=round(p.probability, 4), bytes=p.size) for p in r.pictures]
        self.log.info('request', **fields)
