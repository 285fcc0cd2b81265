"""The text of ``--help``: the common options first; of a long list only these, with the groups of all others."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fcos_fast.cli.option_list import Option
from fcos_fast.cli.suggest import did_you_mean, meant_by

MOST_CHOICES = 7
"""An option with more choices lists them in its help instead of behind its name."""

LONG = 40
"""Of more options than these, ``--help`` lists only the common ones."""

EVERYTHING = "all"
"""The topic that lists every option."""


@dataclass(frozen=True)
class Help:
    """What the help of a subcommand is made of.

    Attributes:
        subcommand: its name.
        values: values without a name, and their explanation; None if there are none.
        description: what it does, with markup.
        options: all options.
        groups: prefix of the dotted options -> title.
        common: names of the options that come first; by default all that are not dotted.
    """

    subcommand: str
    values: tuple[str, str] | None
    description: str
    options: Sequence[Option]
    groups: dict[str, str]
    common: Sequence[str] = ()

    @property
    def flags(self) -> list[str]:
        """The options as they are given."""
        return [option.flag for option in self.options]

    def text(self, topic: str | None = None) -> str:
        """The help.

        Args:
            topic: ``all``, a group (``model``, ``model.rule``), an option or its last part (``lr``). None is a page of
                the common options, or everything if that is short.

        Raises:
            ValueError: there is no such group or option.
        """
        if topic in (None, EVERYTHING):
            is_long = len(self.options) > LONG
            return self._page(self._sections(is_long and topic is None), is_long and topic is None)
        name = str(topic).lstrip("-").replace("-", "_")
        names = [option.name for option in self.options]
        wanted = [known for known in names if f"{known}.".startswith(f"{name}.")] or meant_by(name, names)
        if not wanted:
            hint = did_you_mean(name, [*self.groups, EVERYTHING, *names])
            raise ValueError(
                f"--help {topic}: is no group and no option of fcos-fast {self.subcommand}{hint}"
            )
        found = [option for option in self.options if option.name in wanted]
        return self._page([(self.groups.get(name, "Options"), found)], False, with_description=False)

    def _sections(self, short: bool) -> list[tuple[str, list[Option]]]:
        """Titles and options: the common ones, each group, the others."""
        by_name = {option.name: option for option in self.options}
        plain = [name for name in by_name if "." not in name]
        common = [name for name in self.common or plain if name in by_name]
        first = ("Common options" if short else "Options", [by_name[name] for name in common])
        others = ("Other options", [by_name[name] for name in plain if name not in common])
        if short:
            return [first, others]
        dotted = [option for option in self.options if "." in option.name and option.name not in common]
        groups = [
            (title, [option for option in dotted if option.name.split(".")[0] == group])
            for group, title in self.groups.items()
        ]
        return [first, *groups, others]

    def _page(
        self, sections: list[tuple[str, list[Option]]], short: bool, with_description: bool = True
    ) -> str:
        values = f" {self.values[0].upper()} ..." if self.values else ""
        parser = argparse.ArgumentParser(
            usage=f"fcos-fast {self.subcommand} [options]{values}",
            description=without_markup(self.description) if with_description else None,
            epilog=self._groups() if short else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        if self.values and with_description:
            parser.add_argument(self.values[0], nargs="*", help=self.values[1])
        for title, options in sections:
            group = parser.add_argument_group(_as_title(title))
            for option in options:
                group.add_argument(option.flag, metavar=_metavar(option), help=_explanation(option))
            if title == "Other options":
                group.add_argument("--print_config", action="store_true", help=PRINT_CONFIG)
                group.add_argument("-h", "--help", metavar="TOPIC", help=self._about_help())
        return parser.format_help()

    def _about_help(self) -> str:
        groups = ", ".join(self.groups)
        return f"show this help; of a TOPIC: all, {groups}{', ' if groups else ''}or an option"

    def _groups(self) -> str:
        """The table of the groups, with the number of options of each."""
        width = max(map(len, self.groups))
        names = [option.name.split(".")[0] for option in self.options]
        lines = [
            f"  {group:{width}}  {names.count(group):3} options: {_as_title(title)}"
            for group, title in self.groups.items()
        ]
        return "\n".join(
            [
                "More options, in groups:",
                *lines,
                "",
                f"fcos-fast {self.subcommand} --help GROUP lists a group, --help {EVERYTHING} every option.",
            ]
        )


PRINT_CONFIG = "print the configuration as YAML and exit"


def without_markup(text: str) -> str:
    """A docstring's text without backticks and roles such as ``:func:``."""
    return re.sub(r"(?::\w+:)?(`+)(.+?)\1", r"\2", text, flags=re.DOTALL)


def _as_title(text: str) -> str:
    text = without_markup(text)
    return text[:1].upper() + text[1:]


def _metavar(option: Option) -> str:
    if 0 < len(option.choices) <= MOST_CHOICES:
        return option.expects
    return option.name.rpartition(".")[2].upper()


def _explanation(option: Option) -> str:
    """The help of an option: its text, type and default."""
    facts = []
    if len(option.choices) > MOST_CHOICES:
        facts.append(f"one of {', '.join(option.choices)}")
    elif not option.choices:
        facts.append(option.expects)
    if option.required:
        facts.append("required")
    elif option.default:
        facts.append(f"default: {option.default}")
    about = f" ({', '.join(facts)})" if facts else ""
    return (without_markup(option.help) + about).replace("%", "%%")
