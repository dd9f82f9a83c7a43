"Keys of programs that may ask: kept as hashes, compared in constant time, each with its own rate"
import hashlib
import hmac
import math
import time
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from fashion_nbdev.core import ConfigError
from fashion_serve.errors import Problem
from fashion_serve.metrics import SHED


@dataclass(frozen=True)
class Key:
    name: str # whose it is; for the log
    digest: str # SHA-256 of the key, 64 hex digits
    rate: RateLimitItem | None # None is without limit


def read_keys(path: Path | None) -> tuple[Key, ...]:
    "A file of lines 'name sha256 [rate]', such as 'shop 9f86d0... 100/second'; raises `ConfigError`"
    if path is None: return ()
    try: lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as e: raise ConfigError(f'keys_file {path} cannot be read ({getattr(e, "strerror", None) or "it is not UTF-8"})') from None
    found = tuple(_key(f'{path.name} line {i}', line) for i, line in enumerate(lines, 1) if line.strip() and not line.startswith('#'))
    if not found: raise ConfigError(f'keys_file {path} holds no key: nobody could ask; leave FASHION_KEYS_FILE unset to let everybody')
    return found


def _key(where: str, line: str) -> Key:
    name, digest, *rate = line.split()[:3] + [''] * (2 - len(line.split()))
    if len(digest) != 64 or not set(digest) <= set('0123456789abcdef'): raise ConfigError(f'{where}: a name and the SHA-256 of a key in 64 hex digits must stand there')
    try: return Key(name, digest, parse(rate[0]) if rate and rate[0] else None)
    except ValueError: raise ConfigError(f'{where}: the rate is {rate[0]!r}, but must be like 100/second or 10000/day') from None


class Keeper:
    "Lets known programs in; each worker gives a key its share of the rate"
    def __init__(self, keys: tuple[Key, ...], workers: int):
        self.keys, self.limiter = keys, MovingWindowRateLimiter(MemoryStorage())
        self.rates = {key: _shared(key.rate, workers) for key in keys if key.rate}

    def admit(self, request: Request):
        "Raises `Problem` for a request without a known key, or one that comes too soon"
        if not self.keys: return
        given = request.headers.get('authorization', '').removeprefix('Bearer ') or request.headers.get('x-api-key', '')
        digest = hashlib.sha256(given.encode()).hexdigest()
        same = [hmac.compare_digest(digest, key.digest) for key in self.keys] # all of them: the time says nothing
        if not any(same): raise Problem('no_key', 'send a key that is known here: Authorization: Bearer ...', {'WWW-Authenticate': 'Bearer'})
        key = self.keys[same.index(True)]
        request.state.record.key = key.name
        if (rate := self.rates.get(key)) and not self.limiter.hit(rate, key.name):
            SHED.labels('rate').inc()
            wait = math.ceil(max(1.0, self.limiter.get_window_stats(rate, key.name).reset_time - time.time()))
            raise Problem('rate_limited', f'{key.name} may ask {key.rate}: please wait {wait} s', {'Retry-After': str(wait)})


def _shared(rate: RateLimitItem, workers: int) -> RateLimitItem:
    return type(rate)(max(1, round(rate.amount / workers)), rate.multiples)


async def known(request: Request):
    "For routes that answer pictures"
    request.app.state.keeper.admit(request)
