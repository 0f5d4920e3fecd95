// Plots over steps, on canvas: stacked or lines, with a cursor, zoom by dragging, and a table for those who prefer one.

import { Drawing, labelOf, pointAt } from "./drawing.js";
import { count, fillTable, make, number, swatch } from "./looks.js";
import { rove } from "./roving.js";
import { lastKnown, rangeOf, smoothed, spansDecades } from "./scales.js";
import { alarmText } from "./tables.js";

const SMOOTH = 25; // a smooth line is a mean over a 25th of the points on both sides
const TABLE_ROWS = 100;
const TIP_ROWS = 9;

export class Plot extends Drawing {
  // kind: "stack" | "lines"; `pick(data)` gives { rows: [[..]..], overall?, parent?, low?, high? }: a row for each source,
  // one for all of them together, and those of the run that this one left. Calls onCursor(step), onZoom(from, to).
  constructor(section, { kind, pick, digits = 3, choices = null, onCursor, onZoom }) {
    super();
    Object.assign(this, {
      section, kind, pick, digits, onCursor, onZoom, hasAlarms: section.dataset.plot === "losses",
      data: null, cursor: null, singles: new Set(), isSmooth: false,
    });
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
    const buttons = make("div", { className: "buttons", role: "toolbar", "aria-label": `${this.title.textContent}: how it is shown` });
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
    rove(buttons);
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
    if (!data) {
      this.tip.hidden = true;
      this.table.replaceChildren();
      this.canvas.setAttribute("aria-label", this.title.textContent);
      this.draw();
      return;
    }
    const { rows, overall = null, parent = null, low, high } = this.pick(data, this.choice);
    Object.assign(this, { rows, overall, parent, shownRows: rows });
    if (this.isSmooth && this.kind === "lines") {
      const width = Math.max(1, Math.round(data.steps.length / SMOOTH));
      this.shownRows = rows.map((row) => smoothed(row, width));
      this.overall = overall && smoothed(overall, width);
    }
    this.isLog = low === undefined && spansDecades(rows);
    const range = low !== undefined ? { low, high, outside: [] } : rangeOf(rows, this.isLog);
    Object.assign(this, range);
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
    const out = this.outside.map((i) => labelOf(this.data, i)).join(", ");
    const told = last.slice(0, 5).map(([name, value]) => `${name} ${number(value, this.digits)}`).join(", ");
    this.canvas.setAttribute("aria-label",
      `${this.title.textContent}, steps ${count(steps[0])} to ${count(until - 1)}. Largest at the end: ${told}.${out ? ` Beyond the axis: ${out}.` : ""}`);
  }

  setCursor(step, isHere) {
    this.cursor = step;
    if (!this.data?.steps.length) return;
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
        swatch(this.data.positions[i] ?? -1), make("span", {}, this.label(i)), make("span", {}, number(value, this.digits)))),
    );
    if (this.hasAlarms) {
      const heard = this.data.alarms.filter((alarm) => alarm.step >= this.data.steps[k] && alarm.step <= end);
      this.tip.append(...heard.slice(0, 3).map((alarm) => make("div", { className: "alarming" }, `▼ ${alarmText(alarm)}`)));
    }
    const all = this.overall?.[k];
    if (all !== undefined && all !== null) this.tip.append(make("div", {}, make("span", { className: "swatch all" }), make("span", {}, "all sources"), make("span", {}, number(all, this.digits))));
    if (this.kind === "stack" && this.data.num_random) this.tip.append(make("div", { className: "note" }, `${this.data.num_random[k]} of up to ${this.data.per_point} phases random`));
    if (values.length > TIP_ROWS) this.tip.append(make("div", { className: "note" }, `and ${values.length - TIP_ROWS} more`));
    const x = this.x(step);
    const isRight = x > this.width / 2;
    this.tip.style.left = isRight ? "" : `${x + 12}px`;
    this.tip.style.right = isRight ? `${this.width - x + 12}px` : "";
    this.tip.style.top = "18px";
  }

  setSingles(names) {
    this.singles = names;
    this.draw();
  }

  setSmooth(isSmooth) {
    this.isSmooth = isSmooth;
    this.show(this.data);
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
