"use strict";
// Reads values off the plots. The page says all it has to say without this.
for (const figure of document.querySelectorAll("[data-plot]")) {
  const plot = JSON.parse(figure.dataset.plot);
  const area = figure.querySelector(".area");
  const [first, last] = plot.across;
  const cursor = document.createElement("div");
  const reading = document.createElement("div");
  cursor.className = "cursor";
  reading.className = "reading";

  const nearest = (points, step) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] <= step) low = middle; else high = middle;
    }
    return Math.abs(points[high][0] - step) < Math.abs(points[low][0] - step) ? points[high] : points[low];
  };
  const shown = (value) => {
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    return size !== 0 && size < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };
  const row = (name, value, colour) => {
    const line = document.createElement("div");
    if (colour !== undefined) {
      const key = document.createElement("i");
      key.className = "key c" + colour;
      line.append(key);
    }
    const number = document.createElement("b");
    number.textContent = value;
    line.append(name, number);
    return line;
  };
  const show = (event) => {
    const box = area.getBoundingClientRect();
    const wanted = first + (last - first) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const lines = plot.lines.filter((line) => line.points.length > 0);
    const steps = lines.map((line) => nearest(line.points, wanted)[0]);
    const step = steps.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
    const rows = lines.map((line) => {
      const [at, value] = nearest(line.points, step);
      const when = at === step ? "" : " (step " + shown(at) + ")";
      return row(line.name + when, shown(value) + (plot.unit ? " " + plot.unit : ""), line.colour);
    });
    reading.replaceChildren(row("step", shown(step)), ...rows);
    area.append(cursor, reading);
    const place = (step - first) / (last - first);
    cursor.style.left = 100 * place + "%";
    const left = place * box.width;
    const room = box.width - reading.offsetWidth;
    reading.style.left = Math.max(0, Math.min(room, left < box.width / 2 ? left + 12 : left - reading.offsetWidth - 12)) + "px";
  };
  const hide = () => { cursor.remove(); reading.remove(); };
  area.addEventListener("pointermove", show);
  area.addEventListener("pointerdown", show);
  area.addEventListener("pointerleave", hide);
}
