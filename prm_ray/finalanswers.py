"""What a response gives as its final answer, and the forms in which equal answers are equal texts.

Models write for people: bold, LaTeX, units, `Option B`. What is only looks is taken off here, once for all judges.
Each takes time linear in the text: models write thousands of dots too, and a server looks at them between two requests.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(  # a unit may follow at once, 12.5kg; atomic groups, so that it never ends within a number
    r"(?<![\w.])[-+]?\$?(?>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?>(?:\.\d+)?)(?!(?:st|nd|rd|th)\b|[eE][-+]?\d)"
    r"|(?<![\w.])[-+]?\.\d+"
)
_FINAL = re.compile(r"(?im)^.*?(?:####|\banswer(?:\s+is)?[*_]{0,2}\s*:|\banswer\s+is\b)[ \t]*(\S.*)$")
_EMPHASIS = re.compile(r"(?<!\S)(?:\*\*|__)(?=\S)|(?<=\S)(?:\*\*|__)(?!\w)")
_DRESS = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}|\\[!,;]|\\(?=[$%])|\{(?=,\})|(?<=\{,)\}")
_WORD = re.compile(  # that no function of algebra has for its name
    r"\b(?!(?:(?:arc)?(?:sin|cos|tan)h?|sec|csc|cot|log|exp|sqrt|min|max|gcd|lcm)\b)[A-Za-z]{3,}"
)
_TEXT_UNIT = re.compile(r"(?:\s|\\[!,;])*\\text\s*\{[^{}\d]+\}")
_WORD_UNIT = re.compile(r"\s*[A-Za-z][^\d\\]*")
_CHOICE = re.compile(r"^\W*+(?i:option|choice)?\s*\(?([A-Z])(?:[).:,\s].*)?\W*$", re.DOTALL)
_SMALL_CHOICE = re.compile(r"^\W*([a-z])\W*$")
_LAST_CHOICE = re.compile(r"\(([A-Z])\)|(?m:^[^\S\n]*([A-Z])[.)]?[^\S\n]*$)")

_MOST_DIGITS = 1000
"""Of a number in powers of ten."""


def final_answer(text: str, pattern: str | None = None) -> str | None:
    """The part of a response that states its answer, None if no part says so.

    With a `pattern` its last match (first group); else the last `\\boxed{...}`, else what follows the last `Answer:`,
    `the answer is` or `####`.
    """
    if pattern is not None:
        found = list(re.finditer(pattern, text))
        return (found[-1][1] if found[-1].re.groups else found[-1][0]) if found else None
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    lines = _FINAL.findall(text)
    return (_without_emphasis(lines[-1].rstrip(" \t.")) or None) if lines else None


def _without_emphasis(text: str) -> str:
    """`**42.**` -> `42`."""
    return _EMPHASIS.sub("", text).strip(" \t*_`").rstrip(" .")


def _undressed(text: str) -> str:
    r"""Without what LaTeX has for looks: `\text{B}` -> `B`, `\$1{,}234` -> `$1,234`."""
    return _DRESS.sub(lambda match: match[1] or "", text)


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for index in range(begin - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[begin:index]
    return None


def exact_answer(text: str, gold: str | None, pattern: str | None = None) -> str | None:
    """The answer a response states, numbers in one form. Where `gold` is a number: the number in what it states, or
    where nothing is stated the last one of all."""
    stated = final_answer(text, pattern)
    wants_number = pattern is None and gold is not None and as_number(gold) is not None
    if stated is None and wants_number:
        numbers = _NUMBER.findall(text)
        stated = numbers[-1] if numbers else None
    if stated is None:
        return None
    stated = _undressed(stated)
    number = as_number(stated)
    if number is None and wants_number:
        number = _only_number(stated)
    return f"{number:f}" if number is not None else stated.strip()


def vote_answer(text: str, judge: str, pattern: str | None = None) -> str | None:
    """The answer a response states, in the form in which it votes where no gold answer is known: as near as may be to
    what the judge gives. That there was a number somewhere states nothing: who asks may not want one."""
    if judge == "choice":
        return choice_answer(text, pattern)
    stated = final_answer(text, pattern)
    number = _quantity(stated) if judge == "math" and stated is not None else None
    return exact_answer(text, None, pattern) if number is None else f"{number:f}"


def _quantity(text: str) -> Decimal | None:
    r"""`12 dollars`, `12\,\text{km}` -> 12: a number and its unit. Not `2 pi` or `Paris in 1889`: more than that."""
    for shown in (text.strip(), _undressed(text).strip()):
        number = _NUMBER.match(shown)
        if number is not None and _is_unit(shown[number.end() :]):
            return as_number(number[0])
    return None


def _is_unit(text: str) -> bool:
    return _TEXT_UNIT.fullmatch(text) is not None or (_WORD_UNIT.fullmatch(text) is not None and is_prose(text))


def _only_number(text: str) -> Decimal | None:
    """`12 dollars` -> 12, `30 + 12 = 42` -> 42; of several nobody knows which is meant."""
    numbers = _NUMBER.findall(text.rpartition("=")[2])
    return as_number(numbers[0]) if len(numbers) == 1 else None


def as_number(text: str) -> Decimal | None:
    """`$1,234.50` -> 1234.5; digits are kept exactly, whatever their number."""
    try:
        number = Decimal(re.sub(r"[$,\s]", "", text).rstrip("."))
    except InvalidOperation:
        return None
    if not number.is_finite() or abs(number.adjusted()) > max(len(text), _MOST_DIGITS):  # 1e999999999 is written out
        return None
    text = f"{number:f}"
    return Decimal((text.rstrip("0").rstrip(".") if "." in text else text) or "0") + 0


def choice_letter(text: str) -> str | None:
    plain = _undressed(text).strip()
    match = _CHOICE.match(plain) or _SMALL_CHOICE.match(plain)
    return match[1].upper() if match else None


def choice_answer(text: str, pattern: str | None = None) -> str | None:
    """The letter a response states; where it states nothing, the last `(B)` or line that is a letter only."""
    stated = final_answer(text, pattern)
    letter = choice_letter(stated) if stated is not None else None
    if letter is not None or pattern is not None:
        return letter
    marked = [first or second for first, second in _LAST_CHOICE.findall(stated if stated is not None else text)]
    return marked[-1] if marked else None


def is_prose(text: str) -> bool:
    """Words with a number among them, perhaps, and no LaTeX."""
    return "\\" not in text and _WORD.search(text) is not None
