"""Values of a JSON file that may be from anywhere, checked as they are read."""

from typing import Any

LARGEST_IMAGE = 4096
_LONGEST_TEXT = 1000


class JsonSection:
    """A JSON object whose values are checked as they are read.

    Null is the same as no value: a method then gives its default, or refuses it where that is None. What is refused
    raises a ValueError with the place, the value and what is allowed.
    """

    def __init__(self, values: Any, where: str):
        """Takes the object, as JSON reads it, and what it is called in errors."""
        if not isinstance(values, dict):
            raise ValueError(f"{where} must be a JSON object, found {type(values).__name__}")
        self._values, self.where = values, where

    def keys(self) -> list[str]:
        """All the keys."""
        return list(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        """The value, unchecked."""
        value = self._values.get(key)
        return default if value is None else value

    def section(self, key: str) -> "JsonSection":
        """An object within this one."""
        return JsonSection(self.get(key), f"{self.where}: {key}")

    def wrong(self, key: str, allowed: str) -> ValueError:
        """The error for a value that is not allowed."""
        return ValueError(f"{self.where}: {key}={str(self.get(key))[:100]}; allowed: {allowed}")

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text of at most 1000 characters that is not empty."""
        value = self.get(key, default)
        if not isinstance(value, str) or not 1 <= len(value) <= _LONGEST_TEXT:
            raise self.wrong(key, f"a text of 1 to {_LONGEST_TEXT} characters")
        return value

    def choice(self, key: str, choices: tuple, default: Any = None) -> Any:
        """One of some texts or numbers."""
        value = self.get(key, default)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise self.wrong(key, ", ".join(map(str, choices)))
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number of a range, both ends included."""
        value = self.get(key, default)
        if not _is_number(value, low, high):
            raise self.wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def count(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number of a range, both ends included."""
        value = self.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"a whole number from {low} to {high}")
        return value

    def numbers(
        self, key: str, count: int, low: float, high: float, default: tuple[float, ...] | None = None
    ) -> tuple[float, ...]:
        """Some numbers of a range, or one that counts for all."""
        value = self.get(key, default)
        values = list(value) if isinstance(value, list | tuple) else [value]
        if len(values) not in (1, count) or not all(_is_number(number, low, high) for number in values):
            raise self.wrong(key, f"{count} numbers from {low:g} to {high:g}")
        return tuple(float(number) for number in (values * count)[:count])

    def texts(self, key: str) -> list[str]:
        """A list, not empty, of texts of at most 1000 characters."""
        value = self.get(key)
        texts = value if isinstance(value, list) and value else [None]
        if not all(isinstance(text, str) and len(text) <= _LONGEST_TEXT for text in texts):
            raise self.wrong(key, f"a list of texts of at most {_LONGEST_TEXT} characters")
        return value


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
