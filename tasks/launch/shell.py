"""Whether lines of shell are complete, without running any of them."""

from __future__ import annotations

import os
import shutil
import subprocess

PATIENCE = 10.0
"""Seconds; bash reads a script in a few milliseconds."""


def incomplete(script: str) -> str | None:
    """What bash says of a script that is not complete in itself, or None.

    Lines that come after such a script would be taken for a part of it. Where there is no bash nothing is said.
    """
    if script.endswith("\\") and not script.endswith("\\\\"):
        return "the last line is carried on by a backslash"
    bash = shutil.which("bash")
    if bash is None:
        return None
    done = subprocess.run(
        [bash, "--norc", "-n"],
        input=script + "\n",
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE,
        check=False,
    )
    # An open here-document is a mere warning.
    said = done.stderr.strip().splitlines()
    return said[0].removeprefix(f"{bash}: ").removeprefix("bash: ") if said else None
