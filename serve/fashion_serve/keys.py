"Keys of programs that may ask: kept as hashes, compared in constant time, each with its own rate"
import fcntl
import hashlib
import hmac
import math
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from limits import RateLimitItem, parse_many

from fashion_nbdev.core import ConfigError
from fashion_serve.errors import Problem
from fashion_serve.metrics import SHED


@dataclass(frozen=True)
class Key:
    name: str # whose it is; for the log
    digest: str # SHA-256 of the key, 64 hex digits
    rate: RateLimitItem | None # None is without limit


def read_keys(path: Path | None) -> tuple[Key, ...]:
    "A file of lines 'name sha256 [rate]', such as 'shop 9f86d0... 100/second', a rate in pictures; raises `ConfigError`"
    if path is None: return ()
    try: lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as e: raise ConfigError(f'keys_file {path} cannot be read ({getattr(e, "strerror", None) or "it is not UTF-8"})') from None
    found = tuple(_key(f'{path.name} line {i}', line) for i, line in enumerate(lines, 1) if line.strip() and not line.startswith('#'))
    if not found: raise ConfigError(f'keys_file {path} holds no key: nobody could ask; leave FASHION_KEYS_FILE unset to let everybody')
    return found


def _key(where: str, line: str) -> Key:
    name, digest, rate, *more = line.split() + [''] * (3 - len(line.split()))
    if len(digest) != 64 or not set(digest) <= set('0123456789abcdef'): raise ConfigError(f'{where}: a name and the SHA-256 of a key in 64 hex digits must stand there')
    try: [limit] = parse_many(rate) if rate else [None]
    except ValueError: limit = False
    if more or limit is False or limit and limit.amount < 1: raise ConfigError(f'{where}: the rate is {" ".join([rate, *more])!r}, but must be one like 100/second or 10000/day')
    return Key(name, digest, limit)


def bearer(request: Request) -> str:
    "The key in the Authorization header; empty if something else stands there, for a proxy perhaps"
    scheme, _, given = request.headers.get('authorization', '').partition(' ')
    return given.strip(' \t') if scheme.lower() == 'bearer' else ''


def key_digest(given: str) -> str:
    "SHA-256 of a key as it came in a header: its bytes, whatever alphabet they are in"
    return hashlib.sha256(given.encode('latin-1')).hexdigest()


class Windows:
    "How often each key has asked, in a file that all workers share: a sliding window from two counts, as Cloudflare has it"
    ENTRY = struct.Struct('<dII') # when the window began, how often it was asked in the one before, and in this one

    def __init__(self, path: Path): self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    @contextmanager
    def _locked(self, at: int) -> Iterator[None]:
        fcntl.lockf(self.file, fcntl.LOCK_EX, self.ENTRY.size, at)
        try: yield
        finally: fcntl.lockf(self.file, fcntl.LOCK_UN, self.ENTRY.size, at)

    def hit(self, key: int, rate: RateLimitItem, n: int = 1, again: int = 0) -> float: # 0: they are counted and may; else seconds until they may
        "Count n pictures of this key, by its place in the file of keys, all or none; a negative n gives back. The wait is long enough for `again` more, which the next try counts anew"
        length, at, now = rate.get_expiry(), key * self.ENTRY.size, time.monotonic() # the same clock in all processes
        with self._locked(at):
            begun, before, count = self.ENTRY.unpack(os.pread(self.file, self.ENTRY.size, at).ljust(self.ENTRY.size, b'\0'))
            if now >= begun + 2 * length: begun, before, count = now, 0, 0
            elif now >= begun + length: begun, before, count = begun + length, count, 0
            def wait(n: int) -> float: return _wait(rate.amount, length, now - begun, before, count, n)
            if fits := wait(n) == 0: os.pwrite(self.file, self.ENTRY.pack(begun, before, max(0, count + n)), at)
        return 0 if fits else wait(n + again)


def _wait(amount: int, length: float, passed: float, before: int, count: int, n: int) -> float:
    "Seconds until n more fit: of the window before counts the share that a window ending now still covers"
    if n > amount: return math.inf
    if before * (1 - passed / length) + count + n <= amount: return 0
    if count + n <= amount: return length * (1 - (amount - count - n) / before) - passed
    return length - passed + length * (1 - (amount - n) / count) # in the next one, where this is the one before


class Keeper:
    "Lets known programs in, each as often as it may"
    def __init__(self, keys: tuple[Key, ...], folder: Path):
        self.keys, self.windows = keys, Windows(folder / 'asked') if any(key.rate for key in keys) else None

    def admit(self, request: Request):
        "Raises `Problem` for a request without a known key, or one that comes too soon"
        if not self.keys: return
        given = bearer(request) or request.headers.get('x-api-key', '')
        digest = key_digest(given)
        same = [hmac.compare_digest(digest, key.digest) for key in self.keys] # all of them: the time says nothing
        if not any(same): raise Problem('no_key', 'send a key that is known here: Authorization: Bearer ...', {'WWW-Authenticate': 'Bearer'})
        key = self.keys[place := same.index(True)]
        request.state.record.key = key.name
        if not key.rate: return
        request.state.place = place
        self._count(place)

    @contextmanager
    def charge(self, request: Request, n: int) -> Iterator[None]:
        "Count all n pictures of a request, which counts as one already and does so still if it is not taken on; raises `Problem` where they are too many"
        place = getattr(request.state, 'place', None)
        if place is None or n == 1: return (yield)
        self._count(place, n - 1, again=1)
        try: yield
        except BaseException:
            self.windows.hit(place, self.keys[place].rate, 1 - n)
            raise

    def _count(self, place: int, n: int = 1, again: int = 0):
        key = self.keys[place]
        if not (left := self.windows.hit(place, key.rate, n, again)): return
        SHED.labels('rate').inc()
        if left == math.inf: raise Problem('rate_limited', f'{key.name} may ask {key.rate}, and never {n + again} at once: please send fewer together')
        wait = math.ceil(max(1.0, left))
        raise Problem('rate_limited', f'{key.name} may ask {key.rate}, each picture counts: please wait {wait} s', {'Retry-After': str(wait)})


async def known(request: Request):
    "For routes that answer pictures"
    request.app.state.keeper.admit(request)
