"""Options of a subcommand, from a dataclass: types, defaults and help texts are the dataclass's own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentParser

from fcos_fast.cli.suggest import did_you_mean

Options = TypeVar("Options")
QUOTED = r"'([^']*)'"


def parse_options(
    options: type[Options],
    subcommand: str,
    arguments: Sequence[str],
    positional: str | None = None,
    recipes: Mapping[str, Path] | None = None,
) -> Options:
    """Read ``arguments`` into the dataclass ``options``; a nested dataclass becomes dotted options.

    ``--config`` takes options from a YAML file; what stands after it on the command line wins.

    Args:
        options: a dataclass.
        subcommand: of ``fcos-fast``.
        arguments: of the command line.
        positional: name of the field (a list of strings) whose values are given without a name.
        recipes: YAML files that ``--config`` also knows by name.

    Raises:
        ValueError: a wrong option, with the nearest right one, or a value that does not fit.
    """
    usage = f"fcos-fast {subcommand} [options]" + (f" {positional.upper()} ..." if positional else "")
    parser = ArgumentParser(usage=usage, exit_on_error=False)
    recipes = recipes or {}
    or_recipe = f", or a recipe: {', '.join(recipes)}" if recipes else ""
    parser.add_argument("--config", action="config", help=f"YAML file with any of the options{or_recipe}")
    if positional:
        parser.add_argument(positional, nargs="*", type=str, default=[])
    parser.add_class_arguments(options, skip={positional} if positional else None)
    arguments = _with_config_paths(arguments, recipes)
    known = [name for action in parser._actions for name in action.option_strings]
    for argument in arguments:
        name = argument.split("=")[0]
        if argument.startswith("--") and name not in known:
            raise ValueError(f"there is no option {name}{did_you_mean(name, known)}")
    try:
        values = vars(parser.instantiate(parser.parse_args(arguments)))
    except RecursionError as error:
        raise ValueError("an option or the YAML file is nested too deep; options are nested twice") from error
    except (argparse.ArgumentError, TypeError) as error:
        raise ValueError(_readable(str(error), known)) from error
    values.pop("config")
    return options(**values)


def _with_config_paths(arguments: Sequence[str], recipes: Mapping[str, Path]) -> list[str]:
    """The arguments, with the name of a recipe after ``--config`` replaced by its file."""
    replaced = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name = argument.removeprefix("--config=")
        if (before == "--config" or name != argument) and not Path(name).is_file():
            if name not in recipes:
                raise ValueError(
                    f"there is no file {name}" + (did_you_mean(name, recipes) if recipes else "")
                )
            name = str(recipes[name])
            argument = name if before == "--config" else f"--config={name}"
        if before == "--config" or name != argument:
            _check_text(Path(name))
        replaced.append(argument)
    return replaced


def _check_text(file: Path) -> None:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is no text in UTF-8 ({error}), as a YAML file is") from None


def _readable(message: str, known: Sequence[str]) -> str:
    """What the parser says, in the words of the command line, whose options are ``known``."""
    unknown = re.search(rf"(?:Group {QUOTED} does not accept option|Option) {QUOTED}", message)
    if unknown and "accept" in message:  # of a YAML file
        name = "--" + ".".join(filter(None, unknown.groups()))
        return f"the YAML file gives {name}, but here there is no option {name}{did_you_mean(name, known)}"
    message = re.sub(r'Parser key "([^"]+)":\s*', r"--\1: ", message)
    message = re.sub(r"arguments are required: (\w)", r"options are required: --\1", message)
    message = re.sub(r"typing\.|<class '(\w+)'>", r"\1", message)
    choice = re.match(r"(--\S+): +Expected a Literal\[(.*)\]\. Got value: (.*)", " ".join(message.split()))
    if choice:
        option, known, value = choice.groups()
        return f"{option} cannot be {value!r}{did_you_mean(value, re.findall(QUOTED, known))}"
    return message
