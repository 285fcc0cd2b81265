"""Options of a verb, from a dataclass: types, defaults and help texts are the dataclass's own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TypeVar

from jsonargparse import ArgumentParser

from fcos_fast.cli.suggest import did_you_mean

Options = TypeVar("Options")


def parse_options(
    options: type[Options], verb: str, arguments: Sequence[str], positional: str | None = None
) -> Options:
    """Read ``arguments`` into the dataclass ``options``.

    ``--config file.yaml`` gives any of the options from a file; what stands after it on the command line wins.

    Args:
        options: a dataclass; nested dataclasses become dotted options.
        verb: of ``fcos-fast``.
        arguments: of the command line.
        positional: name of the field (a list of strings) that is given without its name.

    Raises:
        ValueError: a wrong option, with the nearest right one, or a value that does not fit.
    """
    parser = ArgumentParser(prog=f"fcos-fast {verb}", description=(options.__doc__ or "").split("\n")[0])
    parser.exit_on_error = False
    if positional:
        parser.add_argument(positional, nargs="*", type=str, default=[])
    parser.add_class_arguments(options, skip={positional} if positional else None)
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    known = [name for action in parser._actions for name in action.option_strings]
    for argument in arguments:
        name = argument.split("=")[0]
        if argument.startswith("--") and name not in known and not _opens_dictionary(name, known):
            raise ValueError(f"there is no option {name}{did_you_mean(name, known)}")
    try:
        namespace = parser.parse_args(list(arguments))
        values = parser.instantiate(namespace)
    except (argparse.ArgumentError, TypeError) as error:
        raise ValueError(_readable(str(error))) from error
    values = {k: v for k, v in vars(values).items() if k != "config"}
    return options(**values)


def _opens_dictionary(name: str, known: list[str]) -> bool:
    """Whether ``name`` is ``--option.key`` of an option that takes a dictionary."""
    return any(name.startswith(f"{option}.") and option.count(".") for option in known)


def _readable(message: str) -> str:
    message = re.sub(r'Parser key "([^"]+)":\s*', r"--\1: ", message)
    return message.replace("typing.", "").replace("<class '", "").replace("'>", "")
