// The tables of the page: sources as they stand, ranks, alarms, the journal.

import { colourOf, compact, count, debounced, duration, fillTable, make, number, sparkline, swatch, timeOf } from "./looks.js";
import { rove } from "./roving.js";

const PICTURES = { name: ["Weight in its bounds"], weight: ["Weight over the steps shown"], loss: ["Loss over the steps shown"] }; // after a column

const COLUMNS = [
  ["name", "Source"], ["weight", "Weight"], ["proportion", "Drawn so far"], ["lower", "Bounds"],
  ["loss", "Loss"], ["index", "Index"], ["width", "Width"], ["tokens", "Tokens"],
];

export class SourceTable {
  constructor(table, { onSingle, onQuery }) {
    Object.assign(this, { table, onSingle, sort: "weight", isDown: true, singles: new Set(), positions: new Map(), series: null });
    this.head = make("thead", {}, make("tr"));
    this.body = make("tbody");
    table.replaceChildren(this.head, this.body);
    document.getElementById("source-query").addEventListener("input", debounced(250, (event) => onQuery(event.target.value)));
    this.fillHead();
    rove(table);
  }

  fillHead() {
    this.head.firstChild.replaceChildren(...COLUMNS.flatMap(([key, title]) => {
      const button = make("button", { type: "button", title: `Sort by ${title.toLowerCase()}` }, title, key === this.sort ? (this.isDown ? " ↓" : " ↑") : "");
      button.addEventListener("click", () => {
        this.isDown = key === this.sort ? !this.isDown : key !== "name";
        this.sort = key;
        this.fillHead();
        this.fill();
        this.head.querySelectorAll("button")[COLUMNS.findIndex(([other]) => other === key)].focus();
      });
      const cell = make("th", { scope: "col", className: key === "name" ? "text" : "" }, button);
      if (key === this.sort) cell.setAttribute("aria-sort", this.isDown ? "descending" : "ascending");
      return [cell, ...(PICTURES[key] ?? []).map((name) => make("th", { scope: "col" }, make("span", { className: "hidden-text" }, name)))];
    }));
  }

  show(overview, positions) {
    this.overview = overview;
    this.positions = positions;
    this.fill();
  }

  // The columns that sparklines are drawn from.
  setSeries(series) {
    this.series = series;
    this.fill();
  }

  setSingles(names) {
    this.singles = names;
    this.fill();
  }

  clear() {
    this.overview = this.series = null;
    this.body.replaceChildren();
    document.getElementById("source-count").textContent = "";
  }

  fill() {
    if (!this.overview) return;
    const { sources, alarms, num_sources: total } = this.overview;
    const sign = this.isDown ? -1 : 1;
    const rank = (source) => source[this.sort] ?? -Infinity;
    const sorted = [...sources].sort((a, b) => sign * (rank(a) < rank(b) ? -1 : rank(a) > rank(b) ? 1 : 0));
    const most = Math.max(...sources.map((source) => Math.min(Math.max(source.weight, source.proportion) * 1.5, 1)), 0.02);
    const focused = this.body.contains(document.activeElement) ? document.activeElement.title : null;
    this.body.replaceChildren(...sorted.map((source) => this.row(source, most, alarmsOf(alarms, source.name))));
    if (focused !== null) this.buttonOf(focused)?.focus();
    document.getElementById("source-count").textContent =
      sources.length < total ? `${count(sources.length)} of ${count(total)} sources` : `${count(total)} sources`;
  }

  buttonOf(name) {
    return [...this.body.querySelectorAll("button")].find((button) => button.title === name);
  }

  // Goes to a source's row.
  find(name) {
    const button = this.buttonOf(name);
    button?.scrollIntoView({ block: "center" });
    button?.focus({ preventScroll: true });
  }

  spark(column, source, position) {
    const i = this.series?.names.indexOf(source.name) ?? -1;
    return i < 0 ? null : sparkline(this.series[column][i], position, `${column === "weights" ? "weight" : "loss"} of ${source.name} over the steps shown`);
  }

  row(source, most, alarms) {
    const position = this.positions.get(source.name) ?? -1;
    const isSingle = this.singles.has(source.name);
    const button = make("button", { type: "button", "aria-pressed": String(isSingle), title: source.name },
      swatch(position), alarmMark(alarms), ` ${source.name}`);
    button.addEventListener("click", () => this.onSingle(source.name));
    const epochs = source.unique_tokens ? `${(source.tokens / source.unique_tokens).toFixed(2)} epochs` : "";
    return make("tr", { className: isSingle ? "single" : "" },
      make("th", { scope: "row", className: "text" }, button),
      make("td", {}, bullet(source, most, colourOf(position))),
      make("td", {}, number(source.weight)),
      make("td", {}, this.spark("weights", source, position)),
      make("td", { title: `${count(source.rows)} rows; weights averaged ${number(source.mean_weight, 4)}` }, number(source.proportion)),
      make("td", {}, source.upper > 0 ? `${number(source.lower, 2)}–${number(source.upper, 2)}` : "not drawn"),
      make("td", {}, number(source.loss)),
      make("td", {}, this.spark("losses", source, position)),
      make("td", {}, number(source.index)),
      make("td", {}, number(source.width)),
      make("td", { title: epochs }, compact(source.tokens)));
  }
}

// Bounds as a band, the weight as a bar, what was drawn as a tick; the same scale in every row.
function bullet(source, most, colour) {
  const percent = (value) => `${Math.min(value / most, 1) * 100}%`;
  const room = make("span", { className: "room" });
  Object.assign(room.style, { left: percent(source.lower), right: `${100 - Math.min(source.upper / most, 1) * 100}%` });
  const bar = make("span", { className: "bar" });
  Object.assign(bar.style, { width: percent(source.weight), background: colour });
  const tick = make("span", { className: "tick" });
  tick.style.left = percent(source.proportion);
  return make("span", { className: "bullet", "aria-hidden": "true" }, room, bar, tick);
}

function alarmsOf(alarms, name) {
  return alarms.filter((alarm) => alarm.source === name);
}

// Whether a source is in alarm, or was: in words for those who cannot see it.
export function alarmMark(alarms) {
  if (!alarms.length) return null;
  const isLasting = alarms.some((alarm) => alarm.is_lasting);
  return make("span", { className: isLasting ? "alarming" : "past-alarm" }, isLasting ? "▼" : "▽",
    make("span", { className: "hidden-text" }, isLasting ? " in alarm: " : " was in alarm: "));
}

export class RankTable {
  constructor(table, note) {
    Object.assign(this, { table, note });
  }

  show({ ranks }, status) {
    const asking = status?.ranks ?? []; // of a record nobody asks
    const reported = new Map(ranks.map((rank) => [rank.rank, rank]));
    const asked = new Map(asking.map((rank) => [rank.rank, rank]));
    const silent = asking.filter((rank) => !reported.has(rank.rank)).map((rank) => rank.rank);
    const numbers = [...ranks.map((rank) => rank.rank), ...silent];
    this.note.textContent = numbers.length ? `${count(ranks.length)} reporting, ${missing(ranks, silent)}.` : "No rank has come yet.";
    fillTable(this.table, [["rank"], ["asked for"], ["reported"], ["behind"], ["reports"], ["last asked"]],
      numbers.map((number) => row(number, reported.get(number), asked.get(number))), "Ranks");
  }
}

// Whose reports are missing, and since when.
export function missing(ranks, silent = []) {
  const behind = ranks.filter((rank) => rank.lag > 0);
  const told = behind.slice(0, 3).map((rank) => `rank ${rank.rank} from step ${count(rank.step + 1)} on (${count(rank.lag)} behind)`);
  if (behind.length > 3) told.push(`${count(behind.length - 3)} more`);
  if (silent.length) told.push(`${silent.length > 1 ? "ranks" : "rank"} ${silent.slice(0, 8).join(", ")}${silent.length > 8 ? " and more" : ""} altogether`);
  return told.length ? `reports are missing of ${told.join(", ")}` : "all level";
}

function row(number, reported, asked) {
  const lag = reported?.lag ?? 0;
  const when = asked?.asked_ago_s === undefined || asked.asked_ago_s === null ? "–" : `${duration(asked.asked_ago_s)} ago`;
  return [
    `rank ${number}`, asked?.asked_step === undefined || asked.asked_step === null ? "–" : count(asked.asked_step),
    reported ? count(reported.step) : "–", lag > 1 ? make("span", { className: "behind" }, count(lag)) : count(lag),
    count(reported?.reports ?? 0), asked?.is_absent ? make("span", { className: "behind" }, `${when}, absent`) : when,
  ];
}

export class AlarmTable {
  // onStep(step): the cursor is to go there. onSource(name): that source is to be looked at.
  constructor(table, { onStep, onSource }) {
    Object.assign(this, { table, onStep, onSource, key: "" });
    rove(table);
  }

  show(alarms) {
    const key = JSON.stringify(alarms);
    if (key === this.key) return; // buttons keep the focus
    this.key = key;
    fillTable(this.table, [["when", "left"], ["step"], ["source", "left"], ["", "left"], ["kind", "left"], ["what", "text"]],
      alarms.map((alarm, i) => [
        timeOf(alarm.at), goTo(alarm.step, this.onStep, `${i}`), this.sourceButton(alarm, i),
        make("span", { className: alarm.is_lasting ? "alarming" : "past-alarm" }, alarm.is_lasting ? "▼ lasts" : "▽ over"), alarm.kind, alarm.message,
      ]), "Alarms, newest first");
  }

  sourceButton(alarm, i) {
    const button = make("button", { type: "button", className: "link", title: `Show ${alarm.source} alone`, id: `alarm-source-${i}` }, alarm.source);
    button.addEventListener("click", () => this.onSource(alarm.source, alarm.step));
    return button;
  }
}

function goTo(step, onStep, key) {
  const button = make("button", { type: "button", className: "link", title: `Put the cursor at step ${count(step)} (${key})`, "aria-label": `Put the cursor at step ${count(step)}` }, count(step));
  button.addEventListener("click", () => onStep(step));
  return button;
}

export function alarmText(alarm) {
  return `${alarm.source}, ${alarm.kind}: ${alarm.message}`;
}

export class JournalTable {
  constructor({ onProblem, onStep }) {
    Object.assign(this, { onProblem, onStep });
    this.before = 0;
    this.at = (id) => document.getElementById(id);
    const search = () => this.load(0);
    rove(this.at("journal-table"));
    this.at("journal-query").addEventListener("input", debounced(300, search));
    this.at("journal-kind").addEventListener("change", search);
    this.at("journal-newest").addEventListener("click", search);
    this.at("journal-older").addEventListener("click", () => this.load(this.oldest));
    this.at("journal-save").addEventListener("click", () => this.save().catch(onProblem));
  }

  setApi(api) {
    this.api = api;
    this.at("journal-table").replaceChildren();
    this.at("journal-count").textContent = "";
    return this.load(0);
  }

  // What is new shows itself only on the first page, so that nothing moves under the reader's eyes.
  refresh() {
    return this.before === 0 && !this.at("journal-table").contains(document.activeElement) ? this.load(0) : null;
  }

  async load(before) {
    const api = this.api;
    const query = { query: this.at("journal-query").value, kind: this.at("journal-kind").value, before, limit: 50 };
    let found;
    try {
      found = await api.get("journal", query);
    } catch (error) {
      this.onProblem(error);
      return;
    }
    if (api !== this.api) return;
    this.before = before;
    const { entries, num_found: total } = found;
    this.oldest = entries.at(-1)?.line ?? 0;
    this.at("journal-older").disabled = entries.length === total;
    const text = `${count(total)} ${total === 1 ? "line" : "lines"}${before ? " before these" : ""}`;
    if (this.at("journal-count").textContent !== text) this.at("journal-count").textContent = text;
    const columns = [["line"], ["when", "left"], ["step"], ["what it says", "text"], ["", ""]];
    fillTable(this.at("journal-table"), columns, entries.map((entry) => {
      const known = [count(entry.line), timeOf(entry.at), goTo(entry.step, this.onStep, entry.line), entry.text];
      if (entry.type !== "phase") return [...known, ""];
      const button = make("button", { type: "button", title: `All of line ${entry.line}`, "aria-label": `All of phase at step ${entry.step}` }, "All of it");
      button.addEventListener("click", () => this.open(entry).catch(this.onProblem));
      return [...known, button];
    }), "Lines of the journal, newest first");
  }

  // A phase: what it has of each source as a table with their names, and the rest as it is written.
  async open(entry) {
    const api = this.api;
    const index = Number(/^phase (\d+)/.exec(entry.text)[1]);
    const { phases, names } = await api.get("phases", { from: entry.step, limit: 1 });
    if (api !== this.api) return;
    const [bySource, rest] = parted(phases[0], names.length);
    this.at("line-title").textContent = `Line ${count(entry.line)}: phase ${count(index)}`;
    this.at("line-when").replaceChildren(entry.at === null ? "" : timeOf(entry.at));
    fillTable(this.at("line-sources"), [["source"], ...bySource.map(([name]) => [name])],
      names.map((name, i) => [name, ...bySource.map(([, values]) => (Number.isInteger(values[i]) ? count(values[i]) : number(values[i], 4)))]), "By source");
    this.at("line-text").textContent = JSON.stringify(rest, null, 1);
    this.at("line-dialog").showModal();
  }

  async save() {
    const response = await this.api.request("walk", { patience_ms: null });
    const link = make("a", { href: URL.createObjectURL(await response.blob()), download: "walk.jsonl" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }
}

// Splits a record into its lists of one number for each source, by name, and what is left.
function parted(record, size, prefix = "") {
  const lists = [];
  const rest = {};
  for (const [key, value] of Object.entries(record)) {
    if (Array.isArray(value) && value.length === size) lists.push([prefix + key, value]);
    else if (value && typeof value === "object" && !Array.isArray(value)) {
      const [inner, left] = parted(value, size, `${prefix}${key}.`);
      lists.push(...inner);
      if (Object.keys(left).length) rest[key] = left;
    } else rest[key] = value;
  }
  return [lists, rest];
}
