"""One option of a search: a field of a config, with what the command line needs to know of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import Field, field
from typing import Any

__all__ = [
    "as_word",
    "command_line",
    "option",
    "option_name",
    "parse_bits",
    "parse_first_last_bits",
    "parse_settings",
]


def option(
    default: Any,
    text: str,
    *,
    shown: str | None = None,
    parse: Callable[[str], Any] | None = None,
    movable: bool = False,
    aliases: tuple[str, ...] = (),
) -> Any:
    """A field with what the command line needs.

    Args:
        default: the default.
        text: the help line.
        shown: the default as the help shows it, where that is not ``str(default)``.
        parse: from the word on the command line to the value, where the type does not say it.
        movable: whether a run may be resumed with another value.
        aliases: other names on the command line, dashes included.
    """
    metadata = {
        "text": text, "shown": shown, "parse": parse, "movable": movable, "aliases": aliases,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def parse_bits(text: str) -> tuple[int, ...]:
    """``"2,4,8"`` or ``"2-8"`` as numbers.

    Raises:
        ValueError: it is neither.
    """
    bits: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            bits.extend(range(int(first), int(last) + 1) if dash else [int(first)])
    except ValueError:
        bits = []
    if not bits:
        raise ValueError(
            f"bits must be whole numbers such as 2,4,8 or a range as 2-8, not '{text}'"
        )
    return tuple(bits)


def parse_first_last_bits(text: str) -> int | None:
    """``"none"``, or a number.

    Raises:
        ValueError: it is neither.
    """
    if text.strip().lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"first_last_bits must be 'none', 2 to 8 or 32, not '{text}'") from None


def parse_settings(text: str) -> dict[str, Any]:
    """``"encoder=gcn,depth=2,noise=0.1,fixed=true"`` as a dict of words, numbers and truth values.

    Raises:
        ValueError: a part of it is no ``name=value``.
    """
    settings: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, word = (piece.strip() for piece in part.partition("="))
        if not equals or not name.isidentifier() or not word:
            raise ValueError(f"agent_options must be name=value,name=value, not '{text}'")
        settings[name] = _value(word)
    return settings


def _value(word: str) -> Any:
    try:
        value = json.loads(word.lower())
    except ValueError:
        return word
    return value if isinstance(value, (bool, int, float)) else word


def option_name(entry: Field[Any]) -> str:
    """The name of an option on the command line, without the dashes."""
    return entry.name.replace("_", "-")


def as_word(value: Any) -> str:
    """A value as it is typed on the command line, before quoting."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def command_line(
    command: str, values: Mapping[str, Any], defaults: Mapping[str, Any], *arguments: str
) -> str:
    """A command as it is typed; options that have their default are left out.

    Args:
        command: program and command.
        values: of the options, by name.
        defaults: likewise; what is not in it has the default None.
        *arguments: what goes before the options.
    """
    words = [command, *map(shlex.quote, arguments)]
    for key, value in values.items():
        name = key.replace("_", "-")
        if value == defaults.get(key):
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name}")
        else:
            words.append(f"--{name} {shlex.quote(as_word(value))}")
    return " ".join(words)
