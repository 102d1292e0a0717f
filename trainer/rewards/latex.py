r"""The reading of a short LaTeX answer: one spelling for many, exact numbers, units, and the structure around atoms.

Everything here is text and fractions, no computer algebra: most verdicts end here, in microseconds.

An answer's structure is a kind and its parts: `list` ("1, 2", "1 or 2", "\pm 2"), `set` (\{1, 2\}), `union` ([0,1] \cup [2,3]),
`matrix`, a bracketed row of parts whose kind is its two brackets ("()" a tuple or open interval, "[)", ...), or `atom`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 1000  # of a number read exactly; Python refuses to read more than 4,300
MAX_EXPONENT = 400  # of ten in scientific notation
MAX_DEPTH = 12  # brackets within brackets
_BIG = 1500  # characters: what is longer is compared as text only

# --------------------------------------------------------------------------------------------------------------------
# One spelling
# --------------------------------------------------------------------------------------------------------------------

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "±": r"\pm ",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\emptyset ", "²": "^2", "³": "^3", "°": r"^\circ ",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "√": r"\sqrt ", "€": "", "£": "", "¥": "", "$": "", "\u00a0": " ",
    }
)  # fmt: skip

_DEGREE = r"\^\s*\{?\s*\\(?:circ|degree)(?![a-zA-Z])\s*\}?|\\degree(?![a-zA-Z])"
_REWRITES: Sequence[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=\d)\s*(?:\\[,!; ]|\{,\}|,\\!)\s*(?=\d{3}(?!\d))", ""),  # 1\,234 and 1{,}234 and 1,\!234
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|rm|bf|it)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\[\[\]()]", ""),  # \[5\] and \(5\) in the box
        (r"\\textcolor\s*\{\w+\}\s*|\\color\s*\{\w+\}", ""),
        (r"(?<!\\)\\(?:[,;:! >]|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))|~", " "),
        (rf"(?:{_DEGREE})\s*(?:\\(?:text|mathrm|textrm)\s*\{{\s*([CF])\s*\}}|([CF])(?![a-zA-Z]))", r"\\text{ deg\1\2}"),
        (_DEGREE, ""),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\(?:langle|lparen)(?![a-zA-Z])", "("),
        (r"\\(?:rangle|rparen)(?![a-zA-Z])", ")"),
        (r"\\(?:[lr]?vert|mid)(?![a-zA-Z])", "|"),
        (r"\\(?:dfrac|tfrac|cfrac)(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:d|t)binom(?![a-zA-Z])", r"\\binom"),
        (r"\\geq(?:slant)?(?![a-zA-Z])", r"\\ge"),
        (r"\\leq(?:slant)?(?![a-zA-Z])", r"\\le"),
        (r"\\neq(?![a-zA-Z])", r"\\ne"),
        (r"\\times(?![a-zA-Z])", r"\\cdot"),
        (r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"(?<=[.\d])\s*\\(?:bar|dot|overline)\s*(?:\{(\d+)\}|(\d))", r"\\overline{\1\2}"),
        (r"\\(?:mathbf|mathit|boldsymbol|bm|mathsf|operatorname\*?|ensuremath)\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:mathrm|textrm|textbf|textit|textnormal|mbox|text)\s*\{", r"\\text{"),
        (r"\\text\{([^{}]*?)\s*(?:\\?%|percent)\s*\}", r"\\text{\1}\\%"),
        (r"\\text\{\s*\}", " "),
        (r"\\?%|(?<![a-zA-Z])(?:percent|per cent)(?![a-zA-Z])", "%"),
        (r"\\frac\s*(\\[a-zA-Z]+|[0-9a-zA-Z])", r"\\frac{\1}"),  # \frac12, \frac\pi2
        (r"(\\frac\{[^{}]*\})\s*(\\[a-zA-Z]+|[0-9a-zA-Z])", r"\1{\2}"),
        (r"([\^_])\s*\{\s*(\w)\s*\}", r"\1\2"),
        (r"\^\s*e(?![a-zA-Z])", "^{e}"),  # the parser knows no e^e
        (r"(?<![\\a-zA-Z])(sqrt|pi|sin|cos|tan|log|ln|exp|infty)(?![a-zA-Z])", r"\\\1"),
        (r"(?<![\\a-zA-Z])infinity(?![a-zA-Z])", r"\\infty"),
        (r"\\sqrt\s*(?:([0-9a-zA-Z])|\(([^()]*)\))", r"\\sqrt{\1\2}"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"(^|[(\[{,;=&])(\s*)\+(?=\s*(?:\d|\\infty))", r"\1\2"),  # a leading plus
        (r"\A\s*=|\\\\\s*\Z", ""),  # =5, and a line break after the answer
    )
]
_BLANKS = re.compile(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])|(\d)\s+(?=\d)|\s+")
_COUNTED = re.compile(r"\A\\text\{\s*([\d.,/]*\d)(\s+[A-Za-z][A-Za-z .'-]*)\}\Z")
_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")


def canonical(latex: str) -> str:
    """Return the answer in one spelling: no sizes, spacings, currency signs or degree marks, one name for each command."""
    text = latex.strip().replace(r"\$", "").translate(_SIGNS)
    if "\\" in text or not text.isascii() or not text.replace(".", "").replace("-", "").isdigit():
        for pattern, replacement in _REWRITES:
            text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".;,").strip()
    if text[:1] == "{" and _encloses(text):  # {5}, what is left of \\textcolor{red}{5}
        text = text[1:-1].strip()
    # \text{5} and \text{(B)} are 5 and (B); \text{Evelyn} stays text
    if (whole := _WHOLE_TEXT.fullmatch(text)) and not re.search(r"[A-Za-z]{2}", whole[1]):
        text = whole[1].strip()
    return text


def counted(text: str) -> str:
    r"""Take the number out of words: \text{18 eggs} is 18\text{ eggs}. For answers to a number; as a gold answer it is words."""
    return _COUNTED.sub(r"\1\\text{\2}", text)


def key(text: str) -> str:
    """Drop the blanks of a canonical answer, but for those that end a command or part two numbers: equal keys are equal answers."""
    return _BLANKS.sub(lambda blank: f"{blank[1] or blank[2]} " if blank.lastindex else "", text)


def words(text: str) -> str:
    """Return the letters, digits and signs of an answer in words, without regard to case, blanks and closing stops."""
    return re.sub(r"[\s{}.]", "", text.replace(r"\text", "")).casefold()


_WORDY = re.compile(r"\\text\b|(?<![\\a-zA-Z])[A-Za-z]{4,}(?![a-zA-Z]*[{(])|\A(?:yes|no|true|none|odd|even|all|dne)\Z", re.IGNORECASE)
_OPTION = re.compile(r"\(?([A-Z])[).]?")


def is_words(text: str) -> bool:
    """Whether the answer is, or holds, words rather than mathematics."""
    return _WORDY.search(text) is not None


def option(text: str) -> str | None:
    r"""Return the letter of "(B)", "B)" or "B", else None."""
    letter = _OPTION.fullmatch(text)
    return letter[1] if letter else None


# --------------------------------------------------------------------------------------------------------------------
# Numbers
# --------------------------------------------------------------------------------------------------------------------

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
_LOOSE = re.compile(r"\s+(?!\d)|(?<![\d,])\s+")  # blanks that part no digits
_SPACED = re.compile(r"(?<=\d) (?=\d{3}(?:\D|$))")  # 1 234 567


def number(text: str) -> Fraction | None:
    r"""Read a canonical answer that is one rational number, exactly; None for anything else.

    Integers and decimals with or without thousands separators, fractions, mixed numbers (1\frac{1}{2} is 3/2),
    scientific notation, repeating decimals (0.\overline{3}).
    """
    if not text or len(text) > MAX_DIGITS or text[-1].isalpha():
        return None
    for pattern, read in _READINGS:
        if match := pattern.fullmatch(text):
            value = read(*match.groups()[1:])
            return -value if value is not None and match[1] == "-" else value
    tight = _SPACED.sub("", _LOOSE.sub("", text.strip()))
    return number(tight) if tight != text else None


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").removesuffix("."))


def _ratio(above: str, below: str) -> Fraction | None:
    return _decimal(above) / _decimal(below) if _decimal(below) else None


def _mixed(whole: str, *parts: str | None) -> Fraction | None:
    above, below = (part for part in parts if part)
    return int(whole) + Fraction(int(above), int(below)) if int(below) else None


def _scientific(digits: str | None, *exponents: str) -> Fraction | None:
    exponent = int(next(filter(None, exponents)))
    return _decimal(digits or "1") * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None


def _repeating(whole: str, once: str, period: str) -> Fraction:
    shift = 10 ** len(once)
    return Fraction(int(whole + once or "0"), shift) + Fraction(int(period), shift * (10 ** len(period) - 1))


_READINGS = [  # the first group of each is the sign
    (re.compile(r"([+-]?)" + pattern), read)
    for pattern, read in (
        (rf"({_DIGITS})", _decimal),
        (rf"\\frac\{{([+-]?{_DIGITS})\}}\{{([+-]?{_DIGITS})\}}", _ratio),
        (rf"({_DIGITS})/([+-]?{_DIGITS})", _ratio),
        (r"(\d+)(?:\s*\\frac\{(\d+)\}\{(\d+)\}|\s(\d+)/(\d+))", _mixed),
        (rf"(?:({_DIGITS})(?:\\cdot|\*))?10\^(?:\{{([+-]?\d+)\}}|(\d))", _scientific),
        (rf"({_DIGITS})[eE]([+-]?\d+)", _scientific),
        (r"(\d*)\.(\d*)\\overline\{(\d+)\}", _repeating),
    )
]

# --------------------------------------------------------------------------------------------------------------------
# Units
# --------------------------------------------------------------------------------------------------------------------

# Two different units of this table, powers and quotients included, make two different answers. Any other words after a
# number are taken for the name of what was counted ("18 eggs") and dropped, but for those that make another number of it.
_ALIASES = """
mm millimeter millimeters | cm centimeter centimeters | m meter meters metre metres | km kilometer kilometers
in inch inches | ft foot feet | yd yard yards | mi mile miles | mg | g gram grams | kg kilogram kilograms | lb lbs pound pounds
oz ounce ounces | s sec secs second seconds | min mins minute minutes | h hr hrs hour hours | day days | week weeks
month months | yr yrs year years | ml milliliter milliliters | l liter liters litre litres | am a.m | pm p.m
cent cents | dollar dollars usd | rad radian radians | deg degree degrees | degc celsius | degf fahrenheit
n newton newtons | j joule joules | kj kilojoule kilojoules | w watt watts | kw kilowatt kilowatts | pa pascal pascals | hz hertz
v volt volts | kelvin kelvins
"""
_UNITS = {name: names.split()[0] for names in re.split(r"[|\n]", _ALIASES) if names.strip() for name in names.split()}
_QUOTIENTS = re.compile(r"\b(?:(mph)|kph|kmh)\b")
_SCALES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}
_OTHER_NUMBER = re.compile(
    r"\b(?:hal(?:f|ves)(?!-)|(?:third|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s?|factorial|minus|plus|below|above|than|not"
    r"|or (?:more|less|fewer|greater|higher|lower))\b|\A[^A-Za-z]*(?:squared|cubed)\b",
    re.IGNORECASE,
)
_POWER = r"(?:\s*\^\s*\{?-?\d\}?)?"
_NAMED_UNIT = rf"\\text\{{[^{{}}]*\}}{_POWER}"
_TEXT_UNIT = re.compile(rf"(.*?[\w)}}\]|%.])\s*((?:(?:[/\s]|\\cdot(?![a-zA-Z]))*{_NAMED_UNIT})+)", re.DOTALL)
_TEXT_FRACTION_UNIT = re.compile(rf"(.*?[\w)}}\]|])\s*\\frac\{{({_NAMED_UNIT})\}}\{{({_NAMED_UNIT})\}}", re.DOTALL)
_WORD_UNIT = re.compile(
    rf"([+-]?[\d.,/ ]*[\d.]|[+-]?\d*\s*\\frac\{{[\d.,]+\}}\{{[\d.,]+\}})(\s*)(([A-Za-z][A-Za-z.'-]*)(?:{_POWER}[ /]+[A-Za-z.'-]+)*{_POWER})"
)
_UNIT_SIGN = re.compile(r"([A-Za-z][A-Za-z.]*)|\^\s*\{?(-?\d)|/")


@dataclass(frozen=True)
class Measure:
    """An atom without what follows it: `unit` in units of the table ("cm^2", "h^-1 km") or "", `percent` whether it bore the sign."""

    body: str
    unit: str = ""
    percent: bool = False


def measure(text: str) -> Measure:
    r"""Part an atom from its unit: "5\text{ cm}^2", "5 cm", "18 dollars", "50%". "5x", "2 ab" and "3\pi" hold none."""
    body, words = _parted(text)
    if words and _OTHER_NUMBER.search(words):
        return Measure(text)
    body, unit = _scaled(body.strip(), words)
    if body.endswith("%"):
        return Measure(body[:-1].strip(), unit, percent=True)
    return Measure(body, unit)


def _parted(text: str) -> tuple[str, str]:
    """Return an atom's body and the words of its unit, "" where it has none."""
    if match := _TEXT_FRACTION_UNIT.fullmatch(text):
        return match[1], f"{match[2]}/{match[3]}".replace(r"\text", "")
    if match := _TEXT_UNIT.fullmatch(text):
        return match[1], match[2].replace(r"\text", "")
    if match := _WORD_UNIT.fullmatch(text):
        first = match[4].rstrip(".").casefold()
        # Without a blank only units of the table: 5cm, but 2xy. With one, table, scale words, or words no one multiplies.
        if (first in _UNITS and len(first) > 1) or (match[2] and (len(first) > 3 or first in _SCALES)):
            return match[1], match[3]
    return text, ""


def _scaled(body: str, words: str) -> tuple[str, str]:
    """Multiply by the scale words that come first ("5 million people"); return body and unit."""
    while (first := re.match(r"[\s{}]*([A-Za-z]+)", words)) and first[1].casefold() in _SCALES and (value := number(body)) is not None:
        body, words = str(value * _SCALES[first[1].casefold()]), words[first.end() :]
    return body, _unit(words) if words else ""


def _unit(words: str) -> str:
    r"""Return the units of the table in words, with their powers, in one order: "{ m}/{ s}^2" and "meters per s squared" are "m s^-2"."""
    powers: dict[str, int] = {}
    last, side, ahead = "", 1, 1  # the unit that a power belongs to, above or below the bar, the power named before its unit
    for sign in _UNIT_SIGN.finditer(_QUOTIENTS.sub(lambda name: "mi/h" if name[1] else "km/h", words)):
        word = (sign[1] or "").casefold().rstrip(".")
        if word == "per" or sign[0] == "/":
            side = -1
        elif sign[2] or (last and word in ("squared", "cubed")):
            if last:
                powers[last] *= int(sign[2] or _POWERS[word])
        elif word in _POWERS:
            ahead = _POWERS[word]
        else:
            last = _UNITS.get(word, "")
            if last:
                powers[last] = powers.get(last, 0) + side * ahead
            side = ahead = 1
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items()) if power)


# --------------------------------------------------------------------------------------------------------------------
# Structure
# --------------------------------------------------------------------------------------------------------------------

_MATRIX = re.compile(r"\\begin\{([pbBvV]?)(?:small)?(matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{[pbBvV]?(?:small)?\2\}", re.DOTALL)
_CONJUNCTION = re.compile(r"\\text\{\s*,?\s*(?:and|or)\s*\}|(?<=[\s\d)}\]])(?:and|or)(?=[\s\d(\[\\])")
_TOKEN = re.compile(r"\\begin\{\w+\}|\\end\{\w+\}|\\cup(?![a-zA-Z])|\\.|[()\[\]{},;&]", re.DOTALL)
_OPENING, _CLOSING = {"(", "[", "{", "\\{"}, {")", "]", "}", "\\}"}


def depth(text: str) -> int | None:
    """Return the deepest nesting of brackets; None when they do not balance. [0, 1), closed by another kind, is balanced."""
    level = deepest = 0
    for token in _TOKEN.finditer(text):
        level += (token[0] in _OPENING) - (token[0] in _CLOSING)
        deepest = max(deepest, level)
        if level < 0:
            return None
    return deepest if level == 0 else None


def split(text: str, separators: Sequence[str]) -> list[str]:
    """Split outside of all brackets and environments; a bracket that closes another kind, as in [0, 1), is fine."""
    parts, level, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        sign = token[0]
        if sign in _OPENING or sign.startswith("\\begin"):
            level += 1
        elif sign in _CLOSING or sign.startswith("\\end"):
            level -= 1
        elif level == 0 and sign in separators:
            parts.append(text[start : token.start()].strip())
            start = token.end()
    return [*parts, text[start:].strip()]


def listing(text: str) -> list[str]:
    """Return the parts of "1, 2", "1 and 2" or "1 or 2"; one part where the answer is no list."""
    return [part for part in split(_CONJUNCTION.sub(",", text), ",;") if part]


def structure(text: str) -> tuple[str, list]:
    """Return the kind of a canonical answer and its parts (for a matrix: its rows, lists of parts)."""
    text = text.strip()
    if number(text) is not None or len(text) > _BIG or (depth(text) or 0) > MAX_DEPTH:
        return "atom", [text]
    listed = listing(text)
    if len(listed) > 1 and number(measure(text).body) is not None:
        listed = [text]  # 1,234 dollars
    listed = [signed for part in listed for signed in _both_signs(part)]
    if len(listed) > 1:
        return "list", listed
    if len(pieces := split(text, ("\\cup",))) > 1:
        return "union", pieces
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in re.split(r"\\\\", matrix[3]) if row.strip()]
        return "matrix" + (matrix[1] if matrix[1] in ("v", "V") else ""), [split(row, "&") for row in rows]
    return _bracketed(text) or ("atom", [text])


def _bracketed(text: str) -> tuple[str, list] | None:
    """Return the structure of an answer in one pair of brackets; None for other answers."""
    brackets = re.match(r"(\(|\[|\\\{).*?(\)|\]|\\\})\Z", text, re.DOTALL)
    if not brackets or ("\\{" in brackets.groups()) != ("\\}" in brackets.groups()) or not _encloses(text):
        return None
    inner = text[len(brackets[1]) : -len(brackets[2])]
    parts = split(inner, ",;")
    if brackets[1] == "\\{":
        return "set", [part for part in parts if part]
    if len(parts) > 1:
        return brackets[1] + brackets[2], parts
    return structure(inner) if text[0] + text[-1] == "()" else None


def _both_signs(text: str) -> list[str]:
    r"""Write \pm out: 1 \pm a is the two answers 1 + a and 1 - a."""
    if "\\pm" not in text and "\\mp" not in text:
        return [text]
    signs = [text.replace("\\pm", above).replace("\\mp", below).strip() for above, below in ("+-", "-+")]
    return [re.sub(r"(^|=|\()\s*\+\s*", r"\1", sign) for sign in signs]


def _encloses(text: str) -> bool:
    """Whether the bracket a text begins with is closed by its last one."""
    level = 0
    for token in _TOKEN.finditer(text):
        level += (token[0] in _OPENING) - (token[0] in _CLOSING)
        if level == 0:
            return token.end() == len(text)
    return False
