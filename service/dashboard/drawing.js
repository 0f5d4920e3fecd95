// What a plot over steps looks like: stacked bands or lines, with axes, names at their ends, regimes and alarms.

import { colourOf, count, dashOf, fitted, inks, number, prepare } from "./looks.js";
import { lastKnown, logText, logTicks, spread, tickText, ticks } from "./scales.js";

const PAD = { left: 46, right: 10, top: 18, bottom: 22 };
const NAMES = 104; // pixels for names at the ends of lines, where there is room
const STRIP = 5; // the kinds of phases, below a stack
const SEAM_POINTS = 200; // with more, seams are all that one sees

// What it draws is set by those who extend it: data, rows, shownRows, overall, parent, low, high, isLog, outside.
export class Drawing {
  // Room on the right for names, if this canvas has it to spare.
  get right() {
    return this.width > 520 && this.rows.length <= 24 ? NAMES : PAD.right;
  }

  x(step) {
    const { steps, until } = this.data;
    return PAD.left + ((step - steps[0]) / Math.max(until - steps[0], 1)) * (this.width - PAD.left - this.right);
  }

  y(value) {
    const scaled = this.isLog ? Math.log10(Math.max(value, Number.MIN_VALUE)) : value;
    return this.height - PAD.bottom - ((scaled - this.low) / (this.high - this.low || 1)) * (this.height - PAD.top - PAD.bottom);
  }

  stepOf(x) {
    const { steps, until } = this.data;
    const share = (x - PAD.left) / (this.width - PAD.left - this.right);
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
    context.rect(PAD.left, PAD.top - 2, width - PAD.left - this.right, height - PAD.top - PAD.bottom + 4);
    context.clip();
    if (this.kind === "stack") this.stack();
    else this.lines();
    context.restore();
    if (this.kind === "stack") this.kinds();
    this.ends();
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
      line(context, PAD.left, y, width - this.right, y);
      context.fillText(this.isLog ? logText(tick) : tickText(tick, this.high - this.low), PAD.left - 6, y);
    }
    context.textBaseline = "top";
    context.textAlign = "center";
    for (const tick of ticks(this.data.steps[0], this.data.until, Math.max(2, Math.floor(width / 85)))) {
      const x = this.x(tick);
      line(context, x, height - PAD.bottom, x, height - PAD.bottom + 4);
      context.fillText(count(tick), Math.min(Math.max(x, PAD.left), width - 24), height - PAD.bottom + 8);
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
    const order = this.rows.map((_, i) => i).sort((a, b) => this.faded(b) - this.faded(a));
    if (this.parent) this.parentLines();
    for (const i of order) {
      const look = { colour: this.colour(i), dash: dashOf(this.data.positions[i] ?? -1) };
      const alpha = this.faded(i) ? 0.15 : 1;
      if (this.shownRows !== this.rows) this.polyline(this.rows[i], { ...look, alpha: alpha * 0.3, width: 1 });
      this.polyline(this.shownRows[i], { ...look, alpha, width: this.singles.has(this.data.names[i]) ? 2.6 : 1.5 });
    }
    if (this.overall) this.polyline(this.overall, { colour: this.ink.ink, dash: [], alpha: 0.9, width: 2.2 });
  }

  // One line through the middles of its points. What ranks have still to report is dotted.
  polyline(row, { colour, dash, alpha, width, steps = this.data.steps, until = this.data.until, settled = this.hasAlarms ? this.data.settled : undefined }) {
    const { context } = this;
    const middle = (k) => this.x((steps[k] + (steps[k + 1] ?? until)) / 2);
    const points = row.map((value, k) => [k, value]).filter(([, value]) => value !== null && !(this.isLog && value <= 0));
    Object.assign(context, { globalAlpha: alpha, strokeStyle: colour, fillStyle: colour, lineWidth: width, lineJoin: "round" });
    const isOpen = ([k]) => settled !== undefined && (steps[k + 1] ?? until) > settled;
    const first = points.findIndex(isOpen);
    const parts = first < 0 ? [[points, dash]] : [[points.slice(0, first), dash], [points.slice(Math.max(first - 1, 0)), [1.5, 3]]];
    for (const [part, kind] of parts) {
      context.setLineDash(kind);
      context.beginPath();
      for (const [k, value] of part) context.lineTo(middle(k), this.y(value));
      context.stroke();
    }
    context.setLineDash([]);
    if (points.length === 1) context.fillRect(middle(points[0][0]) - 2, this.y(points[0][1]) - 2, 4, 4);
    context.globalAlpha = 1;
  }

  // The run that this one left, from where it did: all sources together, and those singled out.
  parentLines() {
    const { names, steps, until, rows, overall } = this.parent;
    const at = { steps, until, settled: undefined, dash: [5, 4], width: 1.5 };
    rows.forEach((row, i) => {
      if (!this.singles.has(names[i])) return;
      this.polyline(row, { ...at, colour: this.colour(this.data.names.indexOf(names[i])), alpha: 0.75 });
    });
    this.polyline(overall, { ...at, colour: this.ink.soft, alpha: 0.9 });
  }

  // Below a stack: how much of each point was random phases.
  kinds() {
    const { context, ink, height } = this;
    const { steps, until, num_random: random, per_point: per, num_phases: total } = this.data;
    if (!random) return;
    steps.forEach((step, k) => {
      const num = k === steps.length - 1 && until === this.data.end ? total % per || per : per;
      const [from, to] = [this.x(step), this.x(steps[k + 1] ?? until)];
      context.fillStyle = ink.room;
      context.fillRect(from, height - PAD.bottom + 1, to - from, STRIP);
      context.globalAlpha = Math.min(random[k] / num, 1);
      context.fillStyle = ink.warn;
      context.fillRect(from, height - PAD.bottom + 1, to - from, STRIP);
      context.globalAlpha = 1;
    });
  }

  // Names where lines and bands end, those in alarm marked; what lies beyond the axis is named at its edge.
  ends() {
    const { context, height, width, ink } = this;
    const floor = height - PAD.bottom;
    const wanted = this.kind === "stack" ? this.bandEnds() : this.lineEnds();
    context.textBaseline = "middle";
    context.textAlign = "left";
    context.font = "11px system-ui, sans-serif";
    if (this.right === NAMES) {
      const places = spread(wanted.map(({ y }) => Math.min(Math.max(y, PAD.top), floor)), 11.5, PAD.top, floor);
      wanted.forEach(({ text, colour, i, y }, k) => {
        context.globalAlpha = this.faded(i) ? 0.35 : 1;
        context.fillStyle = colour;
        const sign = y > floor + 1 ? "↓ " : y < PAD.top - 3 ? "↑ " : "";
        const alarm = this.data.inAlarm?.has(this.data.names[i]) ? "▼ " : "";
        context.fillText(fitted(context, `${alarm}${sign}${text}`, NAMES - 10), width - NAMES + 6, places[k]);
      });
    } else {
      const beyond = wanted.filter(({ i }) => this.outside.includes(i));
      beyond.forEach(({ text, colour, y }, k) => {
        context.fillStyle = colour;
        context.fillText(`${y > floor ? "↓" : "↑"} ${text}`, PAD.left + 4, y > floor ? floor - 7 - 12 * k : PAD.top + 6 + 12 * k);
      });
    }
    context.globalAlpha = 1;
    context.fillStyle = ink.soft;
  }

  lineEnds() {
    const found = this.shownRows.map((row, i) => [i, lastKnown(row)]).filter(([, value]) => value !== null && !(this.isLog && value <= 0));
    const ends = found.map(([i, value]) => ({ i, y: this.y(value), colour: this.colour(i), text: this.outside.includes(i) ? `${this.label(i)} ${number(value, 2)}` : this.label(i) }));
    const all = this.overall && lastKnown(this.overall);
    return all === null || all === undefined || all === false ? ends : [...ends, { i: -1, y: this.y(all), colour: this.ink.ink, text: "all sources" }];
  }

  bandEnds() {
    let below = 0;
    return this.rows.flatMap((row, i) => {
      const value = row.at(-1) ?? 0;
      below += value;
      const size = Math.abs(this.y(0) - this.y(value));
      return size < 3 ? [] : [{ i, y: this.y(below - value / 2), colour: this.colour(i), text: this.label(i) }];
    });
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
    if (this.data.forkStep > steps[0] && this.data.forkStep < until) {
      const x = this.x(this.data.forkStep);
      context.strokeStyle = ink.accent;
      line(context, x, PAD.top - 4, x, height - PAD.bottom);
      context.fillStyle = ink.accent;
      context.fillText("fork", x + 3, height - PAD.bottom - 6);
    }
    if (!this.hasAlarms) return;
    context.fillStyle = ink.bad;
    for (const alarm of alarms) {
      if (this.singles.size && !this.singles.has(alarm.source)) continue;
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

  label(i) {
    return labelOf(this.data, i);
  }

  colour(i) {
    return colourOf(this.data.positions[i] ?? -1);
  }

  faded(i) {
    return this.singles.size > 0 && !this.singles.has(this.data.names[i]);
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

function line(context, x, y, toX, toY) {
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(toX, toY);
  context.stroke();
}
