"""Command-line options made from the fields of a config, so that each is defined once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from compress_agents.command_line.options import option_name
from compress_agents.config import SearchConfig

__all__ = ["build_config", "takes_options"]

Config = TypeVar("Config", bound=SearchConfig)


def takes_options(
    config: type[SearchConfig],
    renamed: Mapping[str, str] = MappingProxyType({}),
    **defaults: Any,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command whose first parameter takes the options of a config, as a dict.

    Typer sees a parameter for every field instead, and after them those that the command itself
    has.

    Args:
        config: the config.
        renamed: what fields are called on this command line, where not as in the config.
        **defaults: of fields, where they are not those of the config.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
            for parameter in list(inspect.signature(command).parameters.values())[1:]
        ]
        types = get_type_hints(config)
        made = [
            _parameter(
                entry,
                types[entry.name],
                defaults.get(entry.name, entry.default),
                renamed.get(entry.name, option_name(entry)),
            )
            for entry in fields(config)
        ]

        def with_options(**values: Any) -> None:
            options = {parameter.name: values.pop(parameter.name) for parameter in made}
            command(options, **values)

        with_options.__doc__ = command.__doc__
        with_options.__name__ = command.__name__
        with_options.__signature__ = inspect.Signature([*made, *own])  # type: ignore[attr-defined]
        with_options.__annotations__ = {p.name: p.annotation for p in [*made, *own]}
        return with_options

    return decorate


def _parameter(entry: Field[Any], type_: Any, default: Any, name: str) -> inspect.Parameter:
    metadata = entry.metadata
    # What has a parser of its own comes as a word, None where it was not given.
    if metadata["parse"] is not None:
        type_, default = str | None, None
    is_flag = type_ in (bool, bool | None)
    names = [f"--{name}/--no-{name}" if is_flag else f"--{name}", *metadata["aliases"]]
    option = typer.Option(*names, help=metadata["text"], show_default=metadata["shown"] or True)
    return inspect.Parameter(
        entry.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[type_, option],
    )


def build_config(config: type[Config], options: dict[str, Any]) -> Config:
    """The config of options from the command line.

    Raises:
        ValueError: an option is not allowed; the message names it.
    """
    values = dict(options)
    for entry in fields(config):
        parse = entry.metadata["parse"]
        if parse is not None:
            word = values.pop(entry.name)
            if word is not None:
                values[entry.name] = parse(word)
    return config(**values)
