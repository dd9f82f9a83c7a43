"The shipped model behind Ray Serve, set as its documentation advises for two cores: two replicas, its options for throughput"
import os
import time

import ray
from ray import serve
from starlette.requests import Request

from fashion_nbdev.predict import Predictor

BATCH = int(os.environ.get('BATCH', 1))


@serve.deployment(num_replicas=2, max_ongoing_requests=16, ray_actor_options=dict(num_cpus=0.9))
class Classify:
    def __init__(self, model: str): self.predictor = Predictor.load(model)
    async def __call__(self, request: Request) -> dict:
        data = await request.body()
        found = await self.several(data) if BATCH > 1 else self.predictor.predict(data)
        return dict(predictions=[score._asdict() for score in found.top])
    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=.002)
    async def several(self, data: list[bytes]) -> list: return self.predictor.predict(data)


if __name__ == '__main__':
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options=dict(host='127.0.0.1', port=int(os.environ['PORT'])))
    serve.run(Classify.bind(os.environ['MODEL']), route_prefix='/v1/predict')
    while True: time.sleep(60)
