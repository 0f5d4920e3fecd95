// Plots over steps, on canvas: stacked or lines, with a cursor, zoom by dragging, and a table for those who prefer one.

import { alarmText } from "./tables.js";
import { colourOf, compact, count, inks, make, fillTable, number, prepare, swatch } from "./looks.js";

const PAD = { left: 46, right: 10, top: 18, bottom: 22 };
const TABLE_ROWS = 100;
const TIP_ROWS = 9;
const SEAM_POINTS = 200; // with more, seams are all that one sees

export class Plot {
  // kind: "stack" | "lines"; `pick(data)` gives { rows: [[..]..], unit, low?, high? }; calls onCursor(step), onZoom(from, to).
  constructor(section, { kind, pick, digits = 3, choices = null, onCursor, onZoom }) {
    Object.assign(this, { section, kind, pick, digits, onCursor, onZoom, hasAlarms: section.dataset.plot === "losses", data: null, cursor: null, single: null });
    this.title = section.querySelector("h2");
    this.choice = choices?.[0][0] ?? null;
    this.build(choices);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  build(choices) {
    const head = make("div", { className: "head" });
    this.title.replaceWith(head);
    this.tableButton = make("button", { type: "button", "aria-expanded": "false" }, "Table");
    this.tableButton.setAttribute("aria-label", `${this.title.textContent} as a table`);
    const buttons = make("div", { className: "buttons" });
    for (const [value, label] of choices ?? []) {
      const button = make("button", { type: "button", "aria-pressed": String(value === this.choice) }, label);
      button.addEventListener("click", () => {
        this.choice = value;
        for (const other of buttons.querySelectorAll("[aria-pressed]")) other.setAttribute("aria-pressed", String(other === button));
        this.show(this.data);
      });
      buttons.append(button);
    }
    buttons.append(this.tableButton);
    head.append(this.title, buttons);
    this.canvas = make("canvas", { role: "img", "aria-label": this.title.textContent });
    this.tip = make("div", { className: "tip", hidden: true, "aria-hidden": "true" });
    this.frame = make("div", { className: "canvas" }, this.canvas, this.tip);
    this.table = make("table");
    this.tableFrame = make("div", { className: "scroll", tabIndex: 0, role: "region", hidden: true }, this.table);
    this.tableFrame.setAttribute("aria-label", `${this.title.textContent}, table`);
    this.section.append(this.frame, this.tableFrame);
    this.tableButton.addEventListener("click", () => {
      const open = this.tableFrame.hidden;
      this.tableFrame.hidden = !open;
      this.tableButton.setAttribute("aria-expanded", String(open));
      this.fill();
    });
    this.listen();
  }

  listen() {
    let from = null;
    const stepAt = (event) => this.stepOf(event.clientX - this.canvas.getBoundingClientRect().left);
    this.canvas.addEventListener("pointermove", (event) => {
      if (!this.data?.steps.length) return;
      this.drag = from !== null && event.pointerType === "mouse" ? [from, stepAt(event)] : null;
      this.onCursor(stepAt(event), this);
    });
    this.canvas.addEventListener("pointerdown", (event) => {
      if (!this.data?.steps.length || event.button !== 0) return;
      from = stepAt(event);
      if (event.pointerType === "mouse") this.canvas.setPointerCapture(event.pointerId);
      this.onCursor(from, this);
    });
    this.canvas.addEventListener("pointerup", () => {
      const drag = this.drag;
      from = this.drag = null;
      if (drag && Math.abs(this.x(drag[0]) - this.x(drag[1])) > 8) this.onZoom(Math.min(...drag), Math.max(...drag));
      else this.draw();
    });
    this.canvas.addEventListener("pointercancel", () => { from = this.drag = null; });
    this.canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
  }

  show(data) {
    this.data = data;
    if (!data) return;
    const { rows, low, high } = this.pick(data, this.choice);
    this.rows = rows;
    this.isLog = low === undefined && spansDecades(rows);
    [this.low, this.high] = low !== undefined ? [low, high] : range(rows, this.isLog);
    this.describe();
    this.draw();
    this.fill();
  }

  // Says in one sentence what the picture shows.
  describe() {
    const { names, steps, until } = this.data;
    if (!steps.length) return;
    const last = this.rows.map((row, i) => [labelOf(this.data, i, names), lastKnown(row)]).filter(([, value]) => value !== null);
    last.sort((a, b) => b[1] - a[1]);
    const told = last.slice(0, 5).map(([name, value]) => `${name} ${number(value, this.digits)}`).join(", ");
    this.canvas.setAttribute("aria-label",
      `${this.title.textContent}, steps ${count(steps[0])} to ${count(until - 1)}. Largest at the end: ${told}.`);
  }

  x(step) {
    const { steps, until } = this.data;
    return PAD.left + ((step - steps[0]) / Math.max(until - steps[0], 1)) * (this.width - PAD.left - PAD.right);
  }

  y(value) {
    const scaled = this.isLog ? Math.log10(Math.max(value, Number.MIN_VALUE)) : value;
    return this.height - PAD.bottom - ((scaled - this.low) / (this.high - this.low || 1)) * (this.height - PAD.top - PAD.bottom);
  }

  stepOf(x) {
    const { steps, until } = this.data;
    const share = (x - PAD.left) / (this.width - PAD.left - PAD.right);
    return Math.round(steps[0] + Math.min(Math.max(share, 0), 1) * (until - 1 - steps[0]));
  }

  draw() {
    const { context, width, height } = prepare(this.canvas);
    Object.assign(this, { context, width, height, ink: inks() });
    if (!width || !this.data) return;
    if (!this.data.steps.length) {
      context.fillStyle = this.ink.soft;
      context.fillText("No phase has been decided yet.", PAD.left, height / 2);
      return;
    }
    this.axes();
    context.save();
    context.beginPath();
    context.rect(PAD.left, PAD.top - 2, width - PAD.left - PAD.right, height - PAD.top - PAD.bottom + 4);
    context.clip();
    if (this.kind === "stack") this.stack();
    else this.lines();
    context.restore();
    this.marks();
    this.drawCursor();
  }

  axes() {
    const { context, ink, width, height } = this;
    context.fillStyle = ink.soft;
    context.strokeStyle = ink.faint;
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const found = ticks(this.low, this.high, Math.max(2, Math.floor(height / 40)));
    for (const tick of this.isLog ? logTicks(this.low, this.high) : found) {
      const y = Math.round(this.y(tick)) + 0.5;
      line(context, PAD.left, y, width - PAD.right, y);
      context.fillText(this.isLog ? logText(tick) : tickText(tick, this.high - this.low), PAD.left - 6, y);
    }
    context.textBaseline = "top";
    context.textAlign = "center";
    for (const tick of ticks(this.data.steps[0], this.data.until, Math.max(2, Math.floor(width / 85)))) {
      const x = this.x(tick);
      line(context, x, height - PAD.bottom, x, height - PAD.bottom + 4);
      context.fillText(count(tick), Math.min(Math.max(x, PAD.left), width - 24), height - PAD.bottom + 7);
    }
  }

  stack() {
    const { context } = this;
    const { steps, until } = this.data;
    const edges = [...steps.map((step) => this.x(step)), this.x(until)];
    const below = new Float64Array(steps.length);
    this.rows.forEach((row, i) => {
      const above = below.map((value, k) => value + (row[k] ?? 0));
      context.beginPath();
      for (let k = 0; k < steps.length; k++) {
        context.lineTo(edges[k], this.y(above[k]));
        context.lineTo(edges[k + 1], this.y(above[k]));
      }
      for (let k = steps.length - 1; k >= 0; k--) {
        context.lineTo(edges[k + 1], this.y(below[k]));
        context.lineTo(edges[k], this.y(below[k]));
      }
      context.closePath();
      context.globalAlpha = this.faded(i) ? 0.15 : 0.88;
      context.fillStyle = this.colour(i);
      context.fill();
      if (steps.length <= SEAM_POINTS) this.seam(edges, above);
      context.globalAlpha = 1;
      below.set(above);
    });
  }

  // Sets a band apart from the next one: level parts alone, the upright ones would be a thicket.
  seam(edges, above) {
    const { context, ink } = this;
    context.globalAlpha = 0.55;
    context.beginPath();
    for (let k = 0; k < above.length; k++) {
      context.moveTo(edges[k], this.y(above[k]));
      context.lineTo(edges[k + 1], this.y(above[k]));
    }
    context.lineWidth = 0.75;
    context.strokeStyle = ink.card;
    context.stroke();
  }

  lines() {
    const { context } = this;
    const { steps, until } = this.data;
    const middles = steps.map((step, k) => this.x((step + (steps[k + 1] ?? until)) / 2));
    const order = this.rows.map((_, i) => i).sort((a, b) => this.faded(b) - this.faded(a));
    for (const i of order) {
      context.beginPath();
      let points = 0;
      let lastX = 0;
      this.rows[i].forEach((value, k) => {
        if (value === null || (this.isLog && value <= 0)) return;
        if (points) context.lineTo(middles[k], this.y(value));
        else context.moveTo(middles[k], this.y(value));
        points += 1;
        lastX = k;
      });
      context.globalAlpha = this.faded(i) ? 0.18 : 1;
      context.strokeStyle = context.fillStyle = this.colour(i);
      context.lineWidth = this.single === this.data.names[i] ? 2.6 : 1.5;
      context.lineJoin = "round";
      context.stroke();
      if (points === 1) context.fillRect(middles[lastX] - 2, this.y(this.rows[i][lastX]) - 2, 4, 4);
    }
    context.globalAlpha = 1;
  }

  // Where regimes begin, and alarms.
  marks() {
    const { context, ink, height, width } = this;
    const { steps, until, regimes = [], alarms = [] } = this.data;
    let free = 0;
    context.textBaseline = "alphabetic";
    if (this.isLog) {
      context.fillStyle = ink.soft;
      context.textAlign = "right";
      context.fillText("log", PAD.left - 6, 11);
    }
    context.textAlign = "left";
    regimes.forEach((regime, i) => {
      const end = regimes[i + 1]?.start ?? Infinity;
      if (end <= steps[0] || regime.start >= until) return;
      const x = Math.max(this.x(regime.start), PAD.left);
      if (regime.start > steps[0]) {
        context.strokeStyle = ink.ink;
        context.lineWidth = 1;
        context.setLineDash([4, 3]);
        line(context, x, PAD.top - 4, x, height - PAD.bottom);
        context.setLineDash([]);
      }
      const size = context.measureText(regime.name).width;
      if (x < free || x + size > width) return;
      context.fillStyle = ink.soft;
      context.fillText(regime.name, x + 3, 11);
      free = x + size + 12;
    });
    if (!this.hasAlarms) return;
    context.fillStyle = ink.bad;
    for (const alarm of alarms) {
      if (this.single !== null && alarm.source !== this.single) continue;
      if (alarm.step < steps[0] || alarm.step >= until) continue;
      const x = this.x(alarm.step);
      context.beginPath();
      context.moveTo(x, PAD.top + 8);
      context.lineTo(x - 5, PAD.top - 2);
      context.lineTo(x + 5, PAD.top - 2);
      context.fill();
    }
  }

  drawCursor() {
    const { context, ink, height } = this;
    if (this.drag) {
      const [a, b] = this.drag.map((step) => this.x(step));
      context.fillStyle = ink.accent;
      context.globalAlpha = 0.2;
      context.fillRect(Math.min(a, b), PAD.top, Math.abs(b - a), height - PAD.top - PAD.bottom);
      context.globalAlpha = 1;
    }
    if (this.cursor === null || this.cursor < this.data.steps[0] || this.cursor >= this.data.until) return;
    context.strokeStyle = ink.ink;
    context.lineWidth = 1;
    const x = Math.round(this.x(this.cursor)) + 0.5;
    line(context, x, PAD.top, x, height - PAD.bottom);
  }

  setCursor(step, isHere) {
    this.cursor = step;
    this.draw();
    this.tip.hidden = !isHere;
    if (isHere) this.fillTip(step);
  }

  fillTip(step) {
    const k = pointAt(this.data.steps, step);
    const values = this.rows.map((row, i) => [i, row[k]]).filter(([, value]) => value !== null && value !== undefined);
    values.sort((a, b) => b[1] - a[1]);
    const end = (this.data.steps[k + 1] ?? this.data.until) - 1;
    this.tip.replaceChildren(
      make("strong", {}, `steps ${count(this.data.steps[k])}–${count(end)}`),
      ...values.slice(0, TIP_ROWS).map(([i, value]) => make("div", {},
        swatch(this.colour(i)), make("span", {}, this.label(i)), make("span", {}, number(value, this.digits)))),
    );
    if (this.hasAlarms) {
      const heard = this.data.alarms.filter((alarm) => alarm.step >= this.data.steps[k] && alarm.step <= end);
      this.tip.append(...heard.slice(0, 3).map((alarm) => make("div", { className: "alarming" }, `▼ ${alarmText(alarm)}`)));
    }
    if (values.length > TIP_ROWS) this.tip.append(make("div", { className: "note" }, `and ${values.length - TIP_ROWS} more`));
    const x = this.x(step);
    const isRight = x > this.width / 2;
    this.tip.style.left = isRight ? "" : `${x + 12}px`;
    this.tip.style.right = isRight ? `${this.width - x + 12}px` : "";
    this.tip.style.top = `${PAD.top}px`;
  }

  label(i) {
    return labelOf(this.data, i);
  }

  colour(i) {
    return colourOf(this.data.positions[i] ?? -1);
  }

  faded(i) {
    return this.single !== null && this.data.names[i] !== this.single;
  }

  setSingle(name) {
    this.single = name;
    this.draw();
  }

  fill() {
    if (this.tableFrame.hidden || !this.data) return;
    const { steps, until } = this.data;
    const every = Math.max(1, Math.ceil(steps.length / TABLE_ROWS));
    const rows = [];
    for (let k = steps.length - 1; k >= 0; k -= every) {
      const end = (steps[k + 1] ?? until) - 1;
      rows.push([`${count(steps[k])}–${count(end)}`, ...this.rows.map((row) => number(row[k], this.digits))]);
    }
    fillTable(this.table, [["steps"], ...this.rows.map((_, i) => [this.label(i)])], rows, this.title.textContent);
  }
}

export function labelOf(data, i) {
  return data.names[i] ?? `${count(data.num_others)} others`;
}

// The position of the point that covers `step`: the last that begins at or before it.
export function pointAt(steps, step) {
  let [low, high] = [0, steps.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (steps[middle] <= step) low = middle;
    else high = middle - 1;
  }
  return low;
}

export function ticks(low, high, most) {
  const raw = (high - low) / most;
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step || 0); // no -0
  return found;
}

// Powers of ten, and twos and fives where there are few of them; `low` and `high` are logarithms.
function logTicks(low, high) {
  const factors = high - low < 2.5 ? [1, 2, 5] : [1];
  const powers = Array.from({ length: Math.floor(high) - Math.floor(low) + 1 }, (_, i) => Math.floor(low) + i);
  const found = powers.flatMap((power) => factors.map((factor) => factor * 10 ** power));
  return found.filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high);
}

function logText(tick) {
  return tick >= 1e-3 && tick < 1e4 ? String(+tick.toPrecision(1)) : tick.toExponential(0);
}

function tickText(tick, span) {
  if (Math.abs(tick) >= 1000) return compact(tick);
  if (tick !== 0 && span < 0.005) return (+tick.toPrecision(3)).toExponential();
  const digits = Math.min(Math.max(0, Math.ceil(1.2 - Math.log10(span || 1))), 6);
  return String(+tick.toFixed(digits));
}

function line(context, x, y, toX, toY) {
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(toX, toY);
  context.stroke();
}

function lastKnown(row) {
  for (let k = row.length - 1; k >= 0; k--) if (row[k] !== null) return row[k];
  return null;
}

// From the smallest to the largest value, with a little air; one wild value in a thousand does not flatten the rest.
function range(rows, isLog) {
  const values = known(rows, isLog);
  if (!values.length) return [0, 1];
  const cut = Math.floor(values.length / 1000);
  const ends = [values[cut], values[values.length - 1 - cut]];
  const [low, high] = isLog ? ends.map(Math.log10) : ends;
  const air = (high - low || Math.abs(high) || 1) * 0.05;
  return [low - air, high + air];
}

function known(rows, isPositive) {
  return rows.flat().filter((value) => value !== null && (!isPositive || value > 0)).sort((a, b) => a - b);
}

// Whether a logarithmic axis says more: nothing is negative, and the largest would press half of the rest flat.
function spansDecades(rows) {
  const values = known(rows, false);
  const positive = values.filter((value) => value > 0);
  if (positive.length < 20 || values.some((value) => value < 0)) return false;
  return positive.at(-1) > 20 * positive[Math.floor(positive.length / 2)];
}
