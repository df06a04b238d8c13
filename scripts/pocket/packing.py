"""Documents to token ids with loss weights, packed into fixed rows: positions restart in each document."""

import torch
from tokenizers import Tokenizer

ANSWER_WEIGHT, OTHER_WEIGHT = 1.0, 0.1
# Share of the positions that meet the head: all answers (about 27 % of the tokens) and a sample of the rest.
CHOSEN_SHARE = 0.45


class Encoder:
    """The tokenizer with the ChatML rendering of the model's template, turn by turn."""

    def __init__(self, directory):
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.end_of_text, self.start, self.end = map(
            self.tokenizer.token_to_id, ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        )
        self.newline = self.text("\n")
        self.headers = {role: self.text(role + "\n") for role in ("system", "user", "assistant")}

    def text(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompt(self, messages):
        """Ids up to and including the header of the assistant's turn."""
        ids = []
        for message in messages:
            ids += [self.start, *self.headers[message["role"]], *self.text(message["content"]), self.end, *self.newline]
        return ids + [self.start, *self.headers["assistant"]]

    def document(self, document):
        """Ids and the loss weight of predicting each of them."""
        if isinstance(document, str):
            ids = self.text(document) + [self.end_of_text]
            return ids, [OTHER_WEIGHT] * len(ids)
        ids, weights = [], []
        for message in document:
            header = [self.start, *self.headers[message["role"]]]
            content = [*self.text(message["content"]), self.end]
            weight = ANSWER_WEIGHT if message["role"] == "assistant" else OTHER_WEIGHT
            ids += header + content + self.newline
            weights += [OTHER_WEIGHT] * len(header) + [weight] * len(content) + [OTHER_WEIGHT] * len(self.newline)
        return ids, weights


def pack(documents, row_tokens):
    """Lists of documents that fit one row each: first fit, longest first."""
    rows, free = [], []
    for document in sorted(documents, key=lambda each: -len(each[0])):
        length = len(document[0])
        place = next((index for index, room in enumerate(free) if room >= length), None)
        if place is None:
            rows.append([])
            free.append(row_tokens)
            place = len(rows) - 1
        rows[place].append(document)
        free[place] -= length
    return rows


def tensors(rows, row_tokens, end_of_text):
    """Rows as (B, T) tensors. Targets are the next ids inside a document; the weight of every other place is 0."""
    shape = (len(rows), row_tokens)
    batch = {
        "ids": torch.full(shape, end_of_text), "targets": torch.full(shape, end_of_text),
        "positions": torch.zeros(shape, dtype=torch.long), "documents": torch.full(shape, -1),
        "weights": torch.zeros(shape),
    }
    for row, documents in enumerate(rows):
        at = 0
        for number, (ids, weights) in enumerate(documents):
            end = at + len(ids)
            batch["ids"][row, at:end] = torch.tensor(ids)
            batch["targets"][row, at:end - 1] = torch.tensor(ids[1:])
            batch["weights"][row, at:end - 1] = torch.tensor(weights[1:])
            batch["positions"][row, at:end] = torch.arange(len(ids))
            batch["documents"][row, at:end] = number
            at = end
    return batch


class Batches:
    """Endless packed batches of (rows, row_tokens), with a fixed number of positions chosen for the loss."""

    POOL_ROWS = 64

    def __init__(self, documents, encoder, rows, row_tokens):
        self.documents, self.encoder, self.rows, self.row_tokens = documents, encoder, rows, row_tokens
        self.chosen = int(rows * row_tokens * CHOSEN_SHARE)
        self.pool = []

    def fill(self):
        """Packs a pool of documents; its last, half-empty rows are left out."""
        documents, tokens = [], 0
        while tokens < self.POOL_ROWS * self.row_tokens:
            document = self.encoder.document(self.documents.next())
            if len(document[0]) <= self.row_tokens:
                documents.append(document)
                tokens += len(document[0])
        self.pool = pack(documents, self.row_tokens)[:self.POOL_ROWS]
        self.documents.rng.shuffle(self.pool)

    def next(self):
        if len(self.pool) < self.rows:
            self.fill()
        rows, self.pool = self.pool[:self.rows], self.pool[self.rows:]
        batch = tensors(rows, self.row_tokens, self.encoder.end_of_text)
        weights = batch["weights"].flatten()
        # Answers first, then a random sample of the rest, then padding if a batch has too little text.
        order = (weights + torch.rand(weights.shape) * (weights > 0) * OTHER_WEIGHT).topk(self.chosen).indices
        chosen = order.sort().values
        return (
            batch["ids"], batch["positions"], batch["documents"], chosen,
            batch["targets"].flatten()[chosen], weights[chosen],
        )
