"Puts the service together: `create_app` for tests and other servers, `fashion_serve` for the command line"
import asyncio
import signal
import socket
import sys
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from fashion_nbdev import __version__
from fashion_nbdev.core import ConfigError, command
from fashion_serve.engine import Engine
from fashion_serve.errors import add_error_handlers
from fashion_serve.middleware import Edge
from fashion_serve.openapi import add_openapi
from fashion_serve.protocol import BoundedProtocol
from fashion_serve.routes import PAGE, rest, v1
from fashion_serve.settings import Settings, load_settings

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


class ServeConfig(uvicorn.Config):
    "uvicorn's configuration, with the service's own settings for the protocol"
    def __init__(self, app: FastAPI, settings: Settings):
        super().__init__(app, http=BoundedProtocol, lifespan='on', ws='none', log_level='warning', access_log=False, server_header=False,
                         timeout_keep_alive=15, timeout_graceful_shutdown=20)
        self.settings = settings


class Server(uvicorn.Server):
    "uvicorn that says where the page is once it can answer, and stops if it never will"
    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.announcing = asyncio.create_task(self.announce(sockets[0]))

    async def announce(self, sock: socket.socket):
        engine = self.config.app.state.engine
        await engine.settled.wait()
        if engine.error: self.should_exit = True
        elif not self.should_exit: print(f'fashion_serve: {", ".join(engine.models)} ready at {address(sock)}', flush=True)


def address(sock: socket.socket) -> str:
    "Where a browser on this machine finds the page"
    host, port = sock.getsockname()[:2]
    host = {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host)
    return f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'


def bind(host: str, port: int) -> socket.socket:
    "A listening address, or a `ConfigError` that says why not"
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(2048) # a second process on the same port must fail here, not later
        return sock
    except OSError as e:
        raise ConfigError(f'cannot listen on {host} port {port} ({e.strerror}): choose others with --host and --port') from None


@command
def fashion_serve(
    host: str = None, # address to listen on (default 127.0.0.1; 0.0.0.0 for every network)
    port: int = None, # port to listen on (default 8000; 0 takes any free one)
    models_dir: str = None, # folder of .onnx files (default: the models that are shipped)
    default_model: str = None, # model that answers when a request names none (default: clothing, else the first)
    threads: int = None, # pictures worked on at once (default: the cores usable)
):
    "Serve the models and the page over HTTP; FASHION_HOST, FASHION_PORT, ... set the same"
    settings = load_settings(host=host, port=port, models_dir=models_dir, default_model=default_model, threads=threads)
    app, sock = create_app(settings), bind(settings.host, settings.port)
    server = Server(ServeConfig(app, settings))
    signal.signal(signal.SIGTERM, lambda *_: None) # uvicorn raises it again after a clean stop: that is exit code 0
    server.run(sockets=[sock])
    if app.state.engine.error: raise app.state.engine.error


if __name__ == '__main__': sys.exit(fashion_serve())
