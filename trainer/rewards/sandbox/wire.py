"""Python values as JSON text and back, for values that come from a program nobody trusts: data only, never code.

Lists, strings, numbers, booleans and None are themselves; everything else is an object with one tagged key. A value of
a class of the program's own becomes `Foreign`, which equals nothing. Subclasses of the built-in types are read through
the built-in type, whatever methods they redefine. Standard library only.
"""

import json
from collections import deque
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import islice

ITEMS = 100_000  # of an iterator that travel: it may have no end
_PLAIN = (type(None), bool, int, float, str)


class Foreign:
    """A value that cannot travel: known by its repr, equal to nothing."""

    def __init__(self, text: object) -> None:
        self.text = str(text)

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def dumps(value: object) -> str:
    """Return the text of a value. Raises RecursionError and ValueError for what is too deep or has too many digits."""
    return json.dumps(_pack(value))


def loads(text: str) -> object:
    """Return the value of a text. Any exception may come of a text that `dumps` did not write."""
    return _unpack(json.loads(text))


def _pack(value):
    if type(value) in _PLAIN:
        return value
    for base, pack in _PACKERS:
        if isinstance(value, base):
            return pack(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):  # arrays and scalars
        return _pack(value.tolist())
    return {"foreign": _shown(value)}


def _shown(value: object) -> str:
    try:
        return f"{value!r:.200}"
    except Exception:  # noqa: BLE001  a class of the program's whose repr raises
        return f"<{type(value).__name__}>"


# Every type's own method reads the value, not what a subclass made of it.
_PACKERS = (
    (list, lambda value: [_pack(item) for item in list.__iter__(value)]),
    (tuple, lambda value: {"tuple": [_pack(item) for item in tuple.__iter__(value)]}),
    (set, lambda value: {"set": [_pack(item) for item in set.__iter__(value)]}),
    (frozenset, lambda value: {"frozenset": [_pack(item) for item in frozenset.__iter__(value)]}),
    (dict, lambda value: {"dict": [[_pack(key), _pack(item)] for key, item in dict.items(value)]}),
    (int, lambda value: int.__add__(value, 0)),
    (float, lambda value: float.__add__(value, 0.0)),
    (str, str.__str__),
    (complex, lambda value: {"complex": [complex.__add__(value, 0).real, complex.__add__(value, 0).imag]}),
    (bytes, lambda value: {"bytes": bytes.hex(value)}),
    (bytearray, lambda value: {"bytes": bytearray.hex(value)}),
    (deque, lambda value: {"deque": [_pack(item) for item in deque.__iter__(value)]}),
    (range, lambda value: {"range": [value.start, value.stop, value.step]}),
    (Decimal, lambda value: {"decimal": Decimal.__str__(value)}),
    (Fraction, lambda value: {"fraction": [int(value.numerator), int(value.denominator)]}),
    (datetime, lambda value: {"datetime": datetime.isoformat(value)}),  # before date, which it is
    (date, lambda value: {"date": date.isoformat(value)}),
    (time, lambda value: {"time": time.isoformat(value)}),
    (timedelta, lambda value: {"timedelta": [value.days, value.seconds, value.microseconds]}),
    ((Iterator, KeysView, ValuesView, ItemsView), lambda value: {"iterator": [_pack(item) for item in islice(value, ITEMS)]}),
)


def _unpack(value):
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    return _UNPACKERS[tag](inner)


_UNPACKERS = {
    "tuple": lambda items: tuple(map(_unpack, items)),
    "set": lambda items: set(map(_unpack, items)),
    "frozenset": lambda items: frozenset(map(_unpack, items)),
    "dict": lambda pairs: {_unpack(key): _unpack(item) for key, item in pairs},
    "complex": lambda parts: complex(*parts),
    "bytes": bytes.fromhex,
    "deque": lambda items: deque(map(_unpack, items)),
    "range": lambda parts: range(*parts),
    "decimal": Decimal,
    "fraction": lambda parts: Fraction(*parts),
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda parts: timedelta(*parts),
    "iterator": lambda items: iter(_unpack(items)),
    "foreign": Foreign,
}
