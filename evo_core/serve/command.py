"""``evo serve CHECKPOINT``: an OpenAI-compatible HTTP API and a page, for one model."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

from evo_core.errors import CheckpointError, ConfigError
from evo_core.job import command

if TYPE_CHECKING:
    from evo_core.serve.service import Service

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_GRACE_SECONDS = 5


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
    result.add_argument("--allow-non-finite", action="store_true", help="serve weights that are NaN or infinite too")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model and serve it until SIGINT or SIGTERM; then exits with 128 + the signal's number."""
    arguments = parser().parse_args(argv)
    with command("evo serve"):
        for name in ("max_batch", "max_length"):
            value = getattr(arguments, name)
            if value is not None and value < 1:
                raise ConfigError(f"{value} must be 1 or more", key=f"--{name.replace('_', '-')}")
        caught = serve(load(arguments), arguments.host, arguments.port)
    if caught is not None:
        sys.exit(128 + caught)


def load(arguments: argparse.Namespace) -> Service:
    """The service that a command line describes.

    Raises:
        CheckpointError, ConfigError: there is no such checkpoint, or it cannot generate text.
    """
    _require_fastapi()
    import torch

    from evo_core.checkpoint import load_model
    from evo_core.generate.continuation import check_model
    from evo_core.model.dtypes import torch_dtype
    from evo_core.serve.service import Service

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
    name = arguments.name or str(arguments.checkpoint).removeprefix("local:").rstrip("/").rsplit("/", 1)[-1]
    return Service(check_model(model), tokenizer, name, max_batch=arguments.max_batch, max_length=arguments.max_length)


def serve(service: Service, host: str, port: int) -> int | None:
    """Serve until a signal; its number."""
    import uvicorn

    from evo_core.serve.api import create_app

    class Server(uvicorn.Server):
        """Ends on the first signal: texts in the making are ended with an error, and the sockets closed."""

        caught: int | None = None

        def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.stop)
            return nullcontext()

        def stop(self, number: int, frame: FrameType | None) -> None:
            self.force_exit = self.caught is not None
            self.caught, self.should_exit = number, True
            service.engine.close(wait=False)

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                address, real_port = self.servers[0].sockets[0].getsockname()[:2]
                shown = f"[{address}]" if ":" in address else address
                print(_greeting(service, host, f"http://{shown}:{real_port}"), flush=True)

    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = Server(config)
    server.run()
    if server.caught is None and not server.started:
        raise ConfigError(f"cannot listen at {host}:{port}", hint="is another server there? choose --port")
    print("stopped", flush=True)
    return server.caught


def _greeting(service: Service, host: str, url: str) -> str:
    lines = [f"{service.name}: {url} (API: {url}/v1)"]
    if host not in _LOOPBACK:
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
