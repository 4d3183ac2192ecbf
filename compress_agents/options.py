"""One option of a search: a field of a config, with what the command line needs to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, field
from typing import Any

__all__ = ["as_word", "option", "option_name", "parse_bits", "parse_first_last_bits"]


def option(
    default: Any,
    text: str,
    *,
    shown: str | None = None,
    parse: Callable[[str], Any] | None = None,
    movable: bool = False,
) -> Any:
    """A field with what the command line needs.

    Args:
        default: the default.
        text: the help line.
        shown: the default as the help shows it, where that is not ``str(default)``.
        parse: from the word on the command line to the value, where the type does not say it.
        movable: whether a run may be resumed with another value.
    """
    metadata = {"text": text, "shown": shown, "parse": parse, "movable": movable}
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


def option_name(entry: Field[Any]) -> str:
    """The name of an option on the command line, without the dashes."""
    return entry.name.replace("_", "-")


def as_word(value: Any) -> str:
    """A value as it is typed on the command line, before quoting."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
