#!/usr/bin/env bash
# How speed and memory of training grow: over contexts from 512 to 8192 tokens, and over models from 0.6 to 8 billion
# weights, of the published layouts with random ones.  Two threads, batch 1, rank 16 on all linear layers, every token a
# target, every layer run again, a q4_k_m base.
#
#   SHARED=… scripts/bench/growth.sh PLOT.svg [KERNEL]     SHARED holds assets/models; KERNEL as step_speed takes it: 8
#
# Prints a table, with the plan's bytes beside what was measured and what a token more takes of both, and draws it.
set -euo pipefail
cd "$(dirname "$0")/../.."
plot=$(realpath "${1:?where the plot is written}")
kernel=${2:-8}
shared=$(realpath "${SHARED:-../shared}")
export RAYON_NUM_THREADS=2
cargo build -q --release -p model --example step_speed
speed=${CARGO_TARGET_DIR:-target}/release/examples/step_speed
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for case in Qwen3-0.6B:512 Qwen3-0.6B:1024 Qwen3-0.6B:2048 Qwen3-0.6B:4096 Qwen3-0.6B:8192 \
  Qwen2.5-1.5B-Instruct:512 Qwen3-4B:512 Llama-3.1-8B-Instruct:512; do
  IFS=: read -r layout tokens <<<"$case"
  line=$("$speed" "$shared/assets/models/$layout" "$tokens" 0 q4_k_m "$kernel" 1 | head -1)
  echo "$layout $line" | tee -a "$work/runs.txt"
done
python3 - "$work/runs.txt" "$plot" <<'PLOT'
import math, re, sys
runs = []
for line in open(sys.argv[1]):
    number = lambda pattern: float(re.search(pattern, line)[1])
    runs.append((line.split()[0], int(number(r"seq (\d+)")), number(r"([\d.]+) tokens/s"), number(r"RSS ([\d.]+)"),
                 number(r"planned ([\d.]+)")))
print(f"{'layout':24}{'context':>8}{'tokens/s':>10}{'measured':>12}{'planned':>12}")
for layout, tokens, speed, measured, planned in runs:
    print(f"{layout:24}{tokens:8}{speed:10.1f}{measured:9.2f} GB{planned:9.2f} GB")
contexts = [run for run in runs if run[0] == runs[0][0]]
sizes = [run for run in runs if run[1] == contexts[0][1]]
for (_, a, _, measured_a, planned_a), (_, b, _, measured_b, planned_b) in zip(contexts, contexts[1:]):
    print(f"from {a} to {b} tokens: {1e6 * (measured_b - measured_a) / (b - a):.0f} kB a token measured, "
          f"{1e6 * (planned_b - planned_a) / (b - a):.0f} planned")

def chart(left, title, ticks, series, top, unit):
    width, height, bottom = 300, 200, 260
    x = lambda i: left + 30 + i * (width - 60) / max(1, len(ticks) - 1)
    y = lambda value: bottom - height * value / top
    parts = [f'<text x="{left}" y="36" class="title">{title}</text>',
             f'<line x1="{left}" y1="{bottom}" x2="{left + width}" y2="{bottom}" class="axis"/>']
    parts += [f'<text x="{x(i):.0f}" y="{bottom + 18}" text-anchor="middle">{tick}</text>' for i, tick in enumerate(ticks)]
    for name, values, style in series:
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values))
        parts.append(f'<polyline points="{points}" class="{style}"/>')
        for i, value in enumerate(values):
            parts.append(f'<circle cx="{x(i):.1f}" cy="{y(value):.1f}" r="3" class="{style}"/>')
            if style != "planned":
                parts.append(f'<text x="{x(i):.0f}" y="{y(value) - 8:.0f}" text-anchor="middle">{value:.3g}</text>')
    names = ", ".join(name + (" (dashed)" if style == "planned" else "") for name, _, style in series)
    parts.append(f'<text x="{left}" y="52">{unit}: {names}</text>')
    return parts

def both(left, runs, ticks, what):
    speeds, measured, planned = ([run[i] for run in runs] for i in (2, 3, 4))
    return (chart(left, f"Speed over {what}", ticks, [("trained", speeds, "measured")], 1.2 * max(speeds), "tokens/s")
            + chart(left + 350, f"Memory over {what}", ticks, [("measured", measured, "measured"),
                    ("planned", planned, "planned")], 1.2 * max(measured + planned), "GB"))

short = lambda layout: re.search(r"[\d.]+B", layout)[0]
parts = both(20, contexts, [str(run[1]) for run in contexts], f"context, {contexts[0][0]}")
parts += both(720, sizes, [short(run[0]) for run in sizes], f"model size, {sizes[0][1]} tokens")
style = ("text{font:11px sans-serif;fill:#222}.title{font-size:14px;font-weight:bold}.axis{stroke:#888}"
         ".measured{stroke:#1f5fbf;fill:none;stroke-width:2}circle.measured{fill:#1f5fbf}"
         ".planned{stroke:#d08000;fill:none;stroke-width:2;stroke-dasharray:5 4}circle.planned{fill:#d08000;stroke:none}")
with open(sys.argv[2], "w") as out:
    out.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="1400" height="300"><style>{style}</style>'
              f'<rect width="1400" height="300" fill="#fff"/>{"".join(parts)}</svg>\n')
PLOT
