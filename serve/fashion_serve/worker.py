"One process that answers requests: it tells the board how it is, watches over itself, and drains before it ends"
import asyncio
import gc
import os
import socket
import sys
import threading
import time
from itertools import islice
from math import ceil
from pathlib import Path

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from fashion_nbdev.core import FashionError
from fashion_serve.accept import BUSY, Acceptor, knock_unheard
from fashion_serve.board import Board, Note
from fashion_serve.settings import Settings

SWITCH = .0005 # seconds after which a thread that has a picture to work on gets its turn: under a flood the event loop never leaves it one
HUNG = 75 # exit code of a process that noticed it was stuck
SHOW = .5 # seconds after which the metrics show how much is waiting
LOOKS = 16 # connections that are looked at to find one that can go
DRAIN = .5 # seconds between 'not ready' and the end of listening: long enough for a balancer that looks, too short to be missed


class ServeConfig(uvicorn.Config):
    "uvicorn's configuration and the service's own; light, so that it can be sent to a new process, where `load` makes the app"
    def __init__(self, settings: Settings, board: Path):
        super().__init__('fashion_serve.main:create_app', lifespan='on', ws='none', log_config=None, access_log=False, server_header=False,
                         timeout_keep_alive=15, timeout_graceful_shutdown=ceil(max(settings.deadline, settings.batch_deadline)) + 1, workers=settings.workers) # what was taken on is done
        self.settings, self.board = settings, Board(board)
        self.waiting = {} # connections whose client has to say something, that which has waited longest first

    def load(self):
        "Make the app; here, so that the process that only starts others does not load what the app needs"
        from fashion_serve.logs import log_in_json
        from fashion_serve.main import create_app
        from fashion_serve.protocol import BoundedProtocol
        log_in_json()
        try: self.app, self.http = create_app(self.settings, self.board), BoundedProtocol
        except FashionError as e:
            self.board.publish(Note(error=str(e)))
            sys.exit(STARTUP_FAILURE)
        self.engine = self.app.state.engine
        super().load()


class Worker(uvicorn.Server):
    "uvicorn's server in a process of its own"
    config: ServeConfig

    def run(self, sockets=None):
        sys.setswitchinterval(SWITCH)
        super().run(sockets)
        if self.config.engine.error: sys.exit(STARTUP_FAILURE) # it would not start the next time either

    async def startup(self, sockets=None):
        await super().startup([]) # all but the listening
        make = lambda: self.config.http_protocol_class(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        self.config.tell = self._connections
        self.servers = [Acceptor(sock, make, self.config.board, self._connections, self._make_room) for sock in sockets]
        self.watch = Watch(asyncio.get_running_loop(), self.config.engine, self.config.settings.hang_timeout)
        self.watch.start()
        self.telling = asyncio.create_task(self._tell())

    def _connections(self) -> int:
        "For others to compare, and told to them; one that could not answer wants none"
        engine = self.config.engine
        self.config.board.say_busy(n := len(self.server_state.connections) if engine.ready and not engine.draining else BUSY)
        return n

    def _make_room(self) -> bool: # False if none can go
        "End the connection that has waited longest for its client"
        for longest in list(islice(self.config.waiting, LOOKS)):
            if longest.has_said_nothing():
                longest.give_way()
                return True
            longest.await_client()
        return False

    async def _tell(self):
        engine = self.config.engine
        await engine.settled.wait()
        self._connections()
        gc.freeze() # what is there now stays: no need to look through it again and again
        self.config.board.publish(Note(engine.ready, list(engine.registry.models), engine.registry.plan.generation, str(engine.error or '')))
        if engine.error: self.should_exit = True
        else: await engine.registry.keep_following()

    async def shutdown(self, sockets=None):
        "Say that it is not ready, answer for a moment longer, then take no more and finish what was taken"
        self.config.engine.draining = True
        self._connections()
        if not self.config.engine.error and not self.force_exit:
            await asyncio.sleep(DRAIN)
            await self._close(sockets)
        await super().shutdown(sockets)
        self.watch.stop()
        self.telling.cancel()

    async def _close(self, sockets: list[socket.socket]):
        "Stop listening; where all do, lose none of the connections that were made and not looked at yet"
        if not self.config.board.is_stopping(): return # the others take them
        for sock in sockets: knock_unheard(sock)
        await asyncio.sleep(DRAIN / 10)
        for acceptor in self.servers: await acceptor.take_waiting()


class Watch(threading.Thread):
    "Ends a process whose event loop or threads are stuck: it is replaced, and only its own requests fail"
    def __init__(self, loop: asyncio.AbstractEventLoop, engine, patience: float):
        super().__init__(name='watch', daemon=True)
        self.loop, self.engine, self.patience = loop, engine, patience
        self.beat, self.ended = time.monotonic(), threading.Event()

    def stop(self): self.ended.set()

    def _beat(self): self.beat = time.monotonic()

    def run(self):
        looked = since = time.monotonic()
        while not self.ended.wait(min(SHOW, self.patience / 8)):
            now, before = time.monotonic(), looked
            looked = now
            if now - before > self.patience / 2: since = now # the whole process stood still: nothing is stuck
            try: self.loop.call_soon_threadsafe(self._beat)
            except RuntimeError: return # the loop has ended
            self.engine.show_queue()
            if now - max(self.beat, since) > self.patience: self._end('the event loop')
            if min(self.engine.busy_for(now), now - since) > self.patience: self._end('a thread that works on pictures')

    def _end(self, what: str):
        os.write(2, f'fashion_serve: {what} has been stuck for {self.patience:g} s: process {os.getpid()} ends and is replaced\n'.encode())
        os._exit(HUNG)
