"""``evo serve CHECKPOINT``: an OpenAI-compatible HTTP API and a page, for one model."""

from __future__ import annotations

import argparse
import math
import signal
import socket
import sys
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

from evo_core.errors import CheckpointError, ConfigError
from evo_core.job import command
from evo_core.process import stop_signals
from evo_core.storage.location import local_path

if TYPE_CHECKING:
    from evo_core.serve.service import Service

_GRACE_SECONDS = 5
_BACKLOG = 2048


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="evo serve", description=__doc__)
    result.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a folder of them (the newest)")
    result.add_argument("--host", default="127.0.0.1", help="address to listen at; default this machine alone")
    result.add_argument("--port", type=int, default=8000, help="0 takes any free one; default 8000")
    result.add_argument("--device", help="cpu, cuda, cuda:1, ...; default a GPU where there is one")
    result.add_argument("--dtype", help="type of the weights; default as trained")
    result.add_argument("--name", help="what clients call the model; default the checkpoint's folder")
    result.add_argument("--max-batch", type=int, default=16, metavar="N", help="continuations at a time; default 16")
    result.add_argument(
        "--max-length",
        type=int,
        metavar="TOKENS",
        help="tokens of prompt and continuation together; default four times the trained length, up to 16384",
    )
    result.add_argument(
        "--max-body", type=float, default=4, metavar="MIB", help="size of a request's body, MiB; default 4"
    )
    result.add_argument(
        "--request-timeout",
        type=float,
        default=10,
        metavar="SECONDS",
        help="a connection whose request has not come as a whole by then is dropped; default 10",
    )
    result.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that requests may call this server by, besides localhost; may be repeated. Where --host is not "
        "this machine alone and none is given, every name may be used",
    )
    result.add_argument("--allow-non-finite", action="store_true", help="serve weights that are NaN or infinite too")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model and serve it until SIGINT, SIGTERM or SIGHUP; then exits with 128 + the signal's number."""
    arguments = parser().parse_args(argv)
    with command("evo serve"):
        _check(arguments)
        _require_fastapi()
        with listening(arguments.host, arguments.port) as listener:
            caught = serve(
                load(arguments),
                listener,
                max_body=int(arguments.max_body * 2**20),
                request_seconds=arguments.request_timeout,
                hosts=arguments.allow_host,
            )
    if caught is not None:
        sys.exit(128 + caught)


def _check(arguments: argparse.Namespace) -> None:
    local_path(arguments.checkpoint, "CHECKPOINT")
    for name in ("max_batch", "max_length"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"{value} must be 1 or more", key=f"--{name.replace('_', '-')}")
    for name in ("max_body", "request_timeout"):
        if not 0 < (value := getattr(arguments, name)) < math.inf:
            raise ConfigError(f"{value} must be a number above 0", key=f"--{name.replace('_', '-')}")
    if not 0 <= arguments.port < 2**16:
        raise ConfigError(f"{arguments.port} is no port: they go from 0 (any free one) to 65535", key="--port")


def listening(host: str, port: int) -> socket.socket:
    """A socket that has the address; taken before the model is loaded, which may take minutes.

    Raises:
        ConfigError: the address is not to be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"there is no such address: {host!r} ({error})", key="--host") from None
    listener = socket.socket(found[0], found[1])
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[4])
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        hint = "is another server there? choose --port, or 0 for any free one"
        raise ConfigError(f"cannot listen at {host}:{port}: {reason}", key="--port", hint=hint) from None
    return listener


def load(arguments: argparse.Namespace) -> Service:
    """The service that a command line describes.

    Raises:
        CheckpointError, ConfigError: there is no such checkpoint, or it cannot generate text.
    """
    import torch

    from evo_core.generate.continuation import check_model
    from evo_core.model.dtypes import torch_dtype
    from evo_core.serve.service import Service
    from evo_core.weights.loading import load_model

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch_dtype(arguments.dtype) if arguments.dtype else None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"{device}: there is no such device here ({error})", key="--device") from None
    allowed = arguments.allow_non_finite
    model, tokenizer = load_model(arguments.checkpoint, device, dtype, allow_non_finite=allowed)
    if tokenizer is None:
        raise CheckpointError("holds no tokenizer: texts can be neither read nor written", file=arguments.checkpoint)
    name = arguments.name or local_path(arguments.checkpoint).absolute().name
    return Service(check_model(model), tokenizer, name, max_batch=arguments.max_batch, max_length=arguments.max_length)


def serve(
    service: Service, listener: socket.socket, *, max_body: int, request_seconds: float, hosts: Collection[str] = ()
) -> int | None:
    """Serve until a signal.

    Args:
        listener: where requests come in.
        max_body: bytes of a request's body.
        request_seconds: how long a request may take to come.
        hosts: names by which requests may call the server, besides this machine's own.

    Returns:
        The signal's number.
    """
    import uvicorn

    from evo_core.serve.api import create_app
    from evo_core.serve.guard import Connection, is_loopback

    address, port = listener.getsockname()[:2]
    alone = is_loopback(address)

    class Timed(Connection):
        """A connection with this server's patience."""

    Timed.request_seconds = request_seconds

    class Server(uvicorn.Server):
        """Ends on the first signal: texts in the making are ended with an error, and the sockets closed."""

        caught: int | None = None
        mute: OSError | None = None

        def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
            for number in stop_signals():
                signal.signal(number, self.stop)
            return nullcontext()

        def stop(self, number: int, frame: FrameType | None) -> None:
            self.force_exit = self.caught is not None
            self.caught, self.should_exit = number, True
            service.engine.close(wait=False)

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                shown = f"[{address}]" if ":" in address else address
                try:
                    print(_greeting(service, address, f"http://{shown}:{port}", alone), flush=True)
                except OSError as error:  # nobody would learn where it listens
                    self.mute, self.should_exit = error, True
                    await self.shutdown(sockets)

    config = uvicorn.Config(
        create_app(service, max_body=max_body, hosts=hosts if alone or hosts else None),
        http=Timed,
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = Server(config)
    server.run(sockets=[listener])
    if server.mute is not None:
        raise server.mute
    print("stopped", flush=True)
    return server.caught


def _greeting(service: Service, host: str, url: str, alone: bool) -> str:
    lines = [f"{service.name}: {url} (API: {url}/v1)"]
    if not alone:
        lines.append(f"warning: {host} is open to other machines, and there are no passwords")
    form = service.chat.template or "none beside the tokenizer: <|User|>:… <|Bot|>:…"
    lines.append(f"chat template: {form}; up to {service.max_length} tokens a text; Ctrl-C stops")
    return "\n".join(lines)


def _require_fastapi() -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"serving needs fastapi and uvicorn ({error})", hint="pip install fastapi uvicorn") from None
