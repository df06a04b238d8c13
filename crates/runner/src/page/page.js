// The page of `tune serve`: experts, memory, a pipeline that runs live, history.
//
// Whatever a model or a file says is put into the page with textContent, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);

/** An element with a class, a text and children. */
function make(tag, className, text, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined && text !== null) element.textContent = String(text);
  element.append(...children);
  return element;
}

// ---- words for numbers

const units = ["B", "KiB", "MiB", "GiB", "TiB"];

const power = (n) => Math.min(units.length - 1, Math.max(0, Math.floor(Math.log2(n) / 10)));

const unitOf = (n) => units[power(n)];

/** A number of bytes in the unit that another has. */
function inUnitOf(other, n) {
  const part = n / 1024 ** power(other);
  return part.toFixed(part < 10 && power(other) > 0 ? 1 : 0);
}

const bytes = (n) => (n > 0 ? `${inUnitOf(n, n)} ${unitOf(n)}` : "0");

function duration(ms) {
  if (ms < 1) return "<1 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60000)} min ${Math.round((ms % 60000) / 1000)} s`;
}

/** Times that are often far below a millisecond. */
const brief = (ms) => (ms < 10 ? `${ms.toPrecision(2)} ms` : duration(ms));

function many(n, one) {
  return `${n} ${one}${n === 1 ? "" : "s"}`;
}

/** `20261121-013000-a1b2c3` as a local date. */
function runDate(id) {
  const [, y, mo, d, h, mi, s] = id.match(/^(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)/) || [];
  if (!y) return id;
  const date = new Date(Date.UTC(y, mo - 1, d, h, mi, s));
  return date.toLocaleString(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

// ---- asking the server

function keyHeaders() {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...options.headers, ...keyHeaders() } });
  if (response.status === 401 && !options.isRetry) {
    const key = window.prompt("This server asks for its key");
    if (key) {
      sessionStorage.setItem("key", key);
      return ask(path, { ...options, isRetry: true });
    }
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error || `${response.status} ${response.statusText}`);
  }
  return response;
}

const askJson = async (path) => (await ask(path)).json();

// ---- memory and experts

let experts = [];
let status = null;

function showStatus() {
  const state = byId("state");
  state.classList.toggle("busy", status.n_jobs > 0 || Boolean(status.loading));
  state.classList.remove("lost");
  state.textContent = status.loading ? `loading ${status.loading}` : status.n_jobs > 0 ? "working" : "ready";
  byId("machine").textContent = status.engine;

  const { total_bytes: total, free_bytes: free, resident_bytes: own, devices = [] } = status.memory;
  const part = (n) => `${total ? Math.max(0, Math.min(100, (100 * n) / total)) : 0}%`;
  const [ownBar, otherBar] = byId("meter").children;
  ownBar.style.width = own > 0 ? `max(3px, ${part(own)})` : "0";
  otherBar.style.width = part(total - free - own);
  const facts = [["tune", bytes(own)], ["free", `${bytes(free)} of ${bytes(total)}`]];
  for (const device of devices) facts.push([device.name, `${bytes(device.free_bytes)} free of ${bytes(device.total_bytes)}`]);
  const rows = facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]);
  for (const { expert, memory } of status.residents) {
    const { weights_bytes: weights, context_bytes: context, compute_bytes: compute } = memory;
    // A model on a server: what it takes there is the server's to know.
    const sum = weights + context + compute;
    const parts = context + compute > 0 ? `weights ${inUnitOf(sum, weights)} · context ${inUnitOf(sum, context)} · compute ${inUnitOf(sum, compute)}` : "";
    rows.push(make("dt", "expert", expert), make("dd", "expert", sum > 0 ? bytes(sum) : "on its server"));
    if (parts) rows.push(make("dd", "parts", parts));
  }
  byId("memory").replaceChildren(...rows);
  showExperts();
}

function showExperts() {
  const list = experts.map((model) => {
    const name = model.name.replace(/:latest$/, "");
    const isLoading = status && status.loading === name;
    const isLoaded = status && status.residents.some((resident) => resident.expert === name);
    const head = make("div", "head", null, make("i", "dot"), make("b", "", name));
    if (isLoading) head.append(make("span", "tag", "loading"));
    if (isLoaded) head.append(make("span", "tag", "loaded"));
    const { family, parameter_size: size, quantization_level: quant } = model.details;
    const about = [family, size, quant, bytes(model.size)].join(" · ");
    return make("li", isLoading ? "is-loading" : isLoaded ? "is-loaded" : "", null, head, make("div", "about", about));
  });
  byId("experts").replaceChildren(...(list.length ? list : [make("li", "empty", "None yet: export one, or register a GGUF file.")]));
}

async function refresh() {
  try {
    status = await askJson("/api/status");
    showStatus();
  } catch {
    const state = byId("state");
    state.classList.remove("busy");
    state.classList.add("lost");
    state.textContent = "no answer";
  }
}

// ---- history

async function showRuns() {
  const { runs } = await askJson("/api/runs");
  const list = runs.map((run) => {
    const ended = run.ended ? duration(run.ended.ms) : run.is_running ? "running" : "not finished";
    const button = make("button", "", null,
      make("div", "what", null, make("span", "", run.begun.pipeline), make("span", "", ended)),
      make("div", "when", `${runDate(run.run)} · ${many(run.n_items, "result")}`));
    button.type = "button";
    if (live && live.id === run.run) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => openRun(run.run).catch(problem));
    return make("li", "", null, button);
  });
  byId("runs").replaceChildren(...(list.length ? list : [make("li", "empty", "None yet.")]));
}

async function openRun(id) {
  if (live && live.controller) return;
  const record = await askJson(`/api/runs/${encodeURIComponent(id)}`);
  begin();
  live.id = id;
  byId("input").value = record.input;
  if (pipelines.some((pipeline) => pipeline.name === record.begun.pipeline)) {
    byId("pipeline").value = record.begun.pipeline;
    showPipeline();
  }
  for (const name of record.begun.steps) {
    const results = record.results.filter((result) => result.step === name).sort((a, b) => a.item - b.item);
    const ms = results.reduce((sum, result) => sum + result.prompt_ms + result.decode_ms, 0);
    const count = (test) => results.filter(test).length;
    const experts = [...new Set(results.map((result) => result.expert).filter(Boolean))];
    take({ event: "step_started", step: name, kind: results.length ? results[0].kind : "generate", experts, n_items: results.length });
    for (const result of results) take({ event: "item_finished", ...result });
    take({
      event: "step_finished", step: name, n_computed: results.length, ms,
      n_objected: count((result) => result.objections.length),
      n_skipped: count((result) => result.state === "skipped"),
      n_failed: count((result) => result.state === "failed"),
    });
  }
  if (record.ended) summarise(record.ended);
  await showRuns();
}

// ---- pipelines

let pipelines = [];

const chosen = () => pipelines.find((pipeline) => pipeline.name === byId("pipeline").value);

function showPipeline() {
  const pipeline = chosen();
  byId("run").disabled = !pipeline;
  if (!pipeline) {
    byId("description").textContent = "None is served: start with tune serve recipes/pipeline.toml";
    return;
  }
  byId("description").textContent = pipeline.description || "";
  byId("plan").replaceChildren(...pipeline.steps.map((step) => {
    const chip = make("span", "", `${step.name} `, make("em", "", whoDoes(step.kind, step.experts)));
    const routes = Object.entries(step.when).map(([router, names]) => `${router}: ${[].concat(names).join(", ")}`);
    if (routes.length) chip.append(" ", make("i", "route", routes.join(" · ")));
    chip.title = step.prompt || "";
    return make("li", "", null, chip);
  }));
  const maps = pipeline.steps.some((step) => step.map);
  byId("hint").textContent = maps ? "one item a line" : "";
  if (!byId("input").value && pipeline.example) byId("input").value = pipeline.example;
}

/** Who does a step of a kind. */
function whoDoes(kind, experts) {
  if (experts.length) return experts.join(", ");
  return kind === "retrieve" ? "by words" : "rules";
}

// ---- a run, live or from history

let live = null;

/** Clears what is shown of a run. */
function begin() {
  live = { id: null, steps: new Map(), swaps: [], controller: null, begun: performance.now(), tokens: 0, decodeMs: 0 };
  byId("steps").replaceChildren();
  byId("summary").hidden = true;
  byId("problem").hidden = true;
  byId("clock").textContent = "";
}

function problem(error) {
  byId("problem").textContent = error.message || String(error);
  byId("problem").hidden = false;
}

/** Takes one event of a run. */
function take(event) {
  const handler = handlers[event.event];
  if (handler) handler(event);
}

const handlers = {
  run_started(event) { live.id = event.run; },
  step_started(event) {
    const title = make("h3", "", event.step);
    const by = whoDoes(event.kind, event.experts);
    const who = make("span", "who", by.startsWith("by ") ? by : `by ${by}`);
    const figures = make("span", "figures");
    const bar = make("i");
    const swap = make("div", "swap");
    const items = make("ul", "items");
    const header = make("header", "", null, title, who, make("span", "space"), figures);
    byId("steps").append(make("section", "card step", null, header, make("div", "progress", null, bar), swap, items));
    live.current = { name: event.step, n: event.n_items, done: 0, figures, bar, swap, items, rows: new Map() };
    live.steps.set(event.step, live.current);
    figures.textContent = event.n_items > 1 ? `0 of ${event.n_items}` : "";
  },
  loading(event) { 
    const needs = total(event.needs);
    swapLine(`loading ${event.expert} · ${needs ? `needs ${bytes(needs)}` : "on its server"}, ${bytes(event.memory.free_bytes)} free`, event.expert);
  },
  load_progress(event) { swapLine(`loading ${event.expert} · ${Math.round(100 * event.part)} %`, event.expert); },
  loaded(event) {
    swapLine(`loaded ${event.expert} in ${duration(event.load_ms)} · takes ${bytes(total(event.takes))} · ${bytes(event.memory.free_bytes)} free`, event.expert);
    if (status) { status.memory = event.memory; status.loading = null; status.residents = status.residents.filter((resident) => resident.expert !== event.expert).concat({ expert: event.expert, memory: event.takes }); showStatus(); }
  },
  switched(event) {
    swapLine(`${event.from} → ${event.expert}: another adapter over the same base, in ${brief(event.switch_ms)}`, null);
    if (status) {
      for (const resident of status.residents) if (resident.expert === event.from) resident.expert = event.expert;
      showStatus();
    }
  },
  unloaded(event) {
    swapLine(`unloaded ${event.expert} in ${duration(event.unload_ms)} · ${bytes(event.memory.free_bytes)} free`, null);
    if (status) { status.memory = event.memory; status.residents = status.residents.filter((resident) => resident.expert !== event.expert); showStatus(); }
  },
  prompt(event) {
    const row = rowOf(event);
    row.figures.textContent = `reading ${event.done_tokens} of ${event.total_tokens}`;
  },
  text(event) {
    const row = rowOf(event);
    row.text.textContent += event.text;
    row.figures.textContent = "";
  },
  repair(event) {
    const row = rowOf(event);
    row.text.textContent = "";
    objections(row, event.objections, `attempt ${event.attempt}: `);
  },
  cut(event) {
    const row = rowOf(event);
    note(row, cutText(event.cut), "cut");
  },
  verified(event) {
    const row = rowOf(event);
    row.text.textContent = "";
    drafts(row, [event.round]);
  },
  item_finished(event) {
    const row = rowOf(event);
    const step = live.steps.get(event.step);
    row.line.classList.remove("is-live");
    row.figures.textContent = "";
    if (row.rounds) { row.rounds.remove(); row.rounds = null; }
    const passed = event.rounds && event.rounds.length === 1 && !event.objections.length;
    if (event.rounds && event.rounds.length && !passed) drafts(row, event.rounds);
    objections(row, event.rounds && event.rounds.length ? [] : event.objections, "");
    if (event.cut) note(row, cutText(event.cut), "cut");
    showResult(row, event);
    if (event.state !== "skipped") {
      const parts = [];
      if (event.output_tokens) parts.push(`${event.prompt_tokens} + ${event.output_tokens} tokens`, duration(event.prompt_ms + event.decode_ms));
      if (event.attempts > 1) parts.push(`${event.attempts} attempts`);
      if (event.finish === "length") parts.push("cut at its limit");
      if (event.resumed) parts.push("from before");
      row.figures.textContent = parts.join(" · ");
    }
    live.tokens += event.output_tokens;
    live.decodeMs += event.decode_ms;
    step.done += 1;
    step.bar.style.width = `${(100 * step.done) / Math.max(1, step.n)}%`;
    if (step.n > 1) step.figures.textContent = `${step.done} of ${step.n}`;
  },
  step_finished(event) {
    const step = live.steps.get(event.step);
    const parts = [many(step.done, "item"), duration(event.ms)];
    if (event.n_skipped) parts.push(`${event.n_skipped} skipped`);
    if (event.n_failed) parts.push(`${event.n_failed} failed`);
    if (event.n_objected) parts.push(`${event.n_objected} objected`);
    step.figures.replaceChildren(make("span", "mark-done", "✓ "), parts.join(" · "));
  },
  run_finished(event) { summarise(event); },
  failed(event) { problem(new Error(event.error)); },
};

const total = (memory) => memory.weights_bytes + memory.context_bytes + memory.compute_bytes;

/** A line about a load or an unload; lines of one expert's load replace each other. */
function swapLine(text, expert) {
  const step = live.current;
  if (!step) return;
  const last = step.swap.lastElementChild;
  if (expert && last && last.dataset.expert === expert) {
    last.textContent = text;
    return;
  }
  const line = make("div", "", text);
  if (expert) line.dataset.expert = expert;
  step.swap.append(line);
}

function rowOf(event) {
  const step = live.steps.get(event.step);
  let row = step.rows.get(event.item);
  if (!row) {
    const text = make("pre");
    const figures = make("span", "figures");
    const line = make("li", "is-live", null, make("span", "number", event.item + 1), text, figures);
    // What is skipped is told before the rest: the rows stand by item all the same.
    const next = [...step.rows.keys()].filter((item) => item > event.item).sort((a, b) => a - b)[0];
    step.items.insertBefore(line, next === undefined ? null : step.rows.get(next).line);
    row = { line, text, figures, box: null, rounds: null, note: null };
    step.rows.set(event.item, row);
  }
  return row;
}

function objections(row, list, prefix) {
  if (row.box) row.box.remove();
  row.box = null;
  if (!list.length) return;
  row.box = make("div", "objections", prefix + list.join(" · "));
  row.line.append(row.box);
}

/** What came of an item. */
function showResult(row, event) {
  row.text.className = "";
  row.line.classList.remove("has-objections", "is-skipped", "is-failed");
  if (event.state !== "done") {
    row.text.className = "verdict";
    row.text.textContent = `${event.state}: ${event.note || ""}`;
    row.line.classList.add(`is-${event.state}`);
  } else if (event.kind === "check") {
    row.text.className = "verdict";
    row.text.textContent = event.objections.length ? "objected" : "in order";
    row.line.classList.toggle("has-objections", event.objections.length > 0);
  } else if (event.kind === "route") {
    row.text.replaceChildren("→ ", make("span", "route", event.output));
  } else if (event.kind === "retrieve") {
    row.text.textContent = event.sources && event.sources.length ? event.sources.join("\n") : event.note || "";
    row.text.title = event.output;
  } else {
    row.text.textContent = event.output;
  }
}

/** Drafts and what was said of them. */
function drafts(row, rounds) {
  if (!row.rounds) {
    row.rounds = make("ol", "rounds");
    row.line.append(row.rounds);
  }
  for (const round of rounds) {
    const passed = !round.objections.length;
    const said = passed ? `passed by ${round.by}` : `objected to by ${round.by}: ${round.objections.join(" · ")}`;
    row.rounds.append(make("li", passed ? "passed" : "", null,
      make("b", "", `round ${round.round}, ${round.expert}`), make("pre", "", round.draft), make("span", "", said)));
  }
}

function cutText(cut) {
  const how = cut.by ? `compressed by ${cut.by}` : "cut";
  return `${cut.part} was ${how}: ${cut.before_tokens} tokens, now ${cut.after_tokens}, room for ${cut.room_tokens}`;
}

/** A line below a result that stays. */
function note(row, text, className) {
  if (row.note) row.note.remove();
  row.note = make("div", `objections ${className}`, text);
  row.line.append(row.note);
}

function summarise(ended) {
  const figure = (value, name, className) => make("div", className || "", null, make("b", "", value), make("span", "", name));
  const figures = [figure(duration(ended.ms), "in all"), figure(ended.n_loads, ended.n_loads === 1 ? "load" : "loads")];
  if (live.decodeMs > 0) {
    figures.push(figure(live.tokens, "tokens written"), figure((live.tokens / (live.decodeMs / 1000)).toFixed(0), "tokens a second"));
  }
  figures.push(figure(ended.n_objected, "objected to", ended.n_objected ? "warn" : ""));
  byId("summary").replaceChildren(...figures);
  byId("summary").hidden = false;
}

/** Reads server-sent events from a response. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length) yield JSON.parse(data.join("\n"));
    }
  }
}

async function run() {
  const pipeline = chosen();
  if (!pipeline || (live && live.controller)) return;
  begin();
  live.controller = new AbortController();
  byId("run").disabled = true;
  byId("stop").hidden = false;
  if (status) { status.n_jobs = Math.max(1, status.n_jobs); showStatus(); }
  const ticking = setInterval(() => { byId("clock").textContent = duration(performance.now() - live.begun); }, 100);
  let hasEnded = false;
  try {
    const response = await ask(`/api/pipelines/${encodeURIComponent(pipeline.name)}/run`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ input: byId("input").value }),
      signal: live.controller.signal,
    });
    for await (const event of eventsOf(response)) {
      take(event);
      hasEnded = hasEnded || event.event === "run_finished" || event.event === "failed";
    }
    if (!hasEnded) problem(new Error("The server broke off; what was done is kept in the run."));
  } catch (error) {
    problem(error.name === "AbortError" ? new Error("Stopped; what was done is kept in the run.") : error);
  } finally {
    clearInterval(ticking);
    byId("clock").textContent = "";
    live.controller = null;
    byId("run").disabled = false;
    byId("stop").hidden = true;
    for (const line of document.querySelectorAll(".is-live")) line.classList.remove("is-live");
    await refresh();
    await showRuns().catch(problem);
  }
}

// ---- beginning

async function start() {
  await refresh();
  const [tags, served] = await Promise.all([askJson("/api/tags"), askJson("/api/pipelines")]);
  experts = tags.models.filter((model) => model.details.format !== "pipeline");
  pipelines = served.pipelines;
  byId("pipeline").replaceChildren(...pipelines.map((pipeline) => make("option", "", pipeline.name)));
  showPipeline();
  showExperts();
  await showRuns();
  // `#<id>` opens a run, so that it can be bookmarked.
  const wish = location.hash.slice(1);
  if (/^\d{8}-\d{6}-[0-9a-f]{6}$/.test(wish)) await openRun(wish);
}

byId("pipeline").addEventListener("change", () => { byId("input").value = ""; showPipeline(); });
byId("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
byId("stop").addEventListener("click", () => live && live.controller && live.controller.abort());
byId("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
});
setInterval(() => { if (!document.hidden) refresh(); }, 2000);
start().catch(problem);
