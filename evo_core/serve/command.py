"""``evo serve CHECKPOINT``: an OpenAI-compatible HTTP API and a page, for one model."""

from __future__ import annotations

import math
import os
import signal
import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evo_core.command_line.program import plain_app, run
from evo_core.errors import CheckpointError, ConfigError
from evo_core.parallel.environment import read_rank_info
from evo_core.process import stop_signals
from evo_core.storage.location import local_path

if TYPE_CHECKING:
    from evo_core.serve.service import Service

_GRACE_SECONDS = 5
_BACKLOG = 2048


app = plain_app()


@app.command()
def serve_command(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a folder of them (the newest).")
    ],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 8000,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, … [default: a GPU where there is one]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(metavar="NAME", help="Of the weights. [default: as trained]")] = None,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model. [default: the checkpoint's folder]")
    ] = None,
    max_batch: Annotated[int, typer.Option(metavar="N", help="Continuations at a time.")] = 16,
    max_length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Of prompt and continuation together. [default: four times the trained length, up to 16384]",
        ),
    ] = None,
    max_body: Annotated[float, typer.Option(metavar="MIB", help="Size of a request's body.")] = 4,
    request_timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Drop a connection whose request has not come as a whole by then."),
    ] = 10,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name that requests may call this server by, besides localhost; repeatable. Where --host is not "
            "this machine alone and none is given, every name may be used.",
        ),
    ] = None,
    allow_non_finite: Annotated[
        bool, typer.Option("--allow-non-finite", help="Serve weights that are NaN or infinite too.")
    ] = False,
) -> None:
    """Serve a model: an OpenAI-compatible HTTP API and a page.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP end it, with 128 + the signal's number.
    """
    _refuse_ranks()
    local_path(checkpoint, "CHECKPOINT")
    _check(
        port,
        counts={"--max-batch": max_batch, "--max-length": max_length},
        sizes={"--max-body": max_body, "--request-timeout": request_timeout},
    )
    _require_fastapi()
    with listening(host, port) as listener:
        service = load(
            checkpoint,
            device=device,
            dtype=dtype,
            name=name,
            max_batch=max_batch,
            max_length=max_length,
            allow_non_finite=allow_non_finite,
        )
        caught = serve(
            service, listener, max_body=int(max_body * 2**20), request_seconds=request_timeout, hosts=allow_host or ()
        )
    if caught is not None:
        raise typer.Exit(128 + caught)


def main(words: Sequence[str] | None = None, program: str = "python -m evo_core.serve") -> None:
    """Carry out a command line; exits with 2 for a mistake of the user's, with 128 + its number after a signal."""
    run(app, words, program, name="evo serve")


def _refuse_ranks() -> None:
    """Each of several ranks would be a server of its own, at one address.

    Raises:
        ConfigError: a launcher started several.
    """
    ranks = read_rank_info(os.environ).world_size
    if ranks > 1:
        message = f"a server is one process, and {ranks} ranks were started"
        raise ConfigError(message, hint="start it without torchrun or srun, or with one task")


def _check(port: int, *, counts: Mapping[str, int | None], sizes: Mapping[str, float]) -> None:
    for option, count in counts.items():
        if count is not None and count < 1:
            raise ConfigError(f"{count} must be 1 or more", key=option)
    for option, size in sizes.items():
        if not 0 < size < math.inf:
            raise ConfigError(f"{size} must be a number above 0", key=option)
    if not 0 <= port < 2**16:
        raise ConfigError(f"{port} is no port: they go from 0 (any free one) to 65535", key="--port")


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


def load(
    checkpoint: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    name: str | None = None,
    max_batch: int = 16,
    max_length: int | None = None,
    allow_non_finite: bool = False,
) -> Service:
    """The service of a checkpoint.

    Args:
        checkpoint: where it lies, or a folder of checkpoints (the newest).
        device: default a GPU where there is one.
        dtype: of the weights; default as trained.
        name: what clients call the model; default the folder's.
        max_batch: continuations at a time.
        max_length: tokens of prompt and continuation together; default four times the trained length, up to 16384.
        allow_non_finite: serve weights that are NaN or infinite too.

    Raises:
        CheckpointError, ConfigError: there is no such checkpoint, or it cannot generate text.
    """
    import torch

    from evo_core.generate.continuation import check_model
    from evo_core.model.dtypes import torch_dtype
    from evo_core.serve.service import Service
    from evo_core.weights.loading import load_model

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    as_type = torch_dtype(dtype) if dtype else None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"{device}: there is no such device here ({error})", key="--device") from None
    model, tokenizer = load_model(checkpoint, device, as_type, allow_non_finite=allow_non_finite)
    if tokenizer is None:
        raise CheckpointError("holds no tokenizer: texts can be neither read nor written", file=checkpoint)
    name = name or local_path(checkpoint).absolute().name
    return Service(check_model(model), tokenizer, name, max_batch=max_batch, max_length=max_length)


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
