"""Several mistakes of one configuration, reported together."""

from __future__ import annotations

from collections.abc import Iterable

from evo_core.errors import ConfigError


class ConfigErrors(ConfigError):
    """What is wrong with a configuration, a line for each mistake.

    Attributes:
        errors: the mistakes, in the order they are reported.
    """

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors = list(errors)
        first = self.errors[0]
        super().__init__("\n".join(map(str, self.errors)))
        self.file, self.line, self.key = first.file, first.line, first.key

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple:
        return (ConfigErrors, (self.errors,))


def raise_all(errors: Iterable[ConfigError]) -> None:
    """Raises the one error, or all of them as one.

    Raises:
        ConfigError: there is one.
        ConfigErrors: there are several.
    """
    found = list(errors)
    if len(found) == 1:
        raise found[0]
    if found:
        raise ConfigErrors(found)


def one_by_one(error: ConfigError) -> list[ConfigError]:
    """The mistakes in an error."""
    return error.errors if isinstance(error, ConfigErrors) else [error]
