"""The text of ``--help``: docstrings without markup, common options first."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Literal, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter

MOST_CHOICES = 7
"""An option with more choices lists them in its help instead of behind its name."""


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows docstrings without markup, and neither types that the name's choices show nor defaults that are null."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = without_markup(super()._expand_help(action))
        text = re.sub(r"default: (True|False)", lambda found: found[0].lower(), text)
        return re.sub(
            r"(, | \()default: (null|\[\])?\)$", lambda found: ")" if found[1] == ", " else "", text
        )

    def _get_type_str(self, action: argparse.Action) -> str | None:
        choices = choices_of(action)
        if len(choices) > MOST_CHOICES:
            return ", ".join(choices)
        return None if choices or action.dest == "config" or "{" in str(action.metavar) else type_of(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action)
        return text.replace("type: %(type)s", "one of %(type)s") if choices_of(action) else text


def without_markup(text: str) -> str:
    """A docstring's text without backticks and roles such as ``:func:``."""
    return re.sub(r"(?::\w+:)?(`+)(.+?)\1", r"\2", text, flags=re.DOTALL)


def arrange_help(parser: ArgumentParser, common: Sequence[str]) -> None:
    """List the common options first, then those of each nested dataclass, then the others."""
    by_name = {action.dest: action for action in parser._actions if action.option_strings}
    by_name["print_config"].help = "print the configuration as YAML and exit"
    nested = parser.groups or {}
    plain = [name for name in by_name if "." not in name and name not in nested]
    builtin = ["help", "print_config"]
    common = common or [*(name for name in plain if name not in (*builtin, "config")), "config"]
    others = [name for name in plain if name not in common]
    for group in parser._action_groups:
        title = without_markup(group.title or "")
        group.title = title[:1].upper() + title[1:]
        group._group_actions = [a for a in group._group_actions if a.dest not in (*common, *others)]
    for title, names in (("Options", common), ("Other options", others)):
        parser.add_argument_group(title)._group_actions = [by_name[name] for name in names]
    positional, *groups, first, last = parser._action_groups
    parser._action_groups = [positional, first, *groups, last]
    for name, action in by_name.items():
        if name in nested:  # reads a YAML file for this group alone, which --config does too
            action.help = argparse.SUPPRESS
        elif len(choices := choices_of(action)) > MOST_CHOICES:
            action.metavar = name.upper()
        elif choices:
            action.metavar = f"{{{','.join(choices)}}}"


def choices_of(action: argparse.Action) -> list[str]:
    """The choices of an option; empty if any value of its type is accepted."""
    kind = getattr(action, "_typehint", None)
    if type(None) in get_args(kind):  # optional
        kind = next(iter(get_args(kind)), None)
    return list(map(str, get_args(kind))) if get_origin(kind) is Literal else []


def type_of(action: argparse.Action) -> str | None:
    """The type of an option's value, as text in the form in which the value is given: ``[int, int] | null``."""
    text = DefaultHelpFormatter("")._get_type_str(action) or ""
    text = re.sub(r"Optional\[(.*)\]$", r"\1 | null", re.sub(r"\bNone\b", "null", text))
    text = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace(", ", " | ").replace("'", ""), text)
    text = re.sub(r"\blist\[([^\[\]]*)\]", r"[\1, ...]", text).replace("tuple[", "[")
    text = re.sub(r"\bdict\[str, (\w+)\]", r"{name: \1, ...}", text.replace("Any", "value"))
    return text or None
