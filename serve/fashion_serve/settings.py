"What can be set: arguments of `fashion_serve`, or environment variables such as FASHION_PORT"
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from fashion_nbdev.core import ConfigError
from fashion_nbdev.image import ImageLimits


class Settings(BaseSettings):
    "Settings of the service; a value passed in wins over its FASHION_... variable, which wins over the default"
    model_config = SettingsConfigDict(env_prefix='FASHION_', extra='ignore', frozen=True)

    host: str = Field('127.0.0.1', min_length=1, description='address to listen on; 0.0.0.0 for every network')
    port: int = Field(8000, ge=0, le=65_535, description='port to listen on; 0 takes any free one')
    models_dir: Path | None = Field(None, description='folder of .onnx files; unset: the models that are shipped')
    default_model: str | None = Field(None, description='model that answers when a request names none')
    threads: int | None = Field(None, ge=1, le=256, description='pictures worked on at once; unset: the cores usable')
    deadline: float = Field(.25, gt=0, le=60, description='seconds in which a picture is answered, from its arrival; one that would come later is refused')
    max_bytes: int = Field(10_000_000, ge=1, description='largest picture file, in bytes')
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
        raise ConfigError(f'{shown} is {first["input"]!r}: {first["msg"]}') from None
