r"""Equality of two mathematical expressions by computer algebra, kept from running away.

The expressions are parsed by math-verify's LaTeX parser and compared in two steps. First at points: both sides are
evaluated at a few rational values of their variables. Sides that differ at a point differ; sides that agree at every
point are equal (a polynomial identity would have to fail at points it never saw). Rational values agree when they are
the same, others when they differ by less than 1e-40; where a side is written with a decimal point, 12 digits do. It takes
about a millisecond and cannot blow up as `simplify` can. What has no value at a point, such as sets, relations and
functions without a definition, is left to `math_verify.verify`.

No signal is used, so that any thread may ask: math-verify's own timeouts are off, and the pool's limit kills a worker
that hangs. What would make it hang is turned away before it is parsed (`too_heavy`).
"""

import functools
import logging
import re

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify as math_verify
from sympy.core.relational import Relational

from trainer.rewards.latex import depth

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns once per process that its timeouts are off: the pool has one

_NORMALIZATION = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
_CONVERSION = ConversionConfig(lowercase_symbols=False)  # X and x are two variables

_MAX_LENGTH = 300
_MAX_DEPTH = 6  # the parser's time grows steeply with brackets within brackets
_MAX_POWER = 10_000
_MAX_SOLVED = 4  # the degree of relations that are solved to be compared
_ENDLESS = re.compile(r"\\(?:int|iint|oint|sum|prod|lim|bigcup|bigcap)(?![a-zA-Z])|\d{40}|'")
_EXPONENT = re.compile(r"\^\s*(?:\{((?:[^{}]|\{[^{}]*\})*)\}|\(([^()]*)\)|(\d+))")
_FACTORIAL = re.compile(r"\d{4,}\s*[!})]*\s*!|!\s*\)*\s*!|\)\s*!.*!")
_GROWING = re.compile(r"\\(?:exp|sinh|cosh|Gamma)(?![a-zA-Z])")
_POINTS = (sympy.Rational(113, 97), sympy.Rational(-71, 83), sympy.Rational(229, 61))
_DIGITS = 60
_MAX_DIGITS = 20_000  # before the point: what is greater is equal only as spelled
_TOLERANCE = sympy.Float("1e-40")
_DECIMAL_TOLERANCE = sympy.Float("1e-12")


def too_heavy(text: str) -> bool:
    r"""Whether evaluating a canonical answer could run away: towers of powers, huge factorials, sums, deep nesting."""
    levels = depth(text)
    if len(text) > _MAX_LENGTH or levels is None or levels > _MAX_DEPTH or _ENDLESS.search(text) or _FACTORIAL.search(text):
        return True
    if len(_GROWING.findall(text)) > 1 or ("\\binom" in text and re.search(r"\d{4}", text)):
        return True
    nested = 1
    for power in _EXPONENT.finditer(text):
        exponent = power[1] or power[2] or power[3] or ""
        size = 1
        for digits in re.findall(r"\d+", exponent):
            size *= max(1, int(digits))
        if "^" in exponent or "!" in exponent or size > _MAX_POWER:
            return True
        if text[: power.start()].rstrip().endswith((")", "}", "]")) or power[3] is None:
            nested *= size  # a power of a bracket: its powers multiply
        if nested > _MAX_POWER:
            return True
    return bool(re.search(r"\^\s*(?:\{[^{}]*\}|\w|\\\w+)\s*\^", text))


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> sympy.Basic | None:
    """Parse a canonical answer; None where the parser cannot."""
    try:
        parsed = latex2sympy(normalize_latex(text, _NORMALIZATION), is_real=True, normalization_config=None, conversion_config=_CONVERSION)
    except Exception:  # noqa: BLE001  the generated parser and sympy's constructors raise whatever they like on odd input
        return None
    if not isinstance(parsed, sympy.Basic | sympy.MatrixBase):
        return None
    decimals = parsed.atoms(sympy.Float)
    return parsed.xreplace({decimal: sympy.Rational(str(decimal)) for decimal in decimals}) if decimals else parsed


def read_gold(gold: str) -> sympy.Basic | None:
    """Parse a canonical gold answer; None for one that is too heavy, so that only its own spelling passes.

    Raises:
        ValueError: if it cannot be parsed.
    """
    readable = depth(gold) is not None
    if readable and too_heavy(gold):
        return None
    wanted = parse(gold) if readable else None
    if wanted is None:
        raise ValueError(
            f"ground_truth: {gold!r} is read neither as a number, nor as words, nor as a formula, so that other spellings of it cannot "
            "be judged; mend the row or drop it."
        )
    return wanted


def equal(gold: str, answer: str, *, decimal: bool = False) -> bool:
    """Compare two canonical answers. `decimal`: one of them is written with a decimal point, so that 12 digits do.

    Raises:
        ValueError: for a gold answer that cannot be parsed. An answer that cannot is not equal.
    """
    wanted = read_gold(gold)
    given = None if wanted is None or too_heavy(answer) else parse(answer)
    return given is not None and _equal(wanted, given, decimal)


def equal_sets(gold: str, answer: str, *, decimal: bool = False) -> bool:
    r"""Compare two sets or relations written in different ways: x \ge 2 and [2, \infty). What cannot be read is not equal."""
    if too_heavy(gold) or too_heavy(answer):
        return False
    wanted, given = parse(gold), parse(answer)
    return wanted is not None and given is not None and _equal(wanted, given, decimal)


def _equal(wanted: sympy.Basic, given: sympy.Basic, decimal: bool) -> bool:
    try:
        same = _equal_relations(wanted, given, decimal)
        if same is None:
            same = _equal_at_points(wanted, given, decimal)
        if same is None:
            same = math_verify(wanted, given, float_rounding=12, timeout_seconds=None, allow_set_relation_comp=True)
    except Exception:  # noqa: BLE001  sympy raises whatever it likes on what it cannot evaluate
        return False
    return bool(same)


def _equal_relations(wanted: sympy.Basic, given: sympy.Basic, decimal: bool) -> bool | None:
    """Compare a < b with c < d or d > c by the differences of their sides; None where that does not settle it."""
    relations = [side for side in (wanted, given) if isinstance(side, Relational)]
    if len(relations) == 2:
        # `reversed` turns > into <, so that two spellings of one relation are of one type
        one, other = (side.reversed if isinstance(side, sympy.Gt | sympy.Ge) else side for side in relations)
        difference = other.lhs - other.rhs
        if type(one) is type(other):
            turned = (difference, -difference) if isinstance(one, sympy.Eq | sympy.Ne) else (difference,)
            if any(_equal_at_points(one.lhs - one.rhs, side, decimal) for side in turned):
                return True
    powers = (power for side in relations for power in side.atoms(sympy.Pow))
    if any(power.exp.is_number and abs(power.exp) > _MAX_SOLVED for power in powers):
        return False  # math-verify would solve it, which takes seconds and more from here on
    return None


def _equal_at_points(wanted: sympy.Basic, given: sympy.Basic, decimal: bool) -> bool | None:
    """Compare values; None where there are none to compare."""
    if not (isinstance(wanted, sympy.Expr) and isinstance(given, sympy.Expr)):
        return None
    if wanted == given:
        return True
    names = sorted({symbol.name for side in (wanted, given) for symbol in side.free_symbols} - {"i"})
    compared = False
    for turn in range(len(_POINTS) if names else 1):
        values = {name: _POINTS[(place + turn) % len(_POINTS)] + sympy.Rational(place, 7) for place, name in enumerate(names)}
        same = _equal_values(_at(wanted, values), _at(given, values), decimal)
        if same is False:
            return False
        compared = compared or same is not None
    return True if compared else None


def _at(side: sympy.Expr, values: dict[str, sympy.Rational]) -> sympy.Expr:
    points = {symbol: sympy.I if symbol.name == "i" else values[symbol.name] for symbol in side.free_symbols}
    return side.subs(points).doit()  # the parser leaves 100! and 2^{100} - 1 as they are written


def _equal_values(wanted: sympy.Expr, given: sympy.Expr, decimal: bool) -> bool | None:
    """Compare two expressions without variables; None where one has no value."""
    if wanted.is_Rational and given.is_Rational:
        return wanted == given
    sides = _value(wanted, _DIGITS), _value(given, _DIGITS)
    if None in sides:
        return None
    sizes = [abs(side) for side in sides if side != 0]
    scale = min(sizes[0], 1) if len(sizes) == 2 else 1
    if decimal:
        return bool(abs(sides[0] - sides[1]) <= _DECIMAL_TOLERANCE * max(scale, *sizes, 0))
    digits = max([0, *(int(sympy.log(size, 10).evalf(15)) for size in sizes)])
    if digits > _MAX_DIGITS:
        return False
    if digits > 9:  # what is after the point counts as in small numbers
        sides = _value(wanted, _DIGITS + digits), _value(given, _DIGITS + digits)
    return bool(abs(sides[0] - sides[1]) <= _TOLERANCE * scale)


def _value(side: sympy.Expr, digits: int) -> sympy.Expr | None:
    parts = side.evalf(digits).as_real_imag()
    if not all(part.is_finite and (part.is_Float or part.is_Rational) for part in parts):
        return None
    # a digit or none that counts: sympy found nothing but noise where all cancels
    real, imaginary = (sympy.Integer(0) if part.is_Float and part._prec <= 4 else part for part in parts)
    return real + imaginary * sympy.I
