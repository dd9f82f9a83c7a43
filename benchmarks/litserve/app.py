"The shipped model behind LitServe, set as its documentation advises for two cores: two workers and the fast queue"
import os
from typing import Annotated

import litserve as ls
from fastapi import Body

from fashion_nbdev.predict import Predictor

BATCH = int(os.environ.get('BATCH', 1))


class Classify(ls.LitAPI):
    def setup(self, device): self.predictor = Predictor.load(os.environ['MODEL'])
    def decode_request(self, request: Annotated[bytes, Body(media_type='application/octet-stream')]): return request
    def predict(self, data): return self.predictor.predict(data) # one picture, or the list of a batch
    def encode_response(self, found): return dict(predictions=[score._asdict() for score in found.top])


if __name__ == '__main__':
    server = ls.LitServer(Classify(api_path='/v1/predict', max_batch_size=BATCH, batch_timeout=.002*(BATCH > 1)), accelerator='cpu', workers_per_device=2, fast_queue=True)
    server.run(host='127.0.0.1', port=int(os.environ['PORT']), num_api_servers=int(os.environ['API_SERVERS']), generate_client_file=False, log_level='warning')
