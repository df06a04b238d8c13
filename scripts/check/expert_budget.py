"""Runs a pipeline and compares what its experts take with what was planned: expert_budget.sh calls it.

    expert_budget.py NAME PLANNED_JSON COMMAND...
"""

import json
import subprocess
import sys
import threading

MIB = 1 << 20
LOG = 0.011 * MIB  # the engine's log has two digits of a MiB

name, planned_path, *command = sys.argv[1:]
planned = {}
for line in open(planned_path):
    event = json.loads(line)
    if event["event"] == "expert":
        planned[event["expert"]] = event

process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
peak = {}
resident = [None]
done = threading.Event()


def sample():
    while not done.wait(0.002):
        try:
            status = open(f"/proc/{process.pid}/status").read()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("RssAnon:") and resident[0]:
                peak[resident[0]] = max(peak.get(resident[0], 0), int(line.split()[1]) * 1024)


sampler = threading.Thread(target=sample)
sampler.start()
taken = {}
for line in process.stdout:
    if not line.startswith("{"):
        continue
    event = json.loads(line)
    if event.get("event") == "loading":
        resident[0] = event["expert"]
    if event.get("event") == "loaded":
        taken[event["expert"]] = event["takes"]
    if event.get("event") == "unloaded":
        resident[0] = None
done.set()
sampler.join()
if process.wait() != 0:
    sys.exit(f"{name}: the run failed: {process.stderr.read()}")

ok = True
for expert, event in planned.items():
    budget, takes = event["budget"]["main"], taken[expert]
    compute_over = budget["compute_bytes"] / takes["compute_bytes"] - 1
    checks = [
        ("weights", budget["weights_bytes"] == takes["weights_bytes"]),
        ("context", abs(budget["context_bytes"] - takes["context_bytes"]) <= 2 * LOG),
        ("compute", takes["compute_bytes"] <= budget["compute_bytes"] + LOG
                    and budget["compute_bytes"] <= 1.02 * takes["compute_bytes"] + 0.1 * MIB),
        ("process", peak[expert] <= event["need_bytes"]),
    ]
    wrong = [what for what, holds in checks if not holds]
    ok = ok and not wrong
    print(
        f"{name} {expert}: planned {event['need_bytes'] / MIB:.1f} MiB"
        f" (weights {budget['weights_bytes'] / MIB:.1f}, context {budget['context_bytes'] / MIB:.2f},"
        f" compute {budget['compute_bytes'] / MIB:.2f} {100 * compute_over:+.1f} %,"
        f" overhead {budget['overhead_bytes'] / MIB:.1f});"
        f" anonymous memory of the process {peak[expert] / MIB:.1f} MiB at most"
        + (f" WRONG: {', '.join(wrong)}" if wrong else "")
    )
sys.exit(0 if ok else 1)
