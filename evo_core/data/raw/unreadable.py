"""What stands instead of a record that cannot be read, so that those behind it can."""

from __future__ import annotations


class UnreadableRecord:
    """Stands instead of a record that cannot be read.

    Attributes:
        message: why.
    """

    def __init__(self, message: str) -> None:
        self.message = message
