"A folder that the processes of one service share: each says there how it is, in a small file of its own"
import json
import os
from pathlib import Path

from fashion_nbdev.core import write_beside


class Board:
    "Notes of the workers; made by the process that starts them, gone with it"
    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.metrics = self.folder / 'metrics' # what Prometheus' client counts in every process

    def _note(self, pid: int) -> Path: return self.folder / f'worker-{pid}.json'

    def publish(self, **state):
        "Say how this process is"
        with write_beside(self._note(os.getpid())) as tmp: tmp.write_text(json.dumps(state))

    def read(self, pid: int) -> dict:
        "What a process has said last; {} before it has said anything"
        try: return json.loads(self._note(pid).read_text())
        except FileNotFoundError: return {}

    def forget(self, pid: int):
        "A process has ended"
        self._note(pid).unlink(missing_ok=True)
        for gauge in self.metrics.glob(f'gauge_live*_{pid}.db'): gauge.unlink(missing_ok=True) # as prometheus_client's mark_process_dead, which this process need not load

    def pids(self) -> list[int]:
        "The workers that have said how they are"
        return [int(note.stem.partition('-')[2]) for note in self.folder.glob('worker-*.json')]
