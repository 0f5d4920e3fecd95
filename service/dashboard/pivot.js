// The pivot's form: bounds of each source, tried on the server while one types, and asked for by an admin.

import { asAdmin, confirmed, inWords, say } from "./dialogs.js";
import { count, debounced, make, number, swatch } from "./looks.js";
import { alarmMark } from "./tables.js";

const MAX_ROWS = 200; // of the sources that match; the rest is found by name

export class PivotForm {
  constructor({ onPreview, onProblem, onDone, askToken }) {
    Object.assign(this, { onPreview, onProblem, onDone, askToken, api: null, bounds: null, names: [], isTouched: false, closed: "" });
    this.at = (id) => document.getElementById(id);
    this.form = this.at("pivot-form");
    this.soon = debounced(200, () => this.preview());
    this.form.addEventListener("input", (event) => {
      if (event.target === this.at("pivot-query")) this.fill();
      else {
        this.isTouched = true;
        this.soon();
      }
    });
    this.at("pivot-when").addEventListener("change", () => {
      this.at("pivot-step-field").hidden = this.at("pivot-when").value !== "step";
    });
    this.at("pivot-reset").addEventListener("click", () => this.reset());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit().catch((error) => this.sayProblem(error));
    });
  }

  setApi(api) {
    this.abort?.abort();
    Object.assign(this, { api, bounds: null, inForce: null, result: null, names: [], isTouched: false });
    this.at("pivot-table").replaceChildren();
    this.at("pivot-submit").disabled = true;
    this.say("", "");
    this.onPreview(null);
  }

  // Why nothing can be redrawn now; empty if something can.
  setClosed(reason) {
    if (reason === this.closed) return;
    this.closed = reason;
    this.settleSubmit();
    if (reason) this.say("", reason);
    else if (this.isTouched) this.preview();
    else this.say("", "Change a bound to see what it does.");
  }

  settleSubmit() {
    this.at("pivot-submit").disabled = Boolean(this.closed) || !this.isTouched || !this.result?.is_feasible;
  }

  sayProblem(error) {
    const { text, hint } = inWords(error);
    this.say("bad", text, hint);
  }

  // Takes the bounds in force, unless somebody is at work on them.
  show(overview, names) {
    this.names = names;
    this.alarms = Map.groupBy(overview.alarms, (alarm) => alarm.source);
    this.weights = new Map(overview.sources.map((source) => [source.name, source]));
    const step = Math.max(overview.end - 1, 0);
    const inForce = overview.regimes.findLast((regime) => regime.start <= step) ?? overview.regimes[0];
    const isNew = JSON.stringify(inForce) !== JSON.stringify(this.inForce);
    this.inForce = inForce;
    const marks = JSON.stringify([...this.alarms].map(([name, list]) => [name, list.some((alarm) => alarm.is_lasting)]));
    const isMarked = marks === this.marks || this.at("pivot-table").contains(document.activeElement);
    if (!isMarked) this.marks = marks;
    if (!this.bounds || (isNew && !this.isTouched)) this.reset();
    else if (!isMarked) this.fill();
  }

  reset() {
    this.isTouched = false;
    const { floors, caps, exclude } = this.inForce;
    this.bounds = new Map(this.names.map((name) => [name, {
      floor: floors[name] ?? 0, cap: caps[name] ?? 1, excluded: exclude.includes(name),
    }]));
    this.at("pivot-step").value = "";
    this.fill();
    this.result = null;
    this.say("", this.closed || "Change a bound to see what it does.");
    this.settleSubmit();
    this.onPreview(null);
  }

  fill() {
    const query = this.at("pivot-query").value.toLowerCase();
    const shown = this.names.filter((name) => name.toLowerCase().includes(query)).slice(0, MAX_ROWS);
    const head = make("thead", {}, make("tr", {}, ...[["Source", "text"], ["Floor"], ["Cap"], ["Exclude"], ["Bounds then"], ["Now"], ["Lands at"]]
      .map(([title, kind]) => make("th", { scope: "col", className: kind ?? "" }, title))));
    this.cells = new Map();
    const rows = shown.map((name) => this.row(name));
    this.at("pivot-table").replaceChildren(head, make("tbody", {}, ...rows));
    this.fillResult();
  }

  row(name) {
    const bounds = this.bounds.get(name);
    const input = (what) => {
      const field = make("input", { type: "number", min: 0, max: 1, step: "any", value: bounds[what], "aria-label": `${what} of ${name}` });
      field.inputMode = "decimal";
      field.disabled = bounds.excluded;
      field.addEventListener("input", () => {
        bounds[what] = field.value === "" ? (what === "floor" ? 0 : 1) : field.valueAsNumber;
        field.setAttribute("aria-invalid", String(!isBound(bounds[what])));
      });
      return field;
    };
    const [floor, cap] = [input("floor"), input("cap")];
    const box = make("input", { type: "checkbox", checked: bounds.excluded, "aria-label": `Exclude ${name}` });
    box.addEventListener("input", () => {
      bounds.excluded = floor.disabled = cap.disabled = box.checked;
    });
    const cells = [make("td"), make("td"), make("td")];
    this.cells.set(name, cells);
    const label = (text, ...children) => make("td", { "data-label": text }, ...children);
    ["Bounds then", "Now", "Lands at"].forEach((text, i) => cells[i].setAttribute("data-label", text));
    return make("tr", {}, make("th", { scope: "row", className: "text", title: name }, swatch(this.names.indexOf(name)), " ", alarmMark(this.alarms.get(name) ?? []), name),
      label("Floor", floor), label("Cap", cap), label("Exclude", box), ...cells);
  }

  tables() {
    const floors = {}, caps = {}, exclude = [];
    for (const [name, { floor, cap, excluded }] of this.bounds) {
      if (excluded) exclude.push(name);
      else {
        if (floor > 0) floors[name] = floor;
        if (cap < 1) caps[name] = cap;
      }
    }
    return { floors, caps, exclude };
  }

  async preview() {
    const wrong = [...this.bounds].find(([, bounds]) => !bounds.excluded && !(isBound(bounds.floor) && isBound(bounds.cap)));
    this.at("pivot-submit").disabled = true;
    if (this.closed) return;
    if (wrong) {
      this.result = null;
      this.say("bad", `${wrong[0]}: a floor or a cap is a number from 0 to 1.`);
      this.onPreview(null);
      return;
    }
    this.abort?.abort();
    this.abort = new AbortController();
    const step = this.at("pivot-when").value === "step" ? Number(this.at("pivot-step").value) || null : null;
    try {
      this.result = await this.api.post("pivots/preview", { ...this.tables(), at_step: step }, this.abort.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.sayProblem(error);
      return;
    }
    this.fillResult();
    this.onPreview(this.result);
    this.settleSubmit();
    this.say(this.result.is_feasible ? "good" : "bad", verdict(this.result));
  }

  fillResult() {
    const result = this.isTouched && this.result?.is_feasible ? this.result : null;
    const places = new Map(result?.names.map((name, i) => [name, i]));
    for (const [name, [bounds, now, landed]] of this.cells) {
      const i = places.get(name);
      now.textContent = number(result ? result.before[i] : this.weights.get(name)?.weight, 4);
      bounds.textContent = result ? (result.upper[i] > 0 ? `${number(result.lower[i])}–${number(result.upper[i])}` : "not drawn") : "";
      const change = result ? result.landed[i] - result.before[i] : 0;
      landed.textContent = result ? `${number(result.landed[i], 4)}${Math.abs(change) < 5e-5 ? "" : change > 0 ? " ↑" : " ↓"}` : "";
    }
  }

  say(state, text, hint = "") {
    say(this.at("pivot-verdict"), state, text, hint);
  }

  async submit() {
    const name = this.at("pivot-name");
    if (!name.checkValidity()) {
      name.setAttribute("aria-invalid", "true");
      name.focus();
      this.say("bad", "Give the pivot a name of letters, digits, dots, dashes and underscores.");
      return;
    }
    name.removeAttribute("aria-invalid");
    const when = this.at("pivot-when").value;
    const step = this.at("pivot-step");
    if (when === "step" && !(step.valueAsNumber >= 1)) {
      step.focus();
      this.say("bad", "Say at which step the pivot is to begin.");
      return;
    }
    const told = {
      now: "At the first step that no rank has been given yet, which cuts the phase in force,",
      next: `At the next phase (step ${count(this.result.at_step)})`,
      step: `At step ${count(step.valueAsNumber)}`,
    }[when];
    const text = `${told} the run goes on under “${name.value}”. ${verdict(this.result)} This is written into the journal and cannot be taken back, only redrawn again.`;
    if (!(await confirmed("Redraw the region?", text, "Redraw"))) return;
    const body = { name: name.value, ...this.tables() };
    body.at = when === "step" ? step.valueAsNumber : when;
    await this.send(body);
  }

  async send(body) {
    const onRefused = (error) => this.sayProblem(error);
    const taken = await asAdmin(() => this.api.post("pivots", body), { askToken: this.askToken, onRefused });
    if (!taken) return;
    this.isTouched = false;
    this.result = null;
    this.at("pivot-name").value = "";
    this.at("pivot-submit").disabled = true;
    this.onPreview(null);
    this.fillResult();
    this.say("good", `The pivot ${body.name} is in the journal, in force from step ${count(taken.at_step)} on.`);
    this.onDone();
  }
}

function isBound(value) {
  return value >= 0 && value <= 1;
}

function verdict(result) {
  if (!result.is_feasible) return `Not feasible: ${result.problem}`;
  const moves = result.distance < 1e-6 ? "The walk stays where it is" : `The walk moves by ${number(result.distance)}`;
  const room = result.dimension === 0
    ? "one mixture alone is left"
    : result.dimension === result.dimension_in_force
      ? `the region has ${share(result.log_volume - result.log_volume_in_force)} of the size of the one in force`
      : `the region has ${result.dimension} free dimensions instead of ${result.dimension_in_force}`;
  return `Feasible. ${moves}; ${room}.`;
}

function share(logRatio) {
  const percent = 100 * Math.exp(logRatio);
  return percent > 1e4 || percent < 0.01 ? `${percent.toExponential(1)} %` : `${+percent.toPrecision(3)} %`;
}
