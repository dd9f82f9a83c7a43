"What goes in and out in the Open Inference Protocol, typed: what comes as msgspec decodes it, answers for OpenAPI alone"
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from pydantic import BaseModel, Field

from fashion_nbdev import __version__
from fashion_nbdev.core import LABELS
from fashion_serve.schemas import VERSION, shown

MAX_IMAGES = 64 # of one request
MAX_JSON = 1_000_000 # bytes; while it is read nobody else is answered, and millions of numbers in nested lists take most of a second
OUTPUTS = 'logits', 'probabilities'
_SHAPE, _LABELS = [1, 28, 28, 1], LABELS['fashion_mnist']
EXAMPLE = {
    'id': 'mine', 'inputs': [{'name': 'image', 'datatype': 'UINT8', 'shape': _SHAPE, 'data': [0] * 28 * 28}],
    'outputs': [{'name': 'probabilities', 'parameters': {'classification': 2}}]} # of a request


class Named(msgspec.Struct):
    "What inputs and outputs have in common"
    name: str
    parameters: dict[str, Any] | None = None
    def __post_init__(self): self.parameters = self.parameters or {} # null is as good as nothing


class InferInput(Named, kw_only=True):
    "The images"
    name: Annotated[str, Meta(extra_json_schema={'const': 'image'})] # told only, as all such: what is wrong is said in better words where it is used
    datatype: Annotated[str, Meta(extra_json_schema={'const': 'UINT8'})]
    shape: Annotated[list[int], Meta(description=f'images (1 to {MAX_IMAGES}), height, width and channels of the model')]
    data: Annotated[list | None, Meta(description='flat, or nested as the shape is; none if they are bytes behind the JSON')] = None


class InferRequestedOutput(Named, kw_only=True):
    "An output, and how it shall come"
    name: Annotated[str, Meta(extra_json_schema={'enum': [*OUTPUTS]})]


class InferRequest(msgspec.Struct):
    "Images, and what shall be answered"
    inputs: list[InferInput]
    id: str | None = None
    outputs: Annotated[list[InferRequestedOutput] | None, Meta(description='all that the model has, if not given')] = None
    parameters: dict[str, Any] | None = None
    def __post_init__(self): self.outputs, self.parameters = self.outputs or [], self.parameters or {}


class OutputTensor(BaseModel):
    "An output"
    name: Literal[OUTPUTS]
    datatype: Literal['FP32', 'BYTES']
    shape: list[int]
    data: list[float] | list[str] | None = Field(None, description="numbers, or 'value:index:label' of the classes ranked first; none if they are bytes behind the JSON")
    parameters: dict | None = None


class InferAnswer(BaseModel):
    "Logits, probabilities or the classes ranked first"
    model_config = shown({'model_name': 'fashion_mnist', 'model_version': VERSION, 'id': EXAMPLE['id'], 'outputs': [
        {'name': 'probabilities', 'datatype': 'BYTES', 'shape': [1, 2], 'data': [f'{chance:.6f}:{i}:{_LABELS[i].key}' for i, chance in ((8, .971), (3, .012))]}]})
    model_name: str
    model_version: str
    id: str | None = Field(None, description='that of the request')
    outputs: list[OutputTensor]


class TensorOut(BaseModel):
    "What a tensor looks like; -1 is any number of images"
    name: str
    datatype: str
    shape: list[int]


class MetadataOut(BaseModel):
    "Inputs and outputs of a model"
    model_config = shown({
        'name': 'fashion_mnist', 'versions': [VERSION], 'platform': 'onnxruntime_onnx', 'inputs': [{'name': 'image', 'datatype': 'UINT8', 'shape': [-1, *_SHAPE[1:]]}],
        'outputs': [{'name': name, 'datatype': 'FP32', 'shape': [-1, len(_LABELS)]} for name in OUTPUTS]})
    name: str
    versions: list[str]
    platform: Literal['onnxruntime_onnx', 'openvino']
    inputs: list[TensorOut]
    outputs: list[TensorOut]


class ServerOut(BaseModel):
    "The server"
    model_config = shown({'name': 'fashion_nbdev', 'version': __version__, 'extensions': ['binary_tensor_data', 'classification']})
    name: str
    version: str
    extensions: list[str]


class LiveOut(BaseModel):
    "The process is alive"
    model_config = shown({'live': True})
    live: bool


class ReadyOut(BaseModel):
    "A tensor would be answered"
    model_config = shown({'ready': True})
    ready: bool


class ModelReadyOut(BaseModel):
    "This model would answer"
    model_config = shown({'name': 'fashion_mnist', 'ready': True})
    name: str
    ready: bool
