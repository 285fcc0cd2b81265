"""Loads the detector, listens, and runs until a signal stops it."""

from __future__ import annotations

import ipaddress
import math
import socket
import sys
from contextlib import closing, suppress

import uvicorn
from PIL import Image

from fcos_fast import load
from fcos_fast.data.images import to_rgb
from fcos_fast.serve.app import make_app
from fcos_fast.serve.batching import Batcher
from fcos_fast.serve.images import Decoded
from fcos_fast.serve.metrics import Metrics
from fcos_fast.serve.options import ServeOptions
from fcos_fast.text import printable

WARM_UP_SIZE = (640, 480)


def run(options: ServeOptions) -> int:
    """Serve until SIGINT or SIGTERM; requests in progress are answered first. Returns the exit status.

    Raises:
        ValueError: the address cannot be listened on.
        FileNotFoundError, ValueError: the checkpoint does not exist, or is not one.
    """
    with listen(options.host, options.port) as listener:  # first: a used port is reported at once
        detector = load(
            options.checkpoint,
            options.device,
            options.precision,
            engine=options.engine,
            threads=options.threads,
        )
        metrics = Metrics()
        with closing(Batcher(detector.predict, options, metrics)) as batcher:
            warm_up(batcher)
            classes = detector.categories.names
            if not is_loopback(options.host):
                print(
                    f"fcos-fast serve: warning: --host {options.host} lets other machines use this server, without a "
                    "password; put it behind a proxy that asks for one",
                    file=sys.stderr,
                )
            config = uvicorn.Config(
                make_app(batcher, classes, options, metrics),
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=math.ceil(options.timeout) + 1,
            )
            ready = f"{address(listener)} serves {options.checkpoint}: {printable(', '.join(classes))}"
            with suppress(KeyboardInterrupt):  # uvicorn answers what is in progress, then repeats the signal
                Server(config, ready).run(sockets=[listener])
    print("stopped")
    return 0


class Server(uvicorn.Server):
    """Prints a line when it answers, and from when a signal stops it in order."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer."""
        await super().startup(sockets)
        print(self.ready, flush=True)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Clients that connect before the detector is loaded wait.

    Raises:
        ValueError: the address is in use, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # Python repeats the address
        raise ValueError(
            f"cannot listen on --host {host} --port {port}: {reason}; --port 0 uses a free one"
        ) from error
    # Connections inherit it. Otherwise the body of an answer follows its header after the client's delayed
    # acknowledgment, 40 ms; asyncio sets it only for sockets that it creates.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def warm_up(batcher: Batcher) -> None:
    """Process an image, because the first call is slower. An error of the detector is raised here."""
    pixels = to_rgb(Image.new("RGB", WARM_UP_SIZE))
    batcher.submit(Decoded(pixels, *WARM_UP_SIZE), 0.3).result()
