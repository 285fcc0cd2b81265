"""Options of a verb, from a dataclass: types, defaults and help texts are the dataclass's own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

import fcos_fast.configs
from fcos_fast.cli.suggest import did_you_mean

Options = TypeVar("Options")
QUOTED = r"'([^']*)'"

RECIPES = {path.stem: path for path in sorted(Path(fcos_fast.configs.__path__[0]).glob("*.yaml"))}
"""Configurations that come with the package, by the name that ``--config`` knows them by."""


def parse_options(
    options: type[Options],
    verb: str,
    arguments: Sequence[str],
    positional: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Options:
    """Read ``arguments`` into the dataclass ``options``; a nested dataclass becomes dotted options.

    ``--config`` takes options from a YAML file, or from one of ``fcos_fast/configs`` by its bare name; what
    stands after it on the command line wins.

    Args:
        options: a dataclass.
        verb: of ``fcos-fast``.
        arguments: of the command line.
        positional: name of the field (a list of strings) whose values are given without a name.
        defaults: by dotted name, where they are to differ from the dataclass's own.

    Raises:
        ValueError: a wrong option, with the nearest right one, or a value that does not fit.
    """
    parser = ArgumentParser(prog=f"fcos-fast {verb}", exit_on_error=False)
    parser.add_argument(
        "--config",
        action="config",
        help=f"YAML file with any of the options, or a recipe: {', '.join(RECIPES)}",
    )
    if positional:
        parser.add_argument(positional, nargs="*", type=str, default=[])
    parser.add_class_arguments(options, skip={positional} if positional else None)
    parser.set_defaults(dict(defaults or {}))
    arguments = _with_config_paths(arguments)
    known = [name for action in parser._actions for name in action.option_strings]
    for argument in arguments:
        name = argument.split("=")[0]
        if argument.startswith("--") and name not in known:
            raise ValueError(f"there is no option {name}{did_you_mean(name, known)}")
    try:
        values = vars(parser.instantiate(parser.parse_args(arguments)))
    except (argparse.ArgumentError, TypeError) as error:
        raise ValueError(_readable(str(error))) from error
    values.pop("config")
    return options(**values)


def _with_config_paths(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the bare name of a recipe after ``--config`` replaced by its file."""
    replaced = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name = argument.removeprefix("--config=")
        if (before == "--config" or name != argument) and not Path(name).exists():
            if name not in RECIPES:
                raise ValueError(f"there is no file or recipe {name}{did_you_mean(name, RECIPES)}")
            argument = argument.replace(name, str(RECIPES[name]))
        replaced.append(argument)
    return replaced


def _readable(message: str) -> str:
    """What the parser says, in the words of the command line."""
    message = re.sub(r'Parser key "([^"]+)":\s*', r"--\1: ", message)
    message = re.sub(r"arguments are required: (\w)", r"options are required: --\1", message)
    message = re.sub(r"typing\.|<class '(\w+)'>", r"\1", message)
    choice = re.match(r"(--\S+): +Expected a Literal\[(.*)\]\. Got value: (.*)", " ".join(message.split()))
    if choice:
        option, known, value = choice.groups()
        return f"{option} cannot be {value!r}{did_you_mean(value, re.findall(QUOTED, known))}"
    return message
