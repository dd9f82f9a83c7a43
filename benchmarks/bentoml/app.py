"The shipped model behind BentoML, set as its documentation advises for two cores: two workers"
import os

import bentoml

from fashion_nbdev.predict import Predictor

BATCH = int(os.environ.get('BATCH', 1))


@bentoml.service(workers=2, traffic=dict(timeout=10), http=dict(host='127.0.0.1', port=int(os.environ['PORT'])), logging=dict(access=dict(enabled=False)), metrics=dict(enabled=False))
class Classify:
    def __init__(self): self.predictor = Predictor.load(os.environ['MODEL'])

    @bentoml.api(route='/v1/one')
    def one(self, data: bytes, /) -> dict: return dict(predictions=[score._asdict() for score in self.predictor.predict(data).top])

    @bentoml.api(route='/v1/several', batchable=True, max_batch_size=BATCH, max_latency_ms=1000)
    def several(self, data: list[bytes], /) -> list[dict]: return [dict(predictions=[score._asdict() for score in found.top]) for found in self.predictor.predict(data)]
