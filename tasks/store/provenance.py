"""Where an artifact came from: the code, the machine, the command. It goes to the manifest and never to a key."""

from __future__ import annotations

import getpass
import hashlib
import inspect
import os
import platform
import re
import socket
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from evo_core.code_version import CORE, git_state, package_version
from evo_core.config.addresses import shown_override

SECRET = re.compile(r"secret|passw(or)?d|api_?key|access_?key|auth_?token", re.IGNORECASE)
PACKAGES = ("evo-lm", "torch", "numpy", "sentencepiece", "tokenizers", "prefect")


def provenance(kind: type) -> dict[str, Any]:
    """Code, git state, command line, host and versions of now. Values that look like secrets are left out of argv."""
    return {
        "code": code_digests(kind),
        "git": _git(),
        "argv": [_without_secret(word) for word in sys.argv],
        "host": socket.gethostname(),
        "user": _user(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := package_version(name))},
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def code_digests(kind: type) -> dict[str, str]:
    """File to the first 12 hex digits of its sha256: the kind's own file and all of evo_core."""
    own = Path(inspect.getfile(kind))
    return {f"{own.parent.name}/{own.name}": _sha12(own)} | _core_digests()


def code_drift(then: Mapping[str, str], kind: type) -> list[str]:
    """Files that are not as they were when an artifact was made."""
    now = code_digests(kind)
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


@cache
def _core_digests() -> dict[str, str]:
    return {f"evo_core/{p.relative_to(CORE).as_posix()}": _sha12(p) for p in sorted(CORE.rglob("*.py"))}


def _sha12(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _git() -> dict[str, Any] | None:
    state = git_state()
    return None if state is None else {"commit": state.commit, "dirty": bool(state.modified)}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _without_secret(word: str) -> str:
    option = "--set=" if word.startswith("--set=") else ""
    name, equals, _ = word.removeprefix(option).partition("=")
    secret = equals and SECRET.search(name)
    return option + (f"{name}=…" if secret else shown_override(word.removeprefix(option)))
