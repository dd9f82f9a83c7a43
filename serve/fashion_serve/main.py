"Puts the app together: `create_app`, for the workers, for tests and for other servers"
import asyncio
import tempfile
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from fashion_nbdev import __version__
from fashion_serve.admin import admin
from fashion_serve.board import Board
from fashion_serve.engine import Engine
from fashion_serve.errors import add_error_handlers
from fashion_serve.hot import HotPath
from fashion_serve.inference import v2
from fashion_serve.keys import Keeper, read_keys
from fashion_serve.logs import RequestLog
from fashion_serve.metrics import observe
from fashion_serve.middleware import Edge
from fashion_serve.openapi import add_openapi
from fashion_serve.registry import Registry
from fashion_serve.routes import PAGE, rest, v1
from fashion_serve.settings import Settings
from fashion_serve.tracing import Traces

ABOUT = 'Send a photograph of a garment, get its category and how sure that is.'


@asynccontextmanager
async def lifespan(app: FastAPI):
    "Load the models beside the first requests: /livez answers at once, /readyz when they can be used"
    loading = asyncio.create_task(app.state.engine.start())
    yield
    await loading
    app.state.engine.stop()
    app.state.log.close()
    await asyncio.to_thread(app.state.traces.close) # last, for it may wait; and not here, where it would look as if the process were stuck


def create_app(settings: Settings, board: Board | None = None) -> FastAPI:
    "The service with these settings; workers share a board, an app on its own has one for itself"
    board = board or _own_board()
    app = FastAPI(title='fashion_nbdev', version=__version__, description=ABOUT, lifespan=lifespan,
                  docs_url=None, redoc_url=None, redirect_slashes=False, generate_unique_id_function=lambda route: route.name)
    app.state.engine, app.state.board, app.state.log = Engine(settings, Registry(settings, board)), board, RequestLog(settings.log_share)
    app.state.keeper, app.state.traces = Keeper(read_keys(settings.keys_file), board.folder), Traces(settings.otlp_endpoint)
    app.add_middleware(HotPath)
    app.state.done = lambda record: (observe(record), app.state.log.write(record), app.state.traces.send(record))
    app.add_middleware(Edge, done=app.state.done)
    add_error_handlers(app)
    app.include_router(v1)
    app.include_router(admin)
    app.include_router(v2)
    app.include_router(rest)
    app.mount('/page', StaticFiles(directory=PAGE))
    add_openapi(app)
    return app


def _own_board() -> Board:
    folder = tempfile.TemporaryDirectory(prefix='fashion_serve-')
    board = Board(folder.name)
    board.own = folder # goes when the board goes
    return board
