"""When what a program printed or returned is the expected: as the judge of its source decides, not character by character."""

import math
import re
from decimal import Decimal

from trainer.rewards.sandbox import wire

TOLERANCE, ONE = Decimal("1e-6"), Decimal(1)  # absolute or relative, where printed numbers may differ
NUMBER_CHARACTERS = 1000  # longer ones are texts
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")  # 0010 and 4_2 are texts
RETURNED_TOLERANCE = 1e-5  # what the sites whose tests call functions allow in floats


def same_output(printed: str, expected: str, *, tolerant: bool) -> bool:
    """Compare printed text token by token: blanks and line ends never matter, `1.50` is `1.5`, texts must be equal.

    tolerant: numbers with a fractional part in `expected` may differ by `TOLERANCE`. Whole numbers never may.
    """
    if printed == expected:
        return True
    theirs = expected.split()
    mine = printed.split(maxsplit=len(theirs))  # one more at most: what a program prints without end is not taken apart
    return len(mine) == len(theirs) and all(a == b or _same_number(a, b, tolerant) for a, b in zip(mine, theirs, strict=True))


def _same_number(mine: str, theirs: str, tolerant: bool) -> bool:
    if max(len(mine), len(theirs)) > NUMBER_CHARACTERS or not (_NUMBER.fullmatch(mine) and _NUMBER.fullmatch(theirs)):
        return False
    try:
        a, b = Decimal(mine), Decimal(theirs)
        fractional = any(mark in theirs for mark in ".eE")
        return a == b or (tolerant and fractional and abs(a - b) <= TOLERANCE * max(ONE, abs(b)))
    except ArithmeticError:  # an exponent beyond any number
        return False


def same_value(returned: object, expected: object) -> bool:
    """Compare a returned value with the expected JSON value: tuples are lists, 3 is 3.0, floats may differ by 1e-5."""
    if isinstance(returned, wire.Foreign):
        return False
    if isinstance(returned, list | tuple) and isinstance(expected, list):
        return len(returned) == len(expected) and all(map(same_value, returned, expected))
    if isinstance(returned, dict) and isinstance(expected, dict):
        mine = {str(key): value for key, value in returned.items()}  # JSON has no other keys
        return len(mine) == len(returned) and mine.keys() == expected.keys() and all(same_value(mine[key], expected[key]) for key in mine)
    if isinstance(returned, int | float) and isinstance(expected, float) and not isinstance(returned, bool):
        try:
            return math.isclose(returned, expected, rel_tol=RETURNED_TOLERANCE, abs_tol=RETURNED_TOLERANCE) or returned == expected
        except OverflowError:  # an integer no float can hold
            return False
    return returned == expected
