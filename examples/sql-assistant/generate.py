"""Write the text-to-SQL rows that sql-assistant trains on.

    python generate.py --seed 7 --out data

The tables stand in tables.toml; the kinds of question and their wordings stand here. The same seed, tables
and code give the same bytes on every Python: every draw goes through `random.Random.random`, whose sequence
is the one that Python promises to keep.
"""

# ruff: noqa: S608 -- the SQL written here is data; nothing runs it

from __future__ import annotations

import argparse
import json
import random
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).parent
ROWS = {"train": 360, "valid": 40, "test": 40}
MAX_CHARACTERS = 230  # prompt and completion together, so that a CPU trains in minutes

T = TypeVar("T")


class Draw:
    """Seeded choices."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def one(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.between(0, len(items) - 1)]

    def several(self, items: Sequence[T], count: int) -> list[T]:
        """That many different items, in the order in which they were drawn."""
        rest = list(items)
        return [rest.pop(self.between(0, len(rest) - 1)) for _ in range(count)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All the items in a new order."""
        return self.several(items, len(items))


@dataclass(frozen=True)
class Range:
    """A range of whole numbers, both ends included: values of a number column, years of a date column."""

    low: int
    high: int

    def pick(self, draw: Draw) -> int:
        """A number with at most two digits before its zeros, as people ask for: 7, 35, 420, 8600."""
        step: int = 10 ** max(0, len(str(self.high)) - 2)
        return draw.between(-(-self.low // step), self.high // step) * step


@dataclass(frozen=True)
class Table:
    """A table that questions are asked about."""

    name: str
    rows: str  # what one calls its rows, in the plural
    columns: tuple[str, ...]
    texts: dict[str, list[str]]
    numbers: dict[str, Range]
    dates: dict[str, Range]  # the years that occur

    def prompt(self, question: str) -> str:
        """What the model is given."""
        return f"Table {self.name}({', '.join(self.columns)})\nQuestion: {question}"

    def text(self, draw: Draw) -> str:
        """The name of a text column."""
        return draw.one(list(self.texts))

    def number(self, draw: Draw) -> str:
        """The name of a number column."""
        return draw.one(list(self.numbers))

    def date(self, draw: Draw) -> str:
        """The name of a date column."""
        return draw.one(list(self.dates))


def read_tables(path: Path) -> dict[str, list[Table]]:
    """The tables of each split, in the order in which the file names them."""
    splits = tomllib.loads(path.read_text(encoding="utf-8"))
    return {split: [read_table(name, entry) for name, entry in splits[split].items()] for split in ROWS}


def read_table(name: str, entry: dict[str, str | list[str]]) -> Table:
    """A table from its entry in the file; ValueError says what the entry lacks."""
    columns = {column: values for column, values in entry.items() if column != "rows"}
    texts = {column: values for column, values in columns.items() if isinstance(values, list)}
    ranges = {
        column: Range(*(int(end) for end in values.split("..")))
        for column, values in columns.items()
        if isinstance(values, str)
    }
    dates = {column: years for column, years in ranges.items() if column.endswith("_on")}
    numbers = {column: values for column, values in ranges.items() if column not in dates}
    if "rows" not in entry or len(texts) < 2 or not numbers or not dates:
        raise ValueError(f"{name} needs rows, two text columns, a number column and a column that ends in _on")
    return Table(name, str(entry["rows"]), tuple(columns), texts, numbers, dates)


def label(column: str) -> str:
    """The column as one says it: win_rate gives win rate, placed_on gives date placed."""
    return f"date {happened(column)}" if column.endswith("_on") else column.replace("_", " ")


def plural(column: str) -> str:
    """The column as one says it of many rows."""
    word = label(column)
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"


def happened(column: str) -> str:
    """The verb of a date column: placed_on gives placed."""
    return column.removesuffix("_on").replace("_", " ")


def quoted(value: str) -> str:
    """The value as an SQL string."""
    return "'" + value.replace("'", "''") + "'"


# A condition is the words that follow the table's rows in a question, and the SQL that follows WHERE.
Condition = tuple[str, str]

COMPARISONS = (
    ("above", ">"),
    ("over", ">"),
    ("greater than", ">"),
    ("below", "<"),
    ("under", "<"),
    ("less than", "<"),
    ("at least", ">="),
    ("at most", "<="),
)


def text_is(table: Table, draw: Draw) -> Condition:
    """A text column has a value."""
    column = table.text(draw)
    value = draw.one(table.texts[column])
    words = draw.one(("whose {} is {}", "where the {} is {}", "with {} {}")).format(label(column), value)
    return words, f"{column} = {quoted(value)}"


def text_is_not(table: Table, draw: Draw) -> Condition:
    """A text column has any value but one."""
    column = table.text(draw)
    value = draw.one(table.texts[column])
    words = draw.one(("whose {} is not {}", "with any {} but {}")).format(label(column), value)
    return words, f"{column} <> {quoted(value)}"


def text_is_one_of(table: Table, draw: Draw) -> Condition:
    """A text column has one of two values."""
    column = table.text(draw)
    first, second = draw.several(table.texts[column], 2)
    words = draw.one(("whose {} is {} or {}", "whose {} is either {} or {}")).format(label(column), first, second)
    return words, f"{column} IN ({quoted(first)}, {quoted(second)})"


def text_starts_with(table: Table, draw: Draw) -> Condition:
    """A text column starts with a letter."""
    column = table.text(draw)
    letter = draw.one(table.texts[column])[0]
    words = draw.one(("whose {} starts with {}", "whose {} begins with {}")).format(label(column), letter)
    return words, f"{column} LIKE {quoted(letter + '%')}"


def text_contains(table: Table, draw: Draw) -> Condition:
    """A text column contains a word, one of several where the table has such values."""
    words = [(column, value.split()) for column, values in table.texts.items() for value in values]
    column, parts = draw.one([entry for entry in words if len(entry[1]) > 1] or words)
    word = max(parts, key=len)
    said = draw.one(("whose {} contains {}", "whose {} includes {}")).format(label(column), word)
    return said, f"{column} LIKE {quoted(f'%{word}%')}"


def number_compares(table: Table, draw: Draw) -> Condition:
    """A number column is above or below a limit."""
    column = table.number(draw)
    comparison, operator = draw.one(COMPARISONS)
    limit = table.numbers[column].pick(draw)
    words = draw.one(("whose {} is {} {}", "where the {} is {} {}")).format(label(column), comparison, limit)
    return words, f"{column} {operator} {limit}"


def number_between(table: Table, draw: Draw) -> Condition:
    """A number column lies between two limits."""
    column = table.number(draw)
    low, high = sorted((table.numbers[column].pick(draw), table.numbers[column].pick(draw)))
    words = draw.one(("whose {} is between {} and {}", "with {} from {} to {}"))
    return words.format(label(column), low, high), f"{column} BETWEEN {low} AND {high}"


def number_above_average(table: Table, draw: Draw) -> Condition:
    """A number column lies above or below its own average."""
    column = table.number(draw)
    side, operator = draw.one((("above", ">"), ("below", "<")))
    return (
        f"with {side} average {label(column)}",
        f"{column} {operator} (SELECT AVG({column}) FROM {table.name})",
    )


def date_before_or_after(table: Table, draw: Draw) -> Condition:
    """A date column lies before or after a day."""
    column = table.date(draw)
    year = draw.between(table.dates[column].low, table.dates[column].high)
    day = f"{year}-{draw.between(1, 12):02}-{draw.between(1, 28):02}"
    words, operator = draw.one((("before", "<"), ("after", ">"), ("since", ">=")))
    return f"{happened(column)} {words} {day}", f"{column} {operator} '{day}'"


def date_in_year(table: Table, draw: Draw) -> Condition:
    """A date column lies in a year."""
    column = table.date(draw)
    year = draw.between(table.dates[column].low, table.dates[column].high)
    words = draw.one(("{} in {}", "{} during {}")).format(happened(column), year)
    return words, f"{column} BETWEEN '{year}-01-01' AND '{year}-12-31'"


def two_conditions(word: str) -> Callable[[Table, Draw], Condition]:
    """A text column has a value and (or: or) a number column is above or below a limit."""

    def condition(table: Table, draw: Draw) -> Condition:
        text, number = table.text(draw), table.number(draw)
        value, limit = draw.one(table.texts[text]), table.numbers[number].pick(draw)
        comparison, operator = draw.one(COMPARISONS)
        wording = draw.one(("with {} {} {} {} {} {}", "where {} is {} {} {} is {} {}"))
        said = wording.format(label(text), value, word, label(number), comparison, limit)
        return said, f"{text} = {quoted(value)} {word.upper()} {number} {operator} {limit}"

    return condition


both = two_conditions("and")
either = two_conditions("or")


def short_condition(table: Table, draw: Draw) -> Condition:
    """A condition that leaves room for another clause."""
    return draw.one((text_is, text_is, number_compares, date_in_year))(table, draw)


# A kind of question draws the question and its answer.
Answered = tuple[str, str]
Kind = Callable[[Table, Draw], Answered]


def columns_where(condition: Callable[[Table, Draw], Condition]) -> Kind:
    """The kind that asks for a column, sometimes for two, of the rows that meet the condition."""

    def ask(table: Table, draw: Draw) -> Answered:
        words, where = condition(table, draw)
        free = [name for name in table.columns if name not in where]
        wanted = draw.several(free, 2 if len(free) > 1 and draw.between(1, 4) == 1 else 1)
        opening = draw.one(("List the {} of {}", "Show the {} of all {}", "What is the {} of {}", "Give the {} of {}"))
        said = opening.format(" and ".join(label(name) for name in wanted), table.rows)
        end = "?" if opening.startswith("What") else "."
        return f"{said} {words}{end}", f"SELECT {', '.join(wanted)} FROM {table.name} WHERE {where};"

    return ask


def rows_where(table: Table, draw: Draw) -> Answered:
    """Whole rows."""
    words, where = short_condition(table, draw)
    opening = draw.one(("Show all {}", "List every detail of {}", "Find the {}", "Which {} are there"))
    end = "?" if opening.startswith("Which") else "."
    return f"{opening.format(table.rows)} {words}{end}", f"SELECT * FROM {table.name} WHERE {where};"


def count(table: Table, draw: Draw) -> Answered:
    """The number of all rows."""
    question = draw.one(("How many {} are there in total?", "Count all {}.", "What is the number of {}?"))
    return question.format(table.rows), f"SELECT COUNT(*) FROM {table.name};"


def count_where(table: Table, draw: Draw) -> Answered:
    """The number of rows that meet a condition."""
    condition = draw.one((text_is, number_compares, date_before_or_after, text_is_not, both))
    words, where = condition(table, draw)
    question = draw.one(("How many {} are there {}?", "Count the {} {}.", "What is the number of {} {}?"))
    return question.format(table.rows, words), f"SELECT COUNT(*) FROM {table.name} WHERE {where};"


def count_distinct(table: Table, draw: Draw) -> Answered:
    """The number of different values."""
    column = table.text(draw)
    question = draw.one(("How many different {} are there?", "Count the distinct {}.", "How many unique {} exist?"))
    return question.format(plural(column)), f"SELECT COUNT(DISTINCT {column}) FROM {table.name};"


def distinct(table: Table, draw: Draw) -> Answered:
    """The different values."""
    column = table.text(draw)
    question = draw.one(("Which different {} are there?", "List the distinct {}.", "Show each {} once."))
    said = label(column) if "once" in question else plural(column)
    return question.format(said), f"SELECT DISTINCT {column} FROM {table.name};"


AGGREGATES = (
    (("average", "mean"), "AVG"),
    (("lowest", "smallest", "minimum"), "MIN"),
    (("highest", "largest", "maximum"), "MAX"),
    (("total",), "SUM"),
)


def aggregate(words: Sequence[str], function: str) -> Kind:
    """The kind that asks for one number over a column, sometimes of the rows that meet a condition."""

    def ask(table: Table, draw: Draw) -> Answered:
        column = table.number(draw)
        opening = draw.one(("What is the {} {} of", "Give the {} {} of", "Find the {} {} of"))
        said = opening.format(draw.one(words), label(column))
        end = "?" if said.startswith("What") else "."
        select = f"SELECT {function}({column}) FROM {table.name}"
        if draw.between(1, 3) == 1:
            return f"{said} all {table.rows}{end}", f"{select};"
        condition, where = draw.one((text_is, date_in_year))(table, draw)
        return f"{said} {table.rows} {condition}{end}", f"{select} WHERE {where};"

    return ask


def count_per_group(table: Table, draw: Draw) -> Answered:
    """The number of rows of each value."""
    column = table.text(draw)
    question = draw.one(("How many {} are there per {}?", "Count the {} for each {}.", "Show the number of {} by {}."))
    sql = f"SELECT {column}, COUNT(*) FROM {table.name} GROUP BY {column};"
    return question.format(table.rows, label(column)), sql


def aggregate_per_group(table: Table, draw: Draw) -> Answered:
    """One number for each value."""
    column, number = table.text(draw), table.number(draw)
    words, function = draw.one(AGGREGATES)
    question = draw.one(("What is the {} {} per {}?", "Show the {} {} for each {}.", "Give the {} {} by {}."))
    sql = f"SELECT {column}, {function}({number}) FROM {table.name} GROUP BY {column};"
    return question.format(draw.one(words), label(number), label(column)), sql


def groups_with_many(table: Table, draw: Draw) -> Answered:
    """The values that have many rows."""
    column, limit = table.text(draw), draw.between(2, 20)
    question = draw.one(("Which {} have more than {} {}?", "List the {} with more than {} {}."))
    sql = f"SELECT {column} FROM {table.name} GROUP BY {column} HAVING COUNT(*) > {limit};"
    return question.format(plural(column), limit, table.rows), sql


def sort(table: Table, draw: Draw) -> Answered:
    """Whole rows or a column of them, in order."""
    column = draw.one([*table.numbers, *table.texts])
    wanted = draw.one(["*", *(name for name in table.texts if name != column)])
    if column in table.texts:
        words, direction = draw.one((("in alphabetical order of {}", ""), ("sorted by {}", "")))
    else:
        words, direction = draw.one(
            (
                ("sorted by {}", ""),
                ("by rising {}", ""),
                ("from highest to lowest {}", " DESC"),
                ("by falling {}", " DESC"),
            )
        )
    what = f"all {table.rows}" if wanted == "*" else f"the {label(wanted)} of all {table.rows}"
    question = f"{draw.one(('List', 'Show', 'Give'))} {what} {words.format(label(column))}."
    return question, f"SELECT {wanted} FROM {table.name} ORDER BY {column}{direction};"


def top(table: Table, draw: Draw) -> Answered:
    """The first few rows by a number."""
    text, number, limit = table.text(draw), table.number(draw), draw.between(2, 10)
    word, direction = draw.one((("highest", " DESC"), ("largest", " DESC"), ("lowest", ""), ("smallest", "")))
    question = draw.one(
        ("Show the {0} of the {1} {2} with the {3} {4}.", "Of the {1} {2} with the {3} {4}, list the {0}.")
    )
    sql = f"SELECT {text} FROM {table.name} ORDER BY {number}{direction} LIMIT {limit};"
    return question.format(label(text), limit, table.rows, word, label(number)), sql


def first_or_last(table: Table, draw: Draw) -> Answered:
    """The oldest or the latest row."""
    text, date = table.text(draw), table.date(draw)
    word, direction = draw.one((("first", ""), ("last", " DESC"), ("most recently", " DESC"), ("earliest", "")))
    question = draw.one(("What is the {0} of the {1} {2} {3}?", "Give the {0} of the {1} {2} {3}."))
    sql = f"SELECT {text} FROM {table.name} ORDER BY {date}{direction} LIMIT 1;"
    return question.format(label(text), table.rows, happened(date), word), sql


CONDITIONS = (
    text_is,
    text_is_not,
    text_is_one_of,
    text_starts_with,
    text_contains,
    number_compares,
    number_between,
    number_above_average,
    date_before_or_after,
    date_in_year,
    both,
    either,
)

KINDS: tuple[Kind, ...] = (
    *(columns_where(condition) for condition in CONDITIONS),
    *(aggregate(words, function) for words, function in AGGREGATES),
    rows_where,
    count,
    count_where,
    count_distinct,
    distinct,
    count_per_group,
    aggregate_per_group,
    groups_with_many,
    sort,
    top,
    first_or_last,
)


def generate(tables: Sequence[Table], rows: int, draw: Draw) -> Iterator[dict[str, str]]:
    """That many different rows; tables take turns, and each kind comes once before any comes again."""
    seen: set[str] = set()
    deck: list[Kind] = []
    for turn in range(rows):
        deck = deck or draw.shuffled(KINDS)
        row = new_row(tables[turn % len(tables)], deck.pop(), seen, draw)
        seen |= set(row.values())
        yield row


def new_row(table: Table, kind: Kind, seen: set[str], draw: Draw) -> dict[str, str]:
    """A short row that is not seen yet; of another kind where the table has no more of this one."""
    for attempt in range(500):
        question, sql = (kind if attempt < 50 else draw.one(KINDS))(table, draw)
        prompt = table.prompt(question)
        if not seen & {prompt, sql} and len(prompt + sql) <= MAX_CHARACTERS:
            return {"prompt": prompt, "completion": sql}
    raise ValueError(f"{table.name} has no more short questions; add values, columns or tables")


def main() -> None:
    """Write one JSON Lines file a split."""
    parser = argparse.ArgumentParser(description="Write the text-to-SQL rows that sql-assistant trains on.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--tables", type=Path, default=HERE / "tables.toml")
    parser.add_argument("--out", type=Path, default=HERE / "data")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    for split, tables in read_tables(options.tables).items():
        rows = generate(tables, ROWS[split], Draw(f"{options.seed} {split}"))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (options.out / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
        print(f"{split}: {ROWS[split]} rows from {len(tables)} tables")


if __name__ == "__main__":
    main()
