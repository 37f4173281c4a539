"""What a config key may hold, how its text is read, and how a choice is said to be the nearest."""

import difflib
import math
import operator
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple


def unknown(what: str, name: str, choices: Collection[str]) -> str:
    """Returns the message for a name that is none of `choices`: the nearest one first, then all."""
    return f"unknown {what} {name!r}; did you mean {nearest(name, choices)!r}? Allowed: {', '.join(choices)}"


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns the choice most like the name, capitals or not."""
    return max(choices, key=lambda choice: likeness(name, choice))


def likeness(a: str, b: str) -> float:
    """From 0 to 1, how alike two names are, capitals or not."""
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


class _Kind(NamedTuple):
    words: str
    holds: Callable[[Any], bool]
    read: Callable[[str], Any]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_number, value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value not in ("", "None")


def _read_number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _read_numbers(text: str) -> tuple[int | float, ...]:
    return tuple(_read_number(item) for item in text.strip("()[]").split(",") if item.strip())


def _read_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


_KINDS = {
    "int": _Kind("an integer", _is_int, int),
    "float": _Kind("a finite number", _is_number, float),
    "number": _Kind("a finite number", _is_number, _read_number),
    "numbers": _Kind("a tuple of finite numbers", _are_numbers, _read_numbers),
    "bool": _Kind("true or false", lambda value: isinstance(value, bool), _read_bool),
    "str": _Kind("a name", _is_name, str),
}


class Rule(NamedTuple):
    """What a key may hold.

    Attributes:
      kind: int, float (an int is taken too), bool, str, number (int or float) or numbers (a tuple of them).
      default: its value unless a config says otherwise.
      doc: what it means, in a few words.
      choices: of a str.
      minimum: lowest value; this and the next two hold for each number of a tuple.
      above: value that it exceeds.
      below: value that exceeds it.
      none: whether it may be None.
      tasks: that have it; empty: all.
    """

    kind: str
    default: Any
    doc: str
    choices: tuple[str, ...] | None = None
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    none: bool = False
    tasks: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """What a message says it may hold."""
        if self.choices:
            return f"one of {', '.join(self.choices)}" + (", None" if self.none else "")
        limits = " and ".join(f"{word} {limit}" for word, _, limit in self._limits())
        return " ".join(filter(None, (_KINDS[self.kind].words, limits))) + (", or None" if self.none else "")

    def read(self, text: str) -> Any:
        """The value that a text stands for; ValueError if it is none of the kind."""
        return None if self.none and text in ("None", "none") else _KINDS[self.kind].read(text)

    def problem(self, value: Any) -> str | None:
        """Why it may not hold the value, to follow "KEY=VALUE: "; None if it may."""
        if value is None and self.none:
            return None
        refused = f"must be {self.allowed}"
        if not _KINDS[self.kind].holds(value):
            return refused
        if self.choices and value not in self.choices:
            return f"{refused}; did you mean {nearest(value, self.choices)}?"
        items = value if self.kind == "numbers" else (value,)
        return None if all(within(item, limit) for item in items for _, within, limit in self._limits()) else refused

    def _limits(self) -> list[tuple[str, Callable[[Any, Any], bool], int | float]]:
        limits = (
            ("at least", operator.ge, self.minimum),
            ("above", operator.gt, self.above),
            ("below", operator.lt, self.below),
        )
        return [(word, within, limit) for word, within, limit in limits if limit is not None]
