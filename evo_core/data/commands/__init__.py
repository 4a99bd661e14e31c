"""``evo data …`` and ``python -m evo_core.data …``: text to token files and shards, and what is in them."""

from __future__ import annotations

from collections.abc import Callable

from evo_core.command_line.program import plain_app
from evo_core.data.commands.flags import DataCommand
from evo_core.data.commands.inspect import head, stats, verify
from evo_core.data.commands.shard import shard
from evo_core.data.commands.tokenize import tokenize
from evo_core.data.commands.tokenize_sft import tokenize_sft

app = plain_app("data", "Text to token files and shards, and what is in them.")
_COMMANDS: dict[str, Callable[..., None]] = {
    "tokenize": tokenize,
    "tokenize-sft": tokenize_sft,
    "shard": shard,
    "stats": stats,
    "head": head,
    "verify": verify,
}
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=DataCommand)(_command)
