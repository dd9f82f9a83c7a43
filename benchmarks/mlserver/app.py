"The shipped model behind MLServer, set as its documentation advises for two cores: two parallel workers"
import base64
import json
import os

from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from fashion_nbdev.predict import Predictor


class Classify(MLModel):
    async def load(self) -> bool:
        self.predictor = Predictor.load(os.environ['MODEL'])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        found = self.predictor.predict(base64.b64decode(payload.inputs[0].data[0]))
        scores = json.dumps([score._asdict() for score in found.top])
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output('predictions', [scores])])
