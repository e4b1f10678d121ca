"""Figures as our pages print them: few digits, a true minus sign, an en dash for missing values."""

from __future__ import annotations

import math

MINUS = "−"


def number(value: float | None, digits: int | None = None) -> str:
    """A figure as pages print it: about three significant digits, a true minus sign, an en dash for None.

    >>> number(0.6931), number(-12.345), number(1234567), number(2e-05), number(0)
    ('0.693', '−12.3', '1,234,567', '2.0e−5', '0')
    """
    if value is None:
        return "–"
    if digits is not None:
        shown = f"{value:,.{digits}f}"
    elif value == 0 or (float(value).is_integer() and abs(value) >= 1):
        shown = f"{value:,.0f}"
    elif abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        shown = f"{mantissa}e{int(exponent)}"
    else:
        places = max(0, 2 - math.floor(math.log10(abs(value))))
        shown = f"{value:,.{min(places, 4)}f}"
    if not any(digit in shown for digit in "123456789"):
        shown = shown.removeprefix("-")
    return shown.replace("-", MINUS)


def first_and_last(first: float, last: float) -> str:
    """Two values of one curve, with the same number of digits.

    >>> first_and_last(39, 39.62), first_and_last(0, 0.6231)
    ('39.0 → 39.6', '0.000 → 0.623')
    """
    largest = max(abs(first), abs(last))
    if largest < 1e-3:
        return f"{number(first)} → {number(last)}"
    digits = min(4, max(0, 2 - math.floor(math.log10(largest))))
    return f"{number(first, digits)} → {number(last, digits)}"


def with_deviation(mean: float, deviation: float) -> str:
    """A mean with its uncertainty: that in two significant digits, the mean to the same place (JCGM 100:2008, 7.2.6).

    >>> with_deviation(1.97, 0.0117), with_deviation(812.4, 31), with_deviation(0.5, 0), with_deviation(2e-05, 3e-06)
    ('1.970 ± 0.012', '812 ± 31', '0.500 ± 0', '2.0e−5 ± 3.0e−6')
    >>> with_deviation(3, 0.0996)  # which rounds up to a digit less
    '3.00 ± 0.10'
    """
    if deviation == 0 or abs(mean) < 1e-3:
        return f"{number(mean)} ± {number(deviation)}"
    digits = max(0, 1 - math.floor(math.log10(float(f"{deviation:.1e}"))))
    return f"{number(mean, digits)} ± {number(deviation, digits)}"


def percent(share: float) -> str:
    """0.744 as 74%."""
    return f"{100 * share:.0f}%"


def two_digits(value: float) -> str:
    """0.71"""
    return number(value, 2)


def one_digit(value: float) -> str:
    """12.3"""
    return number(value, 1)


def p_value(value: float) -> str:
    """0.03, 0.004, < 0.001"""
    return "< 0.001" if value < 0.001 else number(value, 3 if value < 0.01 else 2)


def digits_for(span: float) -> int:
    """Meaningful decimals of a mean on a scale of this length.

    >>> [digits_for(span) for span in (0.05, 1, 10, 100, 4000)]
    [4, 2, 2, 1, 0]
    """
    if span > 100:
        return 0
    return 1 if span > 10 else max(2, min(2 - math.floor(math.log10(span)), 6)) if span > 0 else 2


def finer_percent(share: float) -> str:
    """4.7%"""
    return f"{number(100 * share, 1)}%"


def signed(value: float, digits: int = 2) -> str:
    """+0.12, −0.12, 0.00"""
    shown = number(value, digits)
    return f"+{shown}" if value > 0 and any(digit in shown for digit in "123456789") else shown


def signed_points(share: float) -> str:
    """A difference of shares in percentage points: +4.7"""
    return signed(100 * share, 1)


def short(identity: str) -> str:
    """The first characters of a hash, as people quote it."""
    return identity[:10]


def duration(seconds: float) -> str:
    """45 s, 3 min 05 s, 2 h 07 min"""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def memory(count: float) -> str:
    """1.85 GiB, 120 MiB"""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.0f} MiB"


def energy(kwh: float) -> str:
    """Kilowatt-hours.

    >>> energy(0.042137), energy(12.3456)
    ('0.0421', '12.3')
    """
    return f"{kwh:.3g}"
