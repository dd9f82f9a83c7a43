"What can be set: arguments of `fashion_serve`, or environment variables such as FASHION_PORT"
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from fashion_nbdev.core import ConfigError, usable_cores
from fashion_nbdev.formats import ImageLimits


class Settings(BaseSettings):
    "Settings of the service; a value passed in wins over its FASHION_... variable, which wins over the default"
    model_config = SettingsConfigDict(env_prefix='FASHION_', env_ignore_empty=True, extra='ignore', frozen=True)

    host: str = Field('127.0.0.1', min_length=1, description='address to listen on; 0.0.0.0 for every network')
    port: int = Field(8000, ge=0, le=65_535, description='port to listen on; 0 takes any free one')
    models_dir: Path | None = Field(None, description='folder of .onnx files; unset: the models that are shipped')
    default_model: str | None = Field(None, description='model that answers when a request names none')
    provider: Literal['cpu', 'openvino', 'cuda', 'tensorrt', 'auto'] = Field('cpu', description='what runs the models; auto: the best that works')
    workers: int = Field(default_factory=usable_cores, ge=1, le=256, description='processes that answer; unset: the cores usable')
    threads: int = Field(1, ge=1, le=256, description='pictures that each of them works on at once')
    keys_file: Path | None = Field(None, description="file of lines 'name sha256 [rate]': who may ask, and about how many pictures; unset or empty: everybody")
    otlp_endpoint: str = Field('', description='where traces are sent, such as http://127.0.0.1:4318/v1/traces; unset: nowhere')
    admin_key_sha256: str = Field('', pattern='^([0-9a-f]{64})?$', description='SHA-256 of the key that may exchange models; unset: any program on this machine may')
    watch: bool = Field(True, description='reload a model when its file is exchanged')
    hang_timeout: float = Field(3, ge=.5, le=3600, description='seconds after which a process that is stuck is replaced')
    deadline: float = Field(.25, gt=0, le=60, description='seconds in which a picture is answered, from its arrival; one that would come later is refused')
    log_share: float = Field(1, ge=0, le=1, description='share of the requests that are logged; our own mistakes always are')
    batch_deadline: float = Field(24, gt=0, le=3600, description='likewise for all pictures of a batch')
    max_bytes: int = Field(10_000_000, ge=1, description='largest picture file, in bytes')
    max_batch: int = Field(64, ge=1, le=10_000, description='pictures of a batch')
    max_batch_bytes: int = Field(40_000_000, ge=1, description='all pictures of a batch, in bytes')
    max_pending_bytes: int = Field(64_000_000, ge=1, description='bytes of requests that a process holds at once; what would exceed them is refused')
    max_pixels: int = Field(25_000_000, ge=1, description='largest picture, width x height')
    max_side: int = Field(12_000, ge=1, description='longest side of a picture, in pixels')
    read_timeout: float = Field(10, gt=0, le=3600, description='seconds that the headers of a request may take to come, and its body likewise')

    @property
    def limits(self) -> ImageLimits:
        "The same limits as the decoder wants them"
        return ImageLimits(max_bytes=self.max_bytes, max_pixels=self.max_pixels, max_side=self.max_side)


def load_settings(**given) -> Settings:
    "`Settings` from the arguments that are not None and the environment; raises `ConfigError` with one line"
    given = {k: v for k, v in given.items() if v is not None}
    try: return Settings(**given)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        name = str(first['loc'][0])
        shown = f'--{name}' if name in given else f'FASHION_{name.upper()}'
        said = f'is {first["input"]!r}' if name != 'admin_key_sha256' else 'cannot be that' # a key itself, given by mistake, is not for a log
        raise ConfigError(f'{shown} {said}: {first["msg"]}') from None
