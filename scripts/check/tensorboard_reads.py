#!/usr/bin/env python3
"""A run's event files through TensorBoard itself: every step once, with the figures of metrics.jsonl.

    tune train RECIPE (with `tensorboard = true` in [train]) && scripts/check/tensorboard_reads.py runs/NAME
    scripts/check/tensorboard_reads.py --golden      the frame that formats/src/tensorboard pins, by TensorBoard's writer

Needs tensorboard (2.21.0 was used). Ends with 1 where TensorBoard reads something else than the run recorded.
"""

import io
import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def golden() -> str:
    values = [Summary.Value(tag="train/loss", simple_value=0.25), Summary.Value(tag="train/epoch", simple_value=0.5)]
    event = Event(wall_time=1.5, step=300, summary=Summary(value=values))
    file = io.BytesIO()
    RecordWriter(file).write(event.SerializeToString(deterministic=True))
    return file.getvalue().hex()


def single(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def preference(tags: dict[str, list[tuple[int, float]]], of: str, line: dict) -> None:
    names = {"accuracy": "rewards/accuracies", "margin": "rewards/margins"}
    names |= {f"{what}_{which}": f"{what}/{which}" for what in ["rewards", "logps"] for which in ["chosen", "rejected"]}
    for key, name in names.items() if line.get("preference") else []:
        tags.setdefault(f"{of}/{name}", []).append((line["step"], single(line["preference"][key])))


def recorded(run: Path) -> dict[str, list[tuple[int, float]]]:
    tags: dict[str, list[tuple[int, float]]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        step = line["step"]
        if line["kind"] == "step":
            for key in ["loss", "grad_norm", "learning_rate", "epoch", "tokens_per_second"]:
                tags.setdefault(f"train/{key}", []).append((step, single(line[key])))
            preference(tags, "train", line)
            if line["memory_bytes"] is not None:
                tags.setdefault("train/memory_mib", []).append((step, single(line["memory_bytes"] / 2**20)))
        elif line["kind"] == "validation":
            tags.setdefault("eval/loss", []).append((step, single(line["loss"])))
            preference(tags, "eval", line)
        elif line["kind"] == "exact_match":
            tags.setdefault("eval/exact_match", []).append((step, single(line["matched"] / line["rows"])))
        elif line["kind"] in ["skipped", "spike"]:
            tags.setdefault("train/skipped", []).append((step, 1.0))
    return tags


def main() -> int:
    if sys.argv[1:] == ["--golden"]:
        print(golden())
        return 0
    run = Path(sys.argv[1])
    # 0: TensorBoard keeps every step instead of a sample of them.
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    expected = recorded(run)
    found = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    for tag in sorted(expected.keys() | found.keys()):
        same = expected.get(tag) == found.get(tag)
        print(f"{tag:24} {len(found.get(tag, [])):6} figures  {'as recorded' if same else 'NOT AS RECORDED'}")
    files = len(list((run / "tensorboard").iterdir()))
    print(f"{files} event files")
    return int(not expected or found != expected)


sys.exit(main())
