"""Synthetic text for the pocket base model: small instruction tasks with one exact answer, chats and stories.

    python generate.py --rows 5 --seed 1            a few documents, to look at
    python generate.py --rows 5 --kind extract      of one kind
    python generate.py --held-out                   the rows that training never sees, as JSON lines

Deterministic by seed, standard library only. No answer is JSON: that task is left to whoever fine-tunes the model.
"""

import argparse
import json
import random
import string

from sentences import fact, order, scene, story
from words import city, clock_time, date, first_name, full_name, item, made_up, number_in_words, word, words

HELD_OUT_SEED = 20_000_003
HELD_OUT_ROWS_PER_KIND = 100
SYMBOLS = list("{}[]()<>\"':;,.!?#$%&*+-=/\\|@^_~`") + ['{"', '":', '",', '"}', '"]', '["', "},", "],", "()", "//", "->", "=="]


def symbols(rng, least, most):
    """Tokens with punctuation of every sort, so that no punctuation token stays untrained."""
    made = []
    for _ in range(rng.randint(least, most)):
        sign = rng.choice(SYMBOLS)
        made.append(rng.choice((sign, sign + word(rng), word(rng) + sign, str(rng.randint(0, 999)) + sign)))
    return rng.choice((" ", " ", "")).join(made)


def copy(rng):
    ways = (
        lambda: " ".join(words(rng, 1, 8)),
        lambda: fact(rng),
        lambda: symbols(rng, 2, 6),
        lambda: " ".join(made_up(rng) for _ in range(rng.randint(1, 5))),
        lambda: f"{full_name(rng)}, {city(rng)}, {date(rng)}",
        lambda: " ".join(str(rng.randint(0, 10 ** rng.randint(1, 5))) for _ in range(rng.randint(1, 4))),
        lambda: "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(rng.randint(3, 9))),
    )
    text = rng.choice(ways)()
    return f"{rng.choice(('Repeat:', 'Copy this:', 'Say:'))} {text}", text


def reverse(rng):
    listed = words(rng, 2, 4)
    return f"Reverse the words: {' '.join(listed)}", " ".join(reversed(listed))


def pick(rng):
    listed = words(rng, 3, 7)
    place, index = rng.choice((("First", 0), ("Second", 1), ("Last", -1)))
    return f"{place} word: {' '.join(listed)}", listed[index]


def replace(rng):
    listed = words(rng, 3, 5)
    old, new = rng.choice(listed), word(rng)
    answer = " ".join(new if each == old else each for each in listed)
    return f"Replace {old} with {new}: {' '.join(listed)}", answer


def lookup(rng):
    keys = rng.choice((full_name, first_name, city, item, word))
    values = rng.choice((full_name, city, item, date, word, clock_time, lambda r: str(r.randint(0, 9999))))
    wanted, table = rng.randint(2, 4), {}
    while len(table) < wanted:
        key = keys(rng)
        # Keys that share a word are told apart only by a second look: too much for this size of model.
        if not any(set(key.split()) & set(other.split()) for other in table):
            table[key] = values(rng)
    asked = rng.choice(list(table))
    rows = "\n".join(f"{key}: {value}" for key, value in table.items())
    return f"{rows}\n{rng.choice(('Look up', 'Find'))}: {asked}", table[asked]


def any_record(rng):
    return order(rng) if rng.random() < 0.5 else scene(rng)


def extract(rng):
    """Some fields of a sentence, one a line: the skill that structured output builds on."""
    sentence, fields = any_record(rng)
    asked = rng.sample(list(fields), rng.randint(1, len(fields)))
    style = rng.randrange(4)
    if style == 0:
        return f"Only the {asked[0]}: {sentence}", fields[asked[0]]
    if style == 1:
        answer = "\n".join(f'{key}: "{fields[key]}"' for key in asked)
        return f"Get {', '.join(asked)} in quotes: {sentence}", answer
    return f"Get {', '.join(asked)}: {sentence}", "\n".join(f"{key}: {fields[key]}" for key in asked)


FORMS = (
    "Dear {name}, your {item} is ready in {city}.", "{name} lives in {city}.", "{name} ({city}): {item}, {date}",
    "On {date} {name} moved to {city}.", "The {item} of {name} is in {city}.", "{item} for {name}, {date}",
    "Hello {name}! See you in {city} on {date}.", "From {city}, {date}: {name} lost the {item}.",
)


def template(rng):
    form = rng.choice(FORMS)
    makers = {"name": full_name, "city": city, "item": item, "date": date}
    values = {key: make(rng) for key, make in makers.items() if "{" + key + "}" in form}
    keys = list(values)
    rng.shuffle(keys)
    shown = form.replace("{", "[").replace("}", "]")
    given = "\n".join(f"{key}: {values[key]}" for key in keys)
    return f"Fill in: {shown}\n{given}", form.format(**values)


def sloppy(rng, sentence):
    """The sentence as typed in haste: case lost, spaces irregular, the full stop missing or detached."""
    style = rng.random()
    if style < 0.5:
        sentence = sentence.lower()
    elif style < 0.75:
        sentence = sentence[0].lower() + sentence[1:]
    elif style < 0.9:
        sentence = " ".join(each.upper() if rng.random() < 0.2 else each for each in sentence.split(" "))
    ending = rng.random()
    if ending < 0.4:
        sentence = sentence[:-1]
    elif ending < 0.55:
        sentence = sentence[:-1] + rng.choice((" .", "..", " ..", ". ."))
    if rng.random() < 0.3:
        sentence = sentence.replace(",", " ,")
    spaces = rng.choice((0.1, 0.3, 0.5))
    gaps = [each + " " * (rng.randint(2, 4) if rng.random() < spaces else 1) for each in sentence.split(" ")]
    return " " * rng.choice((0, 0, 0, 1, 2)) + "".join(gaps)[:-1] + " " * rng.choice((0, 0, 0, 1, 2))


def normalise(rng):
    sentence = order(rng)[0] if rng.random() < 0.6 else fact(rng)
    return f"Clean up: {sloppy(rng, sentence)}", sentence


def case(rng):
    text = " ".join(words(rng, 2, 5))
    if rng.random() < 0.5:
        return f"Capitals: {text}", text.title()
    return f"Lower case: {text.title()}", text


def quote(rng):
    listed = words(rng, 1, 5)
    if rng.random() < 0.3:
        listed = [full_name(rng)]
    return f"Put in quotes: {', '.join(listed)}", ", ".join(f'"{each}"' for each in listed)


def digits(rng):
    """Three number words or numbers at a time: there would be too few different rows of one."""
    numbers = [rng.randint(0, 99) for _ in range(rng.randint(1, 3))]
    spoken, written = ", ".join(map(number_in_words, numbers)), ", ".join(map(str, numbers))
    return (f"In digits: {spoken}", written) if rng.random() < 0.5 else (f"In words: {written}", spoken)


def greeting(rng):
    name, place, thing = full_name(rng), city(rng), item(rng)
    return rng.choice((
        (f"Hello, my name is {name}.", f"Hello {name}, how can I help you?"),
        (f"Hi, I am {name} from {place}.", f"Hi {name}, how is {place} today?"),
        (f"I lost my {thing} in {place}.", f"I am sorry about your {thing}. Ask in {place}."),
        (f"My name is {name}. Who are you?", f"I am pocket, a tiny language model. Nice to meet you, {name}."),
        (f"Thank you. Say goodbye to {name}.", f"Goodbye {name}!"),
    ))


KINDS = {
    "copy": (copy, 1.2),
    "reverse": (reverse, 1.5),
    "pick": (pick, 0.8),
    "replace": (replace, 1.5),
    "lookup": (lookup, 2.0),
    "extract": (extract, 2.2),
    "template": (template, 1.0),
    "normalise": (normalise, 2.4),
    "case": (case, 1.0),
    "quote": (quote, 0.6),
    "digits": (digits, 0.8),
    "greeting": (greeting, 0.3),
}
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are pocket, a tiny model.", "Answer briefly.")


def task(rng, kind=None):
    """One row: kind, prompt and the only right answer."""
    kind = kind or rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    prompt, answer = KINDS[kind][0](rng)
    return kind, prompt, answer


def held_out(rows_per_kind=HELD_OUT_ROWS_PER_KIND):
    """The rows kept from training, as {kind: [(prompt, answer)]}, prompts all different."""
    rows = {}
    for kind in KINDS:
        rng = random.Random(f"{HELD_OUT_SEED} {kind}")
        found = {}
        while len(found) < rows_per_kind:
            _, prompt, answer = task(rng, kind)
            found[prompt] = answer
        rows[kind] = list(found.items())
    return rows


def held_out_prompts():
    return {prompt for rows in held_out().values() for prompt, _ in rows}


class Documents:
    """Endless training documents: chats as message lists, stories as text. Never a held-out prompt."""

    STORY_SHARE, SYSTEM_SHARE, LONG_SHARE = 0.03, 0.1, 0.15

    def __init__(self, seed, most_turns=4):
        assert seed != HELD_OUT_SEED, "training must not use the held-out seed"
        self.rng = random.Random(seed)
        self.forbidden = held_out_prompts()
        self.most_turns = most_turns

    def turn(self):
        while True:
            _, prompt, answer = task(self.rng)
            if prompt not in self.forbidden:
                break
        assert prompt not in self.forbidden
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    def next(self):
        """A story (str) or a chat (list of messages), of one turn mostly and up to `most_turns`."""
        rng = self.rng
        if rng.random() < self.STORY_SHARE:
            return story(rng)
        turns = rng.randint(2, self.most_turns) if rng.random() < self.LONG_SHARE else 1
        system = [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}] if rng.random() < self.SYSTEM_SHARE else []
        return system + [message for _ in range(turns) for message in self.turn()]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--rows", type=int, default=10)
    arguments.add_argument("--kind", choices=list(KINDS))
    arguments.add_argument("--held-out", action="store_true")
    options = arguments.parse_args()
    if options.held_out:
        for kind, rows in held_out().items():
            for prompt, answer in rows:
                print(json.dumps({"kind": kind, "prompt": prompt, "answer": answer}))
    elif options.kind:
        rng = random.Random(options.seed)
        for _ in range(options.rows):
            print(json.dumps(task(rng, options.kind)))
    else:
        documents = Documents(options.seed)
        for _ in range(options.rows):
            print(json.dumps(documents.next()))


if __name__ == "__main__":
    main()
