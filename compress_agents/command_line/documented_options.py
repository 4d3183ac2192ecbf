"""Command-line options from a dataclass of `compress_env` that describes itself in its docstring.

Defaults, types and texts are said once, where the dataclass is.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from compress_agents.command_line.options import option

__all__ = ["attribute_texts", "documented", "load_alone"]


def load_alone(module: str, name: str) -> type[Any]:
    """A class from a file of `compress_env`, without the package, which imports torch.

    That takes seconds, which `--help` should not.

    Args:
        module: name of a module that imports nothing of the package.
        name: of the class.
    """
    package = importlib.util.find_spec("compress_env")
    assert package is not None and package.origin is not None
    path = Path(package.origin).with_name(f"{module}.py")
    spec = importlib.util.spec_from_file_location(f"compress_agents._{module}", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # where dataclasses look for the meaning of annotations
    spec.loader.exec_module(loaded)
    found: type[Any] = getattr(loaded, name)
    return found


def attribute_texts(kind: type[Any]) -> dict[str, str]:
    """What the section "Attributes" of a docstring (Google style) says of each, in one line."""
    _, _, section = (kind.__doc__ or "").partition("Attributes:")
    texts: dict[str, list[str]] = {}
    for line in section.splitlines():
        start = re.match(r" {8}(\w+): (.*)", line)
        if start:
            texts[start[1]] = [start[2]]
        elif line.startswith(" " * 12) and texts:
            texts[next(reversed(texts))].append(line.strip())
    return {name: " ".join(lines).replace("`", "") for name, lines in texts.items()}


def documented(kind: type[Any], aliases: Mapping[str, Sequence[str]] | None = None) -> type[Any]:
    """A dataclass with the same fields, which `takes_options` can make options of.

    The help line of an option is the first sentence on its attribute; what it says of "None:" is
    shown as its default.

    Args:
        kind: a dataclass with an "Attributes" section.
        aliases: other names of options, such as `{"learning_rate": ["--lr"]}`.
    """
    texts, types = attribute_texts(kind), get_type_hints(kind)
    entries: list[tuple[str, Any, Any]] = []
    for entry in fields(kind):
        text, _, shown = texts[entry.name].partition("; None: ")
        sentence = text.partition(". ")[0].rstrip(".")
        made = option(
            entry.default,
            f"{sentence[0].upper()}{sentence[1:]}.",
            shown=shown.rstrip(".") or None,
            aliases=tuple((aliases or {}).get(entry.name, ())),
        )
        entries.append((entry.name, types[entry.name], made))
    return make_dataclass(kind.__name__, entries, frozen=True)
