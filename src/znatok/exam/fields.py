"""A JSON object read field by field: each value of the type that is expected, or an error with its place."""

import sys
from collections.abc import Sequence
from typing import Any, Self

from znatok.data.schema import described, quoted
from znatok.errors import DataError


class Fields:
    """The fields of one object; whatever can't be read is a DataError.

    Attributes:
        place: file and line, for errors.
        values: the object.
    """

    def __init__(self, place: str, values: dict[str, Any]) -> None:
        self.place = place
        self.values = values

    def within(self, key: str, value: object) -> Self:
        """Return an object inside this one, read with the same place in its errors."""
        if not isinstance(value, dict):
            raise self._bad('{place}: "{key}" holds {found}; expected objects', key=key, found=described(value))
        return type(self)(self.place, value)

    def _bad(self, template: str, **fields: object) -> DataError:
        """Return the error that names this place."""
        return DataError(template, place=self.place, **fields)

    def only(self, known: set[str]) -> None:
        """Refuse keys that nobody reads."""
        if unknown := sorted(set(self.values) - known):
            raise self._bad(
                "{place}: unknown key {key}; expected {known}",
                key=quoted(unknown),
                known=quoted(sorted(known), most=20),
            )

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text; not a blank one where there is no default."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise self._bad('{place}: "{key}" is {found}; expected text', key=key, found=described(value))
        return value

    def array(self, key: str) -> list[Any]:
        """Return an array, an empty one where there is none."""
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise self._bad('{place}: "{key}" is {found}; expected an array', key=key, found=described(value))
        return value

    def texts(self, key: str, least: int = 1) -> tuple[str, ...]:
        """Return an array of at least so many texts, none of them blank."""
        value = self.array(key)
        if len(value) < least or not all(isinstance(text, str) and text.strip() for text in value):
            raise self._bad('{place}: "{key}": expected an array of strings that are not empty', key=key)
        return tuple(value)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number that a float can hold."""
        value = self.values.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
            raise self._bad('{place}: "{key}" is {found}; expected a number', key=key, found=described(value))
        return float(value)

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number, 1 or more."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._bad(
                '{place}: "{key}" is {found}; expected a whole number, 1 or more', key=key, found=described(value)
            )
        return value

    def one_of(self, key: str, known: Sequence[str], default: str | None) -> str:
        """Return one of the known words."""
        value = self.values.get(key, default)
        if value not in known:
            raise self._bad(
                '{place}: "{key}" is {found}; expected one of {known}',
                key=key,
                found=described(value),
                known=", ".join(known),
            )
        return str(value)
