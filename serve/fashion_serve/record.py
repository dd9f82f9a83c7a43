"What is known about one request, gathered while it is answered"
import time
from dataclasses import dataclass, field

STAGES = ('read', 'admit', 'queue', 'decode', 'infer', 'encode')


@dataclass(slots=True)
class Picture:
    "One picture that was answered"
    model: str
    version: str
    label: str # the most likely one
    probability: float
    size: int # bytes of its file


@dataclass(slots=True)
class Record:
    "For the log, the metrics and the trace; holds nothing of a picture but its size and its answer"
    request_id: str
    method: str
    route: str = 'other' # of ours, never the address as it was sent
    status: int = 0
    key: str = '' # the name of who asked, where keys are used
    traceparent: str = '' # the trace that the request is part of (W3C)
    code: str = '' # of the problem, if it ended in one
    begun: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict) # seconds; a batch adds up
    pictures: list[Picture] = field(default_factory=list)

    def add(self, stage: str, seconds: float):
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds
