"The command `fashion_serve`"
import os
import socket
import sys
import tempfile

from fashion_nbdev.core import ConfigError, command
from fashion_serve.settings import load_settings
from fashion_serve.supervisor import Supervisor
from fashion_serve.worker import ServeConfig


def bind(host: str, port: int) -> socket.socket:
    "A listening address, or a `ConfigError` that says why not"
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(2048) # a second service on the same port must fail here, not later
        return sock
    except OSError as e:
        raise ConfigError(f'cannot listen on {host} port {port} ({e.strerror}): choose others with --host and --port') from None


@command
def fashion_serve(
    host: str = None, # address to listen on (default 127.0.0.1; 0.0.0.0 for every network)
    port: int = None, # port to listen on (default 8000; 0 takes any free one)
    models_dir: str = None, # folder of .onnx files (default: the models that are shipped)
    default_model: str = None, # model that answers when a request names none (default: clothing, else the first)
    provider: str = None, # what runs the models: cpu, openvino, cuda, tensorrt, or auto for the best that works (default cpu)
    workers: int = None, # processes that answer (default: the cores usable)
    threads: int = None, # pictures that each of them works on at once (default: 1)
):
    "Serve the models and the page over HTTP; FASHION_HOST, FASHION_PORT, ... set the same"
    settings = load_settings(host=host, port=port, models_dir=models_dir, default_model=default_model, provider=provider, workers=workers, threads=threads)
    with bind(settings.host, settings.port) as sock, tempfile.TemporaryDirectory(prefix='fashion_serve-') as board:
        config = ServeConfig(settings, board)
        config.board.metrics.mkdir()
        os.environ.setdefault('MALLOC_MMAP_THRESHOLD_', '4000000') # glibc gives what a large picture took back at once, in every worker
        os.environ['PROMETHEUS_MULTIPROC_DIR'] = str(config.board.metrics) # read by prometheus_client in every worker
        Supervisor(config, [sock]).run()


if __name__ == '__main__': sys.exit(fashion_serve())
