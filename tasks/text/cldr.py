"""Parallel phrases out of the locale data that comes with Babel (Unicode CLDR).

A phrase is an item or a list of two or three: dates, times, numbers, percentages, quantities,
amounts of money, spans of time and territories, as two locales write them:

    en   12.5 kilometers, Japan, and April 1, 2007
    de   12,5 Kilometer, Japan und 1. April 2007

It is a task of templates and names, no natural language.
"""

import datetime
import random
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from typing import Literal

from babel import Locale, UnknownLocaleError, dates, lists, numbers, units

from fwlight.types import DataError

SIZES = {"train": 30_000, "valid": 1_000, "test": 1_000}
"""Pairs of each split; those of evaluation are in no other."""

Item = Callable[[Locale], str]
"""Something that every locale has its own words for."""

_SPACES = str.maketrans("\u00a0\u202f\u2009", "   ")
Style = Literal["standard", "or"]
Format = Literal["full", "long", "medium", "short"]
Span = Literal["year", "month", "week", "day", "hour", "minute", "second"]
_FORMATS: tuple[Format, ...] = ("full", "long", "medium", "short")
_SPANS: tuple[Span, ...] = ("year", "month", "week", "day", "hour", "minute", "second")
_STYLES: tuple[Style, ...] = ("standard", "or")


@lru_cache(maxsize=1)
def phrase_pairs(source_lang: str, target_lang: str, *, seed: int) -> dict[str, list]:
    """Return the pairs of every split, each a (source, target) of one line.

    Every name and word occurs in training: it begins with each of them alone. The pairs of
    evaluation are combinations that do not.

    Args:
        source_lang: A locale of CLDR as `en`.
        target_lang: Another.
        seed: Of the drawing.

    Raises:
        DataError: a locale is unknown.
    """
    locales = (_locale(source_lang), _locale(target_lang))
    draw = random.Random(f"cldr {seed}")
    drawn: dict[str, str] = {}
    for item in _every_word(*locales):
        drawn.setdefault(*_written([item], "standard", locales))
    known = len(drawn)
    while len(drawn) < sum(SIZES.values()):
        items = [_draw_item(draw, locales) for _ in range(draw.choice((1, 1, 2, 2, 3)))]
        drawn.setdefault(*_written(items, draw.choice(_STYLES), locales))
    pairs = list(drawn.items())
    rest = pairs[known:]
    evaluated = SIZES["valid"] + SIZES["test"]
    return {
        "valid": rest[: SIZES["valid"]],
        "test": rest[SIZES["valid"] : evaluated],
        "train": pairs[:known] + rest[evaluated:],
    }


def _locale(name: str) -> Locale:
    try:
        return Locale.parse(name)
    except (UnknownLocaleError, ValueError, TypeError) as error:
        raise DataError(
            f"task.data=cldr knows no language {name}; give a locale as en, de or pt_BR"
        ) from error


def _written(items: list[Item], style: Style, locales: tuple[Locale, Locale]) -> tuple[str, str]:
    source, target = (
        lists.format_list([item(locale) for item in items], style, locale).translate(_SPACES)
        for locale in locales
    )
    return source, target


# Items


def _date(day: datetime.date, form: Format, locale: Locale) -> str:
    return dates.format_date(day, form, locale=locale)


def _moment(moment: datetime.datetime, form: Format, locale: Locale) -> str:
    return dates.format_datetime(moment, form, locale=locale)


def _time(time: datetime.time, form: Format, locale: Locale) -> str:
    return dates.format_time(time, form, locale=locale)


def _span(span: datetime.timedelta, unit: Span, relative: bool, locale: Locale) -> str:
    return dates.format_timedelta(
        span, granularity=unit, threshold=1e9, add_direction=relative, locale=locale
    )


def _quantity(value: float, unit: str, locale: Locale) -> str:
    return units.format_unit(value, unit, "long", locale=locale)


def _amount(value: float, currency: str, locale: Locale) -> str:
    return numbers.format_currency(
        value, currency, locale=locale, format_type="name", currency_digits=False
    )


def _number(value: float, locale: Locale) -> str:
    return numbers.format_decimal(value, locale=locale)


def _percent(value: float, locale: Locale) -> str:
    return numbers.format_percent(value, locale=locale)


def _territory(code: str, locale: Locale) -> str:
    return locale.territories[code]


def _draw_item(draw: random.Random, locales: tuple[Locale, Locale]) -> Item:
    kind = draw.randrange(9)
    territories, currencies, measures = _names(*locales)
    moment = datetime.datetime(1900, 1, 1) + datetime.timedelta(
        minutes=draw.randrange(200 * 365 * 24 * 60)
    )
    if kind == 0:
        return partial(_date, moment.date(), draw.choice(_FORMATS))
    if kind == 1:
        return partial(_moment, moment, draw.choice(("medium", "short")))
    if kind == 2:
        return partial(_time, moment.time(), draw.choice(("medium", "short")))
    if kind == 3:
        value, unit = draw.randrange(2, 60), draw.choice(_SPANS)
        return partial(_span, _span_of(unit, value), unit, draw.random() < 0.5)
    if kind == 4:
        return partial(_quantity, _value(draw), draw.choice(measures))
    if kind == 5:
        return partial(_amount, _value(draw), draw.choice(currencies))
    if kind == 6:
        return partial(_number, _value(draw))
    if kind == 7:
        return partial(_percent, draw.randrange(1, 1000) / 100)
    return partial(_territory, draw.choice(territories))


def _value(draw: random.Random) -> float:
    """Draw a number of one to five digits, sometimes with decimals, small ones more often."""
    whole = draw.randrange(10 ** draw.randrange(1, 6))
    return whole if draw.random() < 0.6 else whole + draw.randrange(1, 100) / 100


def _span_of(unit: str, value: int) -> datetime.timedelta:
    seconds = dict(dates.TIMEDELTA_UNITS)[unit]
    return datetime.timedelta(seconds=seconds * value)


def _every_word(source: Locale, target: Locale) -> Iterator[Item]:
    """Every name, and every word with one and with several."""
    territories, currencies, measures = _names(source, target)
    yield from (partial(_territory, code) for code in territories)
    for value in (1, 2):
        yield from (partial(_amount, value, code) for code in currencies)
        yield from (partial(_quantity, value, unit) for unit in measures)
        for unit in _SPANS:
            for relative in (False, True):
                yield partial(_span, _span_of(unit, value), unit, relative)
                yield partial(_span, -_span_of(unit, value), unit, relative)
    for day in range(366):  # every month and weekday in every format
        for form in _FORMATS:
            yield partial(_date, datetime.date(2000, 1, 1) + datetime.timedelta(day), form)


@cache
def _names(source: Locale, target: Locale) -> tuple[list[str], list[str], list[str]]:
    """Territories, their currencies, and units that both locales name."""
    territories = sorted(
        code
        for code in set(source.territories) & set(target.territories)
        if code.isalpha() and len(code) == 2 and code not in ("ZZ", "XA", "XB", "EU", "EZ", "UN")
    )
    currencies = sorted(
        {
            code
            for territory in territories
            for code in numbers.get_territory_currencies(territory)
            if code in source.currencies and code in target.currencies
        }
    )
    forms = [locale.unit_display_names for locale in (source, target)]
    measures = sorted(
        unit for unit in set(forms[0]) & set(forms[1]) if _both_name(unit, source, target)
    )
    return territories, currencies, measures


def _both_name(unit: str, *locales: Locale) -> bool:
    if unit.startswith("duration-") or "generic" in unit or "person" in unit:
        return False
    try:
        return all(any(c.isalpha() for c in _quantity(2, unit, locale)) for locale in locales)
    except (units.UnknownUnitError, KeyError):
        return False
