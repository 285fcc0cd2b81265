"""Options of a subcommand. A dataclass defines their names, types, defaults and help."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Mapping, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]  # __all__ is computed

from fcos_fast.cli.help import Help
from fcos_fast.cli.option_list import Option, groups_of, options_of
from fcos_fast.cli.suggest import did_you_mean, did_you_mean_option
from fcos_fast.engine.config import without_old_options
from fcos_fast.models import PRESETS

Options = TypeVar("Options")

Preset: TypeAlias = Literal[tuple(PRESETS)]  # type: ignore[valid-type]  # mypy wants the choices written out


def parse_options(
    kind: type[Options],
    subcommand: str,
    arguments: Sequence[str],
    *,
    positional: tuple[str, str] | None = None,
    common: Sequence[str] = (),
    recipes: Mapping[str, Path] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Options:
    """Parse ``arguments`` into the dataclass ``kind``. Fields of a nested dataclass become dotted options.

    ``--config`` reads options from a YAML file; options after it on the command line override the file. ``--help``
    prints the common options and ends the program, ``--help TOPIC`` others; see :meth:`fcos_fast.cli.help.Help.text`.

    Args:
        kind: a dataclass.
        subcommand: name of the subcommand, for the usage line.
        arguments: command line after the subcommand.
        positional: field (a list of strings) whose values are given without a name, and its help.
        common: options that the help lists first; by default all that are not nested.
        recipes: YAML files that ``--config`` also accepts by name.
        defaults: field -> dataclass whose fields replace the nested options, with its values as defaults.

    Raises:
        ValueError: an unknown option, with the nearest known one, or an invalid value.
    """
    defaults, recipes = defaults or {}, recipes or {}
    page = _help_of(kind, subcommand, positional, common, recipes, defaults)
    given = list(itertools.takewhile("--".__ne__, arguments))
    if wanted := [i for i, argument in enumerate(given) if re.match(r"(-h|--help)(=|$)", argument)]:
        print(page.text(_topic(given[wanted[0] :])), end="")
        raise SystemExit(0)
    known = [option.name for option in page.options]
    for argument in given:
        name = argument.split("=")[0]
        if re.match("--?[A-Za-z]", argument) and name not in [*page.flags, "--print_config"]:
            raise ValueError(f"unknown option {name}{did_you_mean_option(name, known)}")
    parser = _make_parser(kind, positional, recipes, defaults)
    try:
        values = vars(parser.instantiate(parser.parse_args(arguments)))
    except RecursionError as error:
        raise ValueError("an option or the YAML file is nested too deeply") from error
    except (argparse.ArgumentError, TypeError) as error:
        raise ValueError(_readable(str(error), page.options)) from error
    values.pop("config")
    return kind(**values)


def config_file(name: str, recipes: Mapping[str, Path]) -> Path:
    """The YAML file that ``--config`` names by path or as a recipe.

    Raises:
        ValueError: neither exists, or the file is not YAML.
    """
    file = Path(name) if Path(name).is_file() else recipes.get(name)
    if file is None:
        raise ValueError(
            f"--config {name}: the file does not exist" + (did_you_mean(name, recipes) if recipes else "")
        )
    try:
        with file.open(encoding="utf-8") as stream:
            yaml.safe_load(stream)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 text ({error}); expected a YAML file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: is not valid YAML ({error}); correct it") from None
    return file


class _Parser(ArgumentParser):
    recipes: Mapping[str, Path]


class _ReadConfigFile(ActionConfigFile):
    def __call__(
        self, parser: argparse.ArgumentParser, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        recipes = parser.recipes if isinstance(parser, _Parser) else {}
        file = config_file(values, recipes)
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        present = without_old_options(content) if isinstance(content, dict) else content
        text = str(file) if present == content else yaml.safe_dump(present)
        super().__call__(parser, cfg, text, option_string)


def _help_of(
    kind: type[Any],
    subcommand: str,
    positional: tuple[str, str] | None,
    common: Sequence[str],
    recipes: Mapping[str, Path],
    defaults: Mapping[str, Any],
) -> Help:
    recipe = f", or one of the recipes {', '.join(recipes)}" if recipes else ""
    config = Option("config", Path, f"YAML file with any of these options{recipe}")
    values = positional[0] if positional else ""
    options = [*(option for option in options_of(kind, defaults) if option.name != values), config]
    return Help(
        subcommand,
        positional,
        cleandoc(kind.__doc__ or "").split("\n\nAttributes:")[0],
        options,
        groups_of(kind, defaults),
        common,
    )


def _topic(arguments: Sequence[str]) -> str | None:
    """What ``--help``, the first of the arguments, shall explain."""
    _, equals, topic = arguments[0].partition("=")
    if equals:
        return topic
    return next((word for word in arguments[1:2] if not word.startswith("-")), None)


def _make_parser(
    kind: type[Any],
    positional: tuple[str, str] | None,
    recipes: Mapping[str, Path],
    defaults: Mapping[str, Any],
) -> _Parser:
    parser = _Parser(exit_on_error=False)
    parser.recipes = recipes
    parser.add_argument("--config", action=_ReadConfigFile)
    if positional:
        parser.add_argument(positional[0], nargs="*", type=str, default=[])
    parser.add_class_arguments(kind, skip={*([positional[0]] if positional else []), *defaults})
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser


def _readable(message: str, options: Sequence[Option]) -> str:
    """A message of the parser, with the options' names on the command line and the nearest known one."""
    known = [option.name for option in options]
    unknown = re.match(r"(?:Group '(.+?)' does not accept o|O)ption '(.+?)'", message)
    if unknown:
        name = "--" + ".".join(filter(None, unknown.groups()))
        return f"unknown option {name} in the YAML file{did_you_mean_option(name, known)}"
    missing = re.match(r"the following arguments are required: (.*)", message)
    if missing:
        return f"missing options: {', '.join(f'--{name}' for name in missing[1].split(', '))}"
    surplus = re.match(r"unrecognized arguments: (.*)", message)
    if surplus:
        name, equals, _ = surplus[1].partition("=")
        hint = did_you_mean_option(name, known) if equals else ""
        return f"unexpected argument {surplus[1]!r}; the names of options start with --{hint}"
    invalid = re.match(r'Parser key "(.+?)":.*(?:Got|Given) value: (.*)', message, flags=re.DOTALL)
    option = next((option for option in options if invalid and option.name == invalid[1]), None)
    if invalid is None or option is None:
        return re.sub(r'Parser key "(.+?)":', r"--\1:", message)
    # a misspelled choice is suggested, but nothing is near to true and false
    choices = option.choices if get_origin(option.type) is Literal else []
    expected = did_you_mean(invalid[2], choices) if choices else f"; expected {option.expects}"
    return f"{option.flag} cannot be {invalid[2]!r}{expected}"
