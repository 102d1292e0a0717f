r"""Equality of two mathematical expressions by computer algebra, kept from running away.

The expressions are parsed by math-verify's LaTeX parser and compared in two steps. First at points: both sides are
evaluated to 30 digits at a few rational values of their variables. Sides that differ at a point differ; sides that agree
in 12 digits at every point are equal (a polynomial identity would have to fail at points it never saw). It takes
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
_DIGITS = 30
_TOLERANCE = sympy.Float("1e-12")


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
    return parsed if isinstance(parsed, sympy.Basic | sympy.MatrixBase) else None


def equal(gold: str, answer: str) -> bool:
    """Compare two canonical answers.

    Raises:
        ValueError: for a gold answer that cannot be parsed. An answer that cannot is not equal.
    """
    readable = depth(gold) is not None
    if readable and too_heavy(gold):
        return False  # only its own spelling passes
    wanted = parse(gold) if readable else None
    if wanted is None:
        raise ValueError(
            f"ground_truth: {gold!r} is read neither as a number, nor as words, nor as a formula, so that other spellings of it cannot "
            "be judged; mend the row or drop it."
        )
    given = None if too_heavy(answer) else parse(answer)
    return given is not None and _equal(wanted, given)


def equal_sets(gold: str, answer: str) -> bool:
    r"""Compare two sets or relations written in different ways: x \ge 2 and [2, \infty). What cannot be read is not equal."""
    if too_heavy(gold) or too_heavy(answer):
        return False
    wanted, given = parse(gold), parse(answer)
    return wanted is not None and given is not None and _equal(wanted, given)


def _equal(wanted: sympy.Basic, given: sympy.Basic) -> bool:
    try:
        same = _equal_relations(wanted, given)
        if same is None:
            same = _equal_at_points(wanted, given)
        if same is None:
            same = math_verify(wanted, given, float_rounding=12, timeout_seconds=None, allow_set_relation_comp=True)
    except Exception:  # noqa: BLE001  sympy raises whatever it likes on what it cannot evaluate
        return False
    return bool(same)


def _equal_relations(wanted: sympy.Basic, given: sympy.Basic) -> bool | None:
    """Compare a < b with c < d or d > c by the differences of their sides; None where that does not settle it."""
    relations = [side for side in (wanted, given) if isinstance(side, Relational)]
    if len(relations) == 2:
        # `reversed` turns > into <, so that two spellings of one relation are of one type
        one, other = (side.reversed if isinstance(side, sympy.Gt | sympy.Ge) else side for side in relations)
        difference = other.lhs - other.rhs
        if type(one) is type(other):
            turned = (difference, -difference) if isinstance(one, sympy.Eq | sympy.Ne) else (difference,)
            if any(_equal_at_points(one.lhs - one.rhs, side) for side in turned):
                return True
    powers = (power for side in relations for power in side.atoms(sympy.Pow))
    if any(power.exp.is_number and abs(power.exp) > _MAX_SOLVED for power in powers):
        return False  # math-verify would solve it, which takes seconds and more from here on
    return None


def _equal_at_points(wanted: sympy.Basic, given: sympy.Basic) -> bool | None:
    """Compare values; None where there are none to compare."""
    if not (isinstance(wanted, sympy.Expr) and isinstance(given, sympy.Expr)):
        return None
    names = sorted({symbol.name for side in (wanted, given) for symbol in side.free_symbols} - {"i"})
    compared = False
    for turn in range(len(_POINTS) if names else 1):
        values = {name: _POINTS[(place + turn) % len(_POINTS)] + sympy.Rational(place, 7) for place, name in enumerate(names)}
        sides = [_value(side, values) for side in (wanted, given)]
        if None in sides:
            continue
        compared = True
        scale = max(sympy.Float(1), abs(sides[0]))
        if sides[0] == 0 or sides[1] == 0:
            scale = sympy.Float(1)
        elif abs(sides[0]) < 1:
            scale = abs(sides[0])
        if abs(sides[0] - sides[1]) > _TOLERANCE * scale:
            return False
    return True if compared else None


def _value(side: sympy.Expr, values: dict[str, sympy.Rational]) -> sympy.Expr | None:
    points = {symbol: sympy.I if symbol.name == "i" else values[symbol.name] for symbol in side.free_symbols}
    value = side.subs(points).evalf(_DIGITS)
    return (
        value if value.is_number and value.is_finite and all(part.is_Float or part.is_Rational for part in value.as_real_imag()) else None
    )
