"""Dataclass fields as command-line flags: one declaration gives default, range, help and check."""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import field, fields
from pathlib import Path
from typing import get_args


def flag(default, group: str, text: str, least=None, above=None, most=None, choices=None,
         none: str = ""):
    """A dataclass field that is also a flag: its default, its group and text in --help, its range.

    A number is at least `least`, greater than `above`, at most `most`; text is one of `choices`.
    `none` says in --help what a default of None means.
    """
    limits = {"least": least, "above": above, "most": most}
    metadata = {"group": group, "text": text, "choices": choices, "limits": limits, "none": none}
    return field(default=default, metadata=metadata)


def add_flags(parser: argparse.ArgumentParser, kind: type, settings: dict[str, object]) -> None:
    """Add a flag for each `flag` field of a dataclass, in groups.

    `settings` holds named instances of the dataclass, whose values --help shows as defaults. A flag
    that is not given is None in the parsed arguments.
    """
    groups = {group.title: group for group in parser._action_groups}
    for item in fields(kind):
        if not item.metadata:
            continue
        title = item.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        defaults = {}
        for name, setting in settings.items():
            value = getattr(setting, item.name)
            defaults[name] = item.metadata["none"] if value is None else str(value)
        if len(set(defaults.values())) == 1:
            shown = f"default: {next(iter(defaults.values()))}"
        else:
            shown = ", ".join(f"{name}: {value}" for name, value in defaults.items())
        _add(groups[title], item, f"{item.metadata['text']}{_range_text(item)} ({shown})")


def _add(group, item, text: str) -> None:
    """Add the flag of one field."""
    name = "--" + item.name.replace("_", "-")
    types = [part for part in (get_args(item.type) or (item.type,)) if part is not type(None)]
    if types[0] is bool:
        group.add_argument(name, action="store_true", default=None, help=text)
    elif item.metadata["choices"]:
        group.add_argument(name, choices=item.metadata["choices"], help=text)
    elif types[0] in (int, float):
        metavar = "N" if types[0] is int else "X"
        kind = number(types[0], **item.metadata["limits"])
        group.add_argument(name, type=kind, metavar=metavar, help=text)
    elif types[0] is Path:
        group.add_argument(name, type=as_path, metavar="PATH", help=text)
    else:
        group.add_argument(name, metavar=types[0].__name__.upper(), help=text)


def as_path(text: str) -> Path:
    """A path on the command line. In --runs=~/x shells leave ~, the home folder, as it is."""
    return Path(os.path.expanduser(text))


def number(kind: type, least=None, above=None, most=None) -> Callable[[str], float]:
    """A type for argparse: an int or a float within a range, never NaN or infinite."""

    def parse(text: str):
        """The number in a text. Raises ArgumentTypeError, which argparse prints."""
        try:
            value = kind(text)
        except ValueError:
            word = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text} is not {word}") from None
        below = (least is not None and value < least) or (above is not None and value <= above)
        if not math.isfinite(value) or below or (most is not None and value > most):
            limits = limits_text(least, above, most)
            raise argparse.ArgumentTypeError(f"{text} is out of range:{limits}")
        return value

    return parse


def limits_text(least=None, above=None, most=None) -> str:
    """A range in words, with a leading space; empty without limits."""
    text = ""
    if least is not None:
        text = f" {least} or more"
    elif above is not None:
        text = f" more than {above}"
    return text + (f", at most {most}" if most is not None else "")


def _range_text(item) -> str:
    """The range of a field for --help."""
    text = limits_text(**item.metadata["limits"])
    return f";{text}" if text else ""


def given(kind: type, args: argparse.Namespace) -> dict:
    """{field: value} of the flags of a dataclass that the command line gives."""
    names = [item.name for item in fields(kind) if item.metadata]
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
