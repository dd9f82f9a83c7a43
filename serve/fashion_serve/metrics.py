"What Prometheus reads: counted by every worker, added up over all of them when it asks"
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from fashion_serve.record import Record

SECONDS = (.001, .0025, .005, .01, .025, .05, .1, .2, .3, .5, 1, 2.5, 5, 10) # the SLA's 0.2 and 0.3 among them
REFUSED = 429, 503 # at once, which would make the others look quick
CHANCES = tuple(i / 20 for i in range(1, 21))

_registry = CollectorRegistry()
_own = dict(registry=_registry, namespace='fashion')
REQUESTS = Counter('requests', 'Requests answered', ('route', 'method', 'status'), **_own)
REQUEST_SECONDS = Histogram('request_seconds', 'From when a request had come to the last byte of its answer; of those that were not refused', ('route',), buckets=SECONDS, **_own)
STAGE_SECONDS = Histogram('stage_seconds', 'Time of one stage of an answer', ('stage',), buckets=SECONDS, **_own)
PROBLEMS = Counter('problems', 'Requests, and pictures of a batch, that ended in a problem', ('code',), **_own)
SHED = Counter('shed', 'Requests turned away: because of load, or sooner than their key may ask', ('reason',), **_own)
PREDICTIONS = Counter('predictions', 'Pictures answered', ('model', 'version', 'label'), **_own)
CONFIDENCE = Histogram('confidence', 'Probability of the most likely label', ('model',), buckets=CHANCES, **_own)
PICTURE_BYTES = Histogram('picture_bytes', 'Size of a picture file', buckets=(1e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7), **_own)
BATCH = Histogram('batch_pictures', 'Pictures that went through a network together', ('model',), buckets=(1, 2, 4, 8), **_own)
WAITING = Gauge('queue_pictures', 'Pictures that wait for a thread', multiprocess_mode='livesum', **_own)
WAIT = Gauge('queue_seconds', 'Estimated wait of a picture that comes now, in the fullest worker', multiprocess_mode='livemax', **_own)
READY = Gauge('workers_ready', 'Workers that are ready', multiprocess_mode='livesum', **_own)
MODEL = Gauge('model_info', 'Which version of a model answers', ('model', 'version'), multiprocess_mode='livemax', **_own)
ROLLBACKS = Counter('rollbacks', 'Candidates that were no longer tried because they did badly', ('model',), **_own)
SHADOWS = Counter('shadow_answers', 'Answers of a candidate in the shadow', ('model', 'agrees'), **_own)


@lru_cache(4096)
def series(metric: Counter | Histogram, *labels) -> Counter | Histogram:
    "The series with these labels; finding it takes longer than counting"
    return metric.labels(*labels)


def count_problem(code: str):
    "Of a request, or of one picture of a batch"
    series(PROBLEMS, code).inc()


def observe(record: Record):
    "Count one request that has ended"
    series(REQUESTS, record.route, record.method, record.status).inc()
    if record.status not in REFUSED: series(REQUEST_SECONDS, record.route).observe(record.seconds - record.stages.get('read', 0.0)) # a slow line is not ours
    for stage, seconds in record.stages.items(): series(STAGE_SECONDS, stage).observe(seconds)
    if record.code: count_problem(record.code)
    for p in record.pictures:
        series(PREDICTIONS, p.model, p.version, p.label).inc()
        series(CONFIDENCE, p.model).observe(p.probability)
        if p.size: PICTURE_BYTES.observe(p.size)


class Processes:
    "CPU, memory and open files of each process, read from /proc (nothing where there is none)"
    def __init__(self, pids): self.pids = pids

    def collect(self) -> Iterator[Metric]:
        cpu = CounterMetricFamily('process_cpu_seconds', 'Processor time used', labels=['pid'])
        memory = GaugeMetricFamily('process_resident_memory_bytes', 'Resident memory', labels=['pid'])
        files = GaugeMetricFamily('process_open_fds', 'Open files', labels=['pid'])
        for pid in self.pids():
            try:
                values = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
                open_files = len(os.listdir(f'/proc/{pid}/fd'))
            except OSError: continue
            cpu.add_metric([str(pid)], (int(values[11]) + int(values[12])) / os.sysconf('SC_CLK_TCK'))
            memory.add_metric([str(pid)], int(values[21]) * os.sysconf('SC_PAGE_SIZE'))
            files.add_metric([str(pid)], open_files)
        yield from (cpu, memory, files)


def exposition(pids) -> bytes:
    "Everything, in Prometheus' text format; `pids()` are the processes of the service"
    registry = CollectorRegistry()
    MultiProcessCollector(registry) if 'PROMETHEUS_MULTIPROC_DIR' in os.environ else registry.register(_registry)
    registry.register(Processes(pids))
    return generate_latest(registry)
