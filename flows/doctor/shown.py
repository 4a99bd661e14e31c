"""What may be printed: addresses without a user's name and password, and no value of a variable that holds a secret."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from evo_core.config.secrets import Secrets

_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|PASSWD|AUTH_STRING|CREDENTIAL|CONNECTION_URL|WEBHOOK", re.IGNORECASE)
_SHORTEST = 6
"""Characters of a secret: shorter ones are words such as `true`."""
_USER = re.compile(r"(?<=://)[^/\s@]+@")


def bare_address(url: str) -> str:
    """An address without what stands before an @, and without its query."""
    return _USER.sub("", urlsplit(url)._replace(query="", fragment="").geturl())


def without_secrets(text: str) -> str:
    """The text with ``$NAME`` in place of what a variable of the environment holds that may be a secret."""
    texts = {
        value: f"${name}" for name, value in os.environ.items() if _SECRET.search(name) and os.sep not in value[:1]
    }
    return _USER.sub("", Secrets({}, texts).conceal(text))
