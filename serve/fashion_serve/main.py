"Puts the app together: `create_app`, for the workers, for tests and for other servers"
import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from fashion_nbdev import __version__
from fashion_serve.engine import Engine
from fashion_serve.errors import add_error_handlers
from fashion_serve.middleware import Edge
from fashion_serve.openapi import add_openapi
from fashion_serve.routes import PAGE, rest, v1
from fashion_serve.settings import Settings

ABOUT = 'Send a photograph of a garment, get its category and how sure that is.'


@asynccontextmanager
async def lifespan(app: FastAPI):
    "Load the models beside the first requests: /livez answers at once, /readyz when they can be used"
    loading = asyncio.create_task(app.state.engine.start())
    yield
    await loading
    app.state.engine.stop()


def create_app(settings: Settings) -> FastAPI:
    "The service with these settings"
    app = FastAPI(title='fashion_nbdev', version=__version__, description=ABOUT, lifespan=lifespan,
                  docs_url=None, redoc_url=None, redirect_slashes=False, generate_unique_id_function=lambda route: route.name)
    app.state.engine = Engine(settings)
    app.add_middleware(Edge)
    add_error_handlers(app)
    app.include_router(v1)
    app.include_router(rest)
    app.mount('/page', StaticFiles(directory=PAGE))
    add_openapi(app)
    return app
