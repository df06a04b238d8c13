"""Token ids and masks of `tune preview` against transformers, row by row.

    python scripts/check/chat_masks.py TUNE BASE ROWS.jsonl [--rows N] [--template FILE] [--fields JSON]

TUNE: the binary; BASE: a checkpoint in Hugging Face layout; ROWS: rows of a conversation each, whose keys FIELDS names
({"prompt": "question", "completion": "answer"} for GSM8K). Ids must equal those of apply_chat_template with the base's
own template. With --template, a template with {% generation %} marks (TRL publishes such), masks must equal
transformers' assistant masks; without one, the learnt tokens must be what apply_chat_template adds to the prompt, up to
the end of the turn. Needs transformers. Prints one line; ends with 1 at the first row that differs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from transformers import AutoTokenizer

arguments = argparse.ArgumentParser()
arguments.add_argument("tune")
arguments.add_argument("base")
arguments.add_argument("data")
arguments.add_argument("--rows", type=int, default=200)
arguments.add_argument("--template")
arguments.add_argument("--fields", default='{"prompt": "question", "completion": "answer"}')
a = arguments.parse_args()

fields = json.loads(a.fields)
recipe = f"""[model]
base = {json.dumps(str(pathlib.Path(a.base).resolve()))}
[data]
train = [{{ path = {json.dumps(str(pathlib.Path(a.data).resolve()))},
           fields = {{ {", ".join(f'{ours} = "{theirs}"' for ours, theirs in fields.items())} }} }}]
val_split = 0
max_seq_len = 4096
"""
if a.template:
    recipe += f"chat_template = {json.dumps(str(pathlib.Path(a.template).resolve()))}\n"

with tempfile.TemporaryDirectory() as work:
    path = pathlib.Path(work, "recipe.toml")
    path.write_text(recipe)
    shown = subprocess.run([a.tune, "--json", "preview", path, "--rows", str(a.rows)], check=True, capture_output=True,
                           text=True).stdout
examples = [event["example"] for event in map(json.loads, shown.splitlines()) if event["event"] == "example"]

tokenizer = AutoTokenizer.from_pretrained(a.base)
if a.template:
    tokenizer.chat_template = pathlib.Path(a.template).read_text()

n_tokens = n_targets = 0
rows = [json.loads(line) for line in open(a.data)][:a.rows]
assert len(examples) == len(rows) == a.rows, f"{len(examples)} examples of {len(rows)} rows"
for number, (row, example) in enumerate(zip(rows, examples), 1):
    [sequence] = example["sequences"]
    ids = [token for piece in sequence["pieces"] for token in piece["ids"]]
    mask = [int(piece["weight"] > 0) for piece in sequence["pieces"] for _ in piece["ids"]]
    messages = [{"role": "user", "content": row[fields["prompt"]]},
                {"role": "assistant", "content": row[fields["completion"]]}]
    if a.template:
        reference = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        whole, expected = reference["input_ids"], reference["assistant_masks"]
    else:
        whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        before = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert whole[:len(before)] == before, f"row {number}: the prompt is no prefix of the conversation"
        expected = [0] * len(before) + [1] * (len(whole) - len(before))
    # A turn ends with the token that closes it: the line break behind, which some templates mark as generated, is what no
    # model is asked for, since it has stopped.
    rest = tokenizer.decode(whole[len(ids):])
    assert ids == whole[:len(ids)] and not rest.strip(), f"row {number}: ids differ, {rest!r} is left"
    assert mask == expected[:len(mask)], f"row {number}: masks differ"
    n_tokens, n_targets = n_tokens + len(ids), n_targets + sum(mask)
print(f"{a.rows} rows, {n_tokens} tokens, {n_targets} learnt: as transformers has them"
      + (f", with {pathlib.Path(a.template).name}" if a.template else ""))
