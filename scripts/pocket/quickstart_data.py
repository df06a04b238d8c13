"""The quickstart data set: a sentence about an order becomes a JSON record with five fixed keys.

    python quickstart_data.py ../../datasets/quickstart

Deterministic, standard library only. Train and test share wordings, but no sentence, and no combination of name and
city, of name and item, or of name and date.
"""

import json
import random
import sys
from pathlib import Path

from sentences import order

SEED = 4_000_037
TRAIN_ROWS, TEST_ROWS = 2000, 200
KEYS = ("name", "count", "item", "city", "date")
PREFIX = "Record: "


def record(fields):
    """One line of JSON; the count is a number, everything else text as it stands in the sentence."""
    return json.dumps({key: int(fields[key]) if key == "count" else fields[key] for key in KEYS}, ensure_ascii=False)


def pairs(fields):
    """The combinations that no two rows share."""
    return {(fields["name"], key, fields[key]) for key in ("city", "item", "date")}


def rows():
    """Test rows first, so that more training rows would leave the test as it is."""
    rng, seen, made = random.Random(SEED), set(), []
    while len(made) < TEST_ROWS + TRAIN_ROWS:
        sentence, fields = order(rng)
        if seen.isdisjoint(pairs(fields)):
            seen |= pairs(fields)
            made.append({"messages": [
                {"role": "user", "content": PREFIX + sentence},
                {"role": "assistant", "content": record(fields)},
            ]})
    return made[TEST_ROWS:], made[:TEST_ROWS]


def main(directory):
    directory.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "test"), rows()):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (directory / f"{name}.jsonl").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
