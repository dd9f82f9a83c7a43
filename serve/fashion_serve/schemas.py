"What goes in and out, typed; OpenAPI is made from these"
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fashion_nbdev.core import LABELS
from fashion_nbdev.formats import ImageLimits
from fashion_serve.errors import PROBLEMS, problem_body

Probability = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]
Lang = Literal['en', 'ru']


def shown(*examples: dict) -> ConfigDict:
    "With these examples in OpenAPI"
    return ConfigDict(json_schema_extra={'examples': [*examples]})


REQUEST_ID, VERSION = '6f1c0d0f5e0a4c7d9b6f0c6c1f2f4a11', '0f3c5a9d21be'
_NAMES = {label.key: label.en for label in LABELS['fashion_mnist']}
_ANSWER = {'model': 'fashion_mnist', 'version': VERSION, 'predictions': [
    {'label': key, 'name': _NAMES[key], 'probability': chance} for key, chance in (('ankle_boot', .982), ('sneaker', .015), ('sandal', .002))]}
_TIMES = {'queue': .05, 'decode': .2, 'infer': .6}
_MODEL = {
    'name': 'fashion_mnist', 'version': VERSION, 'default': True, 'height': 28, 'width': 28, 'channels': 1, 'resize': 'fashion_mnist',
    'labels': [label._asdict() for label in LABELS['fashion_mnist']], 'metrics': {'split': 'test', 'n': 10_000, 'accuracy': .95}, 'data_hash': '9d1cd9de9abc', 'created': '2026-01-31T12:00:00+00:00', 'licences': {'data': 'MIT'}, 'provider': 'cpu'}


class PredictQuery(BaseModel):
    "The parameters of a prediction"
    model_config = ConfigDict(extra='forbid')
    model: str | None = Field(None, description='name of a model in /v1/models; unset: the default one', examples=['fashion_mnist'])
    top_k: int | None = Field(None, ge=1, le=1000, description='how many labels to answer, at most all that the model has; unset: three, or all if there are fewer')
    lang: Lang = Field('en', description='language of the names')


class Ranked(BaseModel):
    "One label and how likely it is"
    label: str = Field(description='stable key, the one to compare in programs')
    name: str = Field(description='name in the language asked for')
    probability: Probability


class Timing(BaseModel):
    "Where the milliseconds went"
    read: Milliseconds = Field(description='the request body coming in')
    queue: Milliseconds = Field(description='waiting for a free thread')
    decode: Milliseconds = Field(description='bytes to the array the model takes')
    infer: Milliseconds = Field(description='the model')
    total: Milliseconds


class PredictionOut(BaseModel):
    "The labels of one picture, most likely first"
    model_config = shown({'request_id': REQUEST_ID, **_ANSWER, 'timing_ms': {'read': .1, **_TIMES, 'total': 1.0}})
    request_id: str
    model: str
    version: str = Field(description="first 12 hexadecimal digits of the model's content hash")
    predictions: list[Ranked]
    timing_ms: Timing


class BatchTiming(BaseModel):
    "Where the milliseconds of one picture of a batch went"
    queue: Milliseconds = Field(description='waiting for a free thread')
    decode: Milliseconds = Field(description='bytes to the array the model takes')
    infer: Milliseconds = Field(description='the model')


class LabelOut(BaseModel):
    "A label in both languages"
    key: str
    en: str
    ru: str


class ModelOut(BaseModel):
    "A model as its file describes it"
    model_config = shown(_MODEL)
    name: str
    version: str
    default: bool = Field(description='answers when a request names no model')
    height: int = Field(description='pixels')
    width: int = Field(description='pixels')
    channels: Literal[1, 3] = Field(description='1 grey, 3 colour')
    resize: str = Field(description='how a picture comes to that size')
    labels: list[LabelOut]
    metrics: dict = Field(description='measured on the test split')
    data_hash: str
    created: str
    licences: dict | list | str
    provider: str = Field(description='what runs it', examples=['cpu'])


class TrialOut(BaseModel):
    "A candidate that is being tried"
    model_config = shown({'model': 'fashion_mnist', 'version': VERSION, 'share': .1, 'shadow': False})
    model: str
    version: str = Field(description='of the candidate')
    share: float = Field(description='of the requests')
    shadow: bool = Field(description='its answers are compared and thrown away')


class LimitsOut(BaseModel):
    "The largest picture that is taken"
    max_bytes: int
    max_pixels: int
    max_webp_pixels: int
    max_side: int


class ModelList(BaseModel):
    "The models there are"
    model_config = shown({'default': 'fashion_mnist', 'models': [_MODEL], 'limits': {name: getattr(ImageLimits(), name) for name in LimitsOut.model_fields}})
    default: str
    models: list[ModelOut]
    limits: LimitsOut


class Status(BaseModel):
    "A short word"
    model_config = shown({'status': 'ok'})
    status: Literal['ok', 'ready']


class ProblemOut(BaseModel):
    "An error (RFC 9457)"
    type: str = Field(description='address of the description of this kind of problem', examples=['/problems/unsupported_format'])
    title: str = Field(description='the kind, in words', examples=['Not a picture of a supported format'])
    status: int = Field(examples=[415])
    detail: str = Field(description='what was wrong this time', examples=['not a JPEG, PNG, WebP, GIF or BMP picture'])
    code: str = Field(description='the kind, stable: compare this one', examples=['unsupported_format'])
    request_id: str = Field(examples=['6f1c0d0f5e0a4c7d9b6f0c6c1f2f4a11'])


class BatchLine(BaseModel):
    "One line of the answer to a batch: the labels of a picture, or the problem with it"
    model_config = shown({'index': 0, **_ANSWER, 'timing_ms': _TIMES}, {'index': 1, 'problem': problem_body('corrupt', 'the file ends early', REQUEST_ID)})
    index: int = Field(ge=0, description='of the picture, in the order they were sent')
    model: str | None = None
    version: str | None = None
    predictions: list[Ranked] | None = None
    timing_ms: BatchTiming | None = None
    problem: ProblemOut | None = None


class ProblemKind(BaseModel):
    "A kind of problem"
    model_config = shown({'code': 'corrupt', **PROBLEMS['corrupt']._asdict()})
    code: str
    status: int
    title: str
