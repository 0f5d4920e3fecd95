// The tables of the page: sources as they stand, ranks, alarms, the journal.

import { colourOf, compact, count, debounced, duration, fillTable, make, number, swatch } from "./looks.js";

const COLUMNS = [
  ["name", "Source"], ["weight", "Weight"], ["proportion", "Drawn so far"], ["lower", "Bounds"],
  ["loss", "Loss"], ["index", "Index"], ["width", "Width"], ["tokens", "Tokens"],
];

export class SourceTable {
  constructor(table, { onSingle, onQuery }) {
    Object.assign(this, { table, onSingle, sort: "weight", isDown: true, single: null, positions: new Map() });
    this.head = make("thead", {}, make("tr"));
    this.body = make("tbody");
    table.replaceChildren(this.head, this.body);
    document.getElementById("source-query").addEventListener("input", debounced(250, (event) => onQuery(event.target.value)));
    this.fillHead();
  }

  fillHead() {
    this.head.firstChild.replaceChildren(...COLUMNS.flatMap(([key, title]) => {
      const button = make("button", { type: "button" }, title, key === this.sort ? (this.isDown ? " ↓" : " ↑") : "");
      button.addEventListener("click", () => {
        this.isDown = key === this.sort ? !this.isDown : key !== "name";
        this.sort = key;
        this.fillHead();
        this.fill();
        this.head.querySelectorAll("button")[COLUMNS.findIndex(([other]) => other === key)].focus();
      });
      const cell = make("th", { scope: "col", className: key === "name" ? "text" : "" }, button);
      if (key === this.sort) cell.setAttribute("aria-sort", this.isDown ? "descending" : "ascending");
      return key === "name" ? [cell, make("th", { scope: "col" }, make("span", { className: "hidden-text" }, "Picture"))] : [cell];
    }));
  }

  show(overview, positions) {
    this.overview = overview;
    this.positions = positions;
    this.fill();
  }

  setSingle(name) {
    this.single = name;
    this.fill();
  }

  fill() {
    if (!this.overview) return;
    const { sources, alarms, num_sources: total } = this.overview;
    const sign = this.isDown ? -1 : 1;
    const rank = (source) => source[this.sort] ?? -Infinity;
    const sorted = [...sources].sort((a, b) => sign * (rank(a) < rank(b) ? -1 : rank(a) > rank(b) ? 1 : 0));
    const most = Math.max(...sources.map((source) => Math.min(Math.max(source.weight, source.proportion) * 1.5, 1)), 0.02);
    const alarming = new Set(alarms.map((alarm) => alarm.source));
    this.body.replaceChildren(...sorted.map((source) => this.row(source, most, alarming)));
    document.getElementById("source-count").textContent =
      sources.length < total ? `${count(sources.length)} of ${count(total)} sources` : `${count(total)} sources`;
  }

  row(source, most, alarming) {
    const button = make("button", { type: "button", "aria-pressed": String(this.single === source.name), title: source.name },
      swatch(colourOf(this.positions.get(source.name) ?? -1)), ` ${source.name}`);
    button.addEventListener("click", () => this.onSingle(this.single === source.name ? null : source.name));
    const epochs = source.unique_tokens ? `${(source.tokens / source.unique_tokens).toFixed(2)} epochs` : "";
    const loss = alarming.has(source.name)
      ? make("span", { className: "alarming", title: "There was an alarm for this source" }, `▼ ${number(source.loss)}`)
      : number(source.loss);
    return make("tr", { className: this.single === source.name ? "single" : "" },
      make("th", { scope: "row", className: "text" }, button),
      make("td", {}, bullet(source, most, colourOf(this.positions.get(source.name) ?? -1))),
      make("td", {}, number(source.weight)),
      make("td", { title: `${count(source.rows)} rows; weights averaged ${number(source.mean_weight, 4)}` }, number(source.proportion)),
      make("td", {}, source.upper > 0 ? `${number(source.lower, 2)}–${number(source.upper, 2)}` : "not drawn"),
      make("td", {}, loss),
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

export class RankTable {
  constructor(table, note) {
    Object.assign(this, { table, note });
  }

  show({ ranks }, { ranks: asking }) {
    const reported = new Map(ranks.map((rank) => [rank.rank, rank]));
    const asked = new Map(asking.map((rank) => [rank.rank, rank]));
    const silent = asking.filter((rank) => !reported.has(rank.rank)).map((rank) => rank.rank);
    const most = Math.max(0, ...ranks.map((rank) => rank.lag));
    const told = most ? `the last one is ${count(most)} steps behind the first` : "all level";
    this.note.textContent = ranks.length || silent.length
      ? `${count(ranks.length)} reporting, ${told}${silent.length ? `; ${count(silent.length)} have not reported yet` : ""}.`
      : "No rank has come yet.";
    const numbers = [...ranks.map((rank) => rank.rank), ...silent];
    fillTable(this.table, [["rank"], ["asked for"], ["reported"], ["behind"], ["reports"], ["last asked"]],
      numbers.map((number) => row(number, reported.get(number), asked.get(number))), "Ranks");
  }
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

export function showAlarms(table, alarms) {
  fillTable(table, [["step"], ["source", "left"], ["kind", "left"], ["what", "text"]],
    alarms.map((alarm) => [count(alarm.step), alarm.source, alarm.kind, alarm.message]), "Alarms, newest first");
}

export function alarmText(alarm) {
  return `${alarm.source}, ${alarm.kind}: ${alarm.message}`;
}

export class JournalTable {
  constructor({ onProblem }) {
    this.onProblem = onProblem;
    this.before = 0;
    this.at = (id) => document.getElementById(id);
    const search = () => this.load(0);
    this.at("journal-query").addEventListener("input", debounced(300, search));
    this.at("journal-kind").addEventListener("change", search);
    this.at("journal-newest").addEventListener("click", search);
    this.at("journal-older").addEventListener("click", () => this.load(this.oldest));
    this.at("journal-save").addEventListener("click", () => this.save().catch(onProblem));
  }

  setApi(api) {
    this.api = api;
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
    fillTable(this.at("journal-table"), [["line"], ["step"], ["what it says", "text"], ["", ""]], entries.map((entry) => {
      if (entry.type !== "phase") return [count(entry.line), count(entry.step), entry.text, ""];
      const button = make("button", { type: "button", "aria-label": `All of phase at step ${entry.step}` }, "All of it");
      button.addEventListener("click", () => this.open(entry).catch(this.onProblem));
      return [count(entry.line), count(entry.step), entry.text, button];
    }), "Lines of the journal, newest first");
  }

  async open(entry) {
    const index = Number(/^phase (\d+)/.exec(entry.text)[1]);
    const { phases } = await this.api.get("phases", { from: entry.step, limit: 1 });
    this.at("line-title").textContent = `Line ${count(entry.line)}: phase ${count(index)}`;
    this.at("line-text").textContent = JSON.stringify(phases[0], null, 1).replace(/\n\s+(-?[\d.e+-]+|null)(,?)(?=\n)/g, " $1$2");
    this.at("line-dialog").showModal();
  }

  async save() {
    const response = await this.api.request("walk");
    const link = make("a", { href: URL.createObjectURL(await response.blob()), download: "walk.jsonl" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }
}
