"A folder that the processes of one service share: each says there how it is, and all read there which models shall answer"
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock

from fashion_nbdev.core import write_beside


class Note(msgspec.Struct):
    "What a worker says of itself"
    ready: bool = False
    models: list[str] = []
    generation: int = 0 # of the plan that it follows
    error: str = ''


class TrialPlan(msgspec.Struct):
    "A candidate that shall be tried"
    version: str
    share: float # of the requests
    shadow: bool # its answers are compared and thrown away


class Plan(msgspec.Struct):
    "Versions that shall answer: those of the files that were there at the start, until they are exchanged"
    generation: int = 0
    models: dict[str, str] = {} # name -> version
    trials: dict[str, TrialPlan] = {} # name -> candidate


def _write(path: Path, data: bytes):
    with write_beside(path) as tmp: tmp.write_bytes(data)


class Board:
    "Made by the process that starts the workers, gone with it"
    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.metrics = self.folder / 'metrics' # what Prometheus' client counts in every process
        self.counter: int | None = None # the open file with this worker's connections

    # ---- the workers
    def _note(self, pid: int) -> Path: return self.folder / f'worker-{pid}.json'

    def publish(self, note: Note):
        "Say how this process is"
        _write(self._note(os.getpid()), msgspec.json.encode(note))

    def read(self, pid: int) -> Note:
        "What a process has said last"
        try: return msgspec.json.decode(self._note(pid).read_bytes(), type=Note)
        except FileNotFoundError: return Note()

    def forget(self, pid: int):
        "A process has ended"
        for file in self._note(pid), self.folder / f'connections-{pid}': file.unlink(missing_ok=True)
        for gauge in self.metrics.glob(f'gauge_live*_{pid}.db'): gauge.unlink(missing_ok=True) # as prometheus_client's mark_process_dead, which this process need not load

    # ---- their connections, read at each new one: each writes its own number, all read the others'
    def say_busy(self, connections: int):
        "How many connections this worker has"
        if self.counter is None: self.counter = os.open(self.folder / f'connections-{os.getpid()}', os.O_RDWR | os.O_CREAT)
        os.pwrite(self.counter, connections.to_bytes(4, 'little'), 0)

    def least_busy(self) -> int:
        "The fewest connections that any worker has"
        return min((int.from_bytes(file.read_bytes(), 'little') for file in self.folder.glob('connections-*')), default=0)

    def pids(self) -> list[int]:
        "The workers that have said how they are"
        return sorted(int(note.stem.partition('-')[2]) for note in self.folder.glob('worker-*.json'))

    def stop(self):
        "The service ends: all of its workers, not one that is replaced"
        (self.folder / 'stopping').touch()

    def is_stopping(self) -> bool: return (self.folder / 'stopping').exists()

    def processes(self) -> list[int]:
        "This worker, the others, and the one that started them"
        return sorted({os.getpid(), *self.pids()} | ({os.getppid()} if self.pids() else set()))

    def is_first(self) -> bool:
        "Whether this worker does what one has to do for all"
        return self.pids()[:1] == [os.getpid()]

    @contextmanager
    def alone(self) -> Iterator[None]:
        "One thread of all workers at a time, for what takes much memory; raises `Timeout` if another one is at it"
        with FileLock(self.folder / 'alone', timeout=0): yield

    # ---- the models
    def file(self, version: str) -> Path: return self.folder / f'{version}.onnx'

    def keep(self, version: str, data: bytes):
        "Lay a verified model file where all workers find it, whatever becomes of the original"
        if not self.file(version).is_file(): _write(self.file(version), data)

    def plan(self) -> Plan:
        try: return msgspec.json.decode((self.folder / 'plan.json').read_bytes(), type=Plan)
        except FileNotFoundError: return Plan()

    @contextmanager
    def editing(self) -> Iterator[Plan]:
        "The plan, written when it has been changed; one worker at a time"
        with self._locked():
            yield (plan := self.plan())
            plan.generation += 1
            _write(self.folder / 'plan.json', msgspec.json.encode(plan))

    def _locked(self) -> FileLock: return FileLock(self.folder / 'lock', timeout=10)

    def tidy(self):
        "Remove the files of versions that nobody shall answer with any more"
        with self._locked():
            plan = self.plan()
            kept = {*plan.models.values(), *(trial.version for trial in plan.trials.values())}
            for file in self.folder.glob('*.onnx'):
                if file.stem not in kept: file.unlink()

    # ---- the files in the models folder, as the worker that looks after them has seen them last
    def seen(self) -> dict[str, list]:
        try: return msgspec.json.decode((self.folder / 'seen.json').read_bytes())
        except FileNotFoundError: return {}

    def see(self, stamps: dict[str, list]): _write(self.folder / 'seen.json', msgspec.json.encode(stamps))

    def all_follow(self, generation: int) -> bool:
        "Whether every worker has come as far as this plan"
        return all(self.read(pid).generation >= generation for pid in self.pids())
