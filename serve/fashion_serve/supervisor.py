"The process that starts the others: it holds the address, replaces whoever ends or hangs, and says when all are ready"
import os
import signal
import socket
import time
from contextlib import suppress

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from fashion_nbdev.core import FashionError
from fashion_serve.board import Note
from fashion_serve.worker import ServeConfig, Worker

TICK = .1 # seconds between two looks at the workers
START = 60 # seconds in which a new process answers for the first time
LAST = 4 # seconds that a worker may take to end beyond what it was given to finish its work: it waits to be seen, and for its traces
PAUSE = 1 # seconds from one start of a worker to the next, if it ends at once


class WorkerProcess(Process):
    "A process with a `Worker`, asked again and again whether it still answers"
    def __init__(self, config: ServeConfig, sockets: list[socket.socket]):
        super().__init__(config, sockets)
        self.begun = self.heard = self.looked = time.monotonic()
        self.asked = self.answered = False

    @property
    def server(self) -> Worker:
        if self._server is None: self._server = Worker(self.config)
        return self._server

    def target(self, sockets=None):
        "In the worker"
        self.parent_conn.close() # a copy, which would keep the end of the other process from being seen
        signal.signal(signal.SIGHUP, signal.SIG_IGN) # the other process decides
        super().target(sockets)

    def always_pong(self):
        "In the worker: answer, and end with the process that asks"
        with suppress(EOFError, OSError): super().always_pong()
        self.config.board.stop()
        os.kill(os.getpid(), signal.SIGTERM)

    def is_alive(self, timeout: float = 5) -> bool:
        "Whether it runs, and has answered in the last `timeout` seconds; asks without waiting"
        if not self.process.is_alive(): return False
        now, before = time.monotonic(), self.looked
        self.looked = now
        if now - before > timeout / 2: self.heard = now # this process stood still itself, and the other perhaps with it
        try:
            while self.parent_conn.poll():
                self.parent_conn.recv()
                self.heard, self.asked, self.answered = time.monotonic(), False, True
            if not self.asked: self.parent_conn.send(b'ping')
        except (OSError, EOFError): return False
        self.asked = True
        return time.monotonic() - self.heard < (timeout if self.answered else START)


class Supervisor(Multiprocess):
    "uvicorn's keeper of processes; raises the `FashionError` of a worker that could not start"
    config: ServeConfig
    announced = False
    error: FashionError | None = None

    def init_processes(self):
        self.processes = [self._start() for _ in range(self.processes_num)]

    def _start(self) -> WorkerProcess:
        process = WorkerProcess(self.config, self.sockets)
        process.start()
        return process

    def run(self):
        "Until a signal ends it, or a worker could not start"
        signals, self.in_terminal = set(), os.isatty(0)
        self.init_processes()
        while not self.should_exit.wait(TICK):
            signals.update(self.signal_queue)
            self.handle_signals()
            self.keep_subprocess_alive()
            self._announce()
        for sock in self.sockets: sock.close() # only who accepts connections may hold it
        self.config.board.stop()
        self.terminate_all()
        self.join_all()
        if self.error: raise self.error
        if signal.SIGINT in signals: raise KeyboardInterrupt

    def join_all(self):
        "As long as they may take to finish what they have taken on; one that is stuck is ended"
        end = time.monotonic() + self.config.timeout_graceful_shutdown + LAST
        for process in self.processes:
            process.process.join(max(0.0, end - time.monotonic()))
            process.process.kill()
            process.process.join()

    def handle_hup(self):
        "Its terminal was closed. For a service without one, nothing: models are exchanged without a restart, and uvicorn's own would start processes of another kind"
        if self.in_terminal: self.should_exit.set()
    handle_ttin = handle_ttou = handle_hup

    def keep_subprocess_alive(self):
        for i, process in enumerate(self.processes):
            if self.should_exit.is_set() or process.is_alive(self.config.settings.hang_timeout): continue
            process.kill()
            process.join()
            note = self.config.board.read(process.pid)
            self.config.board.forget(process.pid)
            if process.exitcode == STARTUP_FAILURE and not self.announced: self._give_up(note)
            elif time.monotonic() - process.begun > PAUSE:
                if note.error: print(f'fashion_serve: a process could not start again: {note.error}', flush=True)
                self.processes[i] = self._start()

    def _give_up(self, note: Note):
        self.error = FashionError(note.error or 'a process of the service could not start')
        self.should_exit.set()

    def _announce(self):
        "Once, when all workers are ready"
        if self.announced: return
        notes = [self.config.board.read(process.pid) for process in self.processes]
        if not all(note.ready for note in notes): return
        self.announced = True
        print(f'fashion_serve: {", ".join(notes[0].models)} ready at {address(self.sockets[0])}', flush=True)


def address(sock: socket.socket) -> str:
    "Where a browser on this machine finds the page"
    host, port = sock.getsockname()[:2]
    host = {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host)
    return f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'
