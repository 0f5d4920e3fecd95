// The page that watches a run: what it reads, how often, and who shows it.

import { Api, Events, keepToken, token } from "./api.js";
import { colourOf, compact, count, duration, make, number, swatch, theme } from "./looks.js";
import { Paper } from "./paper.js";
import { PivotForm } from "./pivot.js";
import { Plot, labelOf, pointAt } from "./plot.js";
import { RunControl, RunList } from "./runs.js";
import { JournalTable, RankTable, SourceTable, alarmText, showAlarms } from "./tables.js";

const POINTS = Math.min(800, Math.max(300, innerWidth)); // of a plot: more than its pixels would not show
const POLL_MS = 5000; // ranks report without an event
const EVENT_MS = 1000; // events come in heaps; the page is redrawn once for each heap

const at = (id) => document.getElementById(id);
const state = {
  api: null, events: null, overview: null, series: null, names: [], positions: new Map(),
  window: null, cursor: null, single: null, query: "", numAlarms: null,
};

const plots = {
  weights: new Plot(at("weights"), { ...hooks(), kind: "stack", pick: (data) => ({ rows: data.weights, low: 0, high: 1 }) }),
  losses: new Plot(at("losses"), { ...hooks(), kind: "lines", pick: (data) => ({ rows: data.losses }) }),
  index: new Plot(at("index"), {
    ...hooks(), kind: "lines", digits: 4, choices: [["index", "Index"], ["width", "Width"]],
    pick: (data, choice) => ({ rows: data[choice] }),
  }),
  proportions: new Plot(at("proportions"), {
    ...hooks(), kind: "lines", digits: 2, choices: [["gap", "Difference"], ["drawn", "Drawn"]],
    pick: (data, choice) => ({ rows: choice === "drawn" ? percents(data.proportions) : gaps(data) }),
  }),
};
const paper = new Paper(at("region-canvas"), { note: at("region-note") });
const sketch = new Paper(at("pivot-canvas"), { hasWalk: false });
const sources = new SourceTable(at("source-table"), { onSingle: singleOut, onQuery: (query) => { state.query = query; refresh(); } });
const ranks = new RankTable(at("rank-table"), at("ranks-note"));
const journal = new JournalTable({ onProblem: showProblem });
const pivot = new PivotForm({ onPreview: (preview) => sketch.setPreview(preview), onDone: () => refresh(), askToken });
const control = new RunControl({ onRuns: showRun, onDone: () => refresh(), askToken });
const runs = new RunList({ onRead: (list) => control.setRuns(list), onChosen: showRun });

function hooks() {
  return { onCursor: setCursor, onZoom: (from, to) => zoomTo(from, to + 1) };
}

function percents(rows) {
  return rows.map((row) => row.map((value) => 100 * value));
}

function gaps({ weights, proportions }) {
  return weights.map((row, i) => row.map((weight, k) => 100 * (proportions[i][k] - weight)));
}

// --- reading ---

let isBusy = false;
let isDue = false;

// Reads what has changed. Calls that come meanwhile are answered by one more round.
async function refresh() {
  if (isBusy) {
    isDue = true;
    return;
  }
  isBusy = true;
  const api = state.api;
  try {
    do {
      isDue = false;
      await readOnce(api);
    } while (isDue && api === state.api);
    if (state.status.problem) showProblem({ status: 0, message: `The run cannot go on: ${state.status.problem}` });
    else hideProblem();
  } catch (error) {
    if (api === state.api) showProblem(error);
  } finally {
    isBusy = false;
    if (api !== state.api) refresh();
  }
}

async function readOnce(api) {
  const [overview, status] = await Promise.all([api.get("overview", { query: state.query }), api.get("status")]);
  const isChanged = overview.num_entries !== state.overview?.num_entries || !state.series;
  const [paths] = isChanged ? await Promise.all([api.get("region"), readSeries(api)]) : [null];
  if (api !== state.api) return;
  Object.assign(state, { overview, status });
  if (paths) takePaths(paths);
  showOverview();
  if (isChanged) {
    showSeries();
    journal.refresh();
  }
}

// The whole window at first, then only from the last point on, until there are twice as many points as wanted.
async function readSeries(api) {
  const { from, to } = state.window ?? { from: 0, to: null };
  const old = state.series;
  const isTail = old && !to && old.from === from && old.steps.length > 1 && old.steps.length < 2 * POINTS;
  const query = isTail
    ? { from_step: old.steps.at(-1), per_point: old.per_point, points: POINTS }
    : { from_step: from, to_step: to, points: POINTS };
  const found = await api.get("series", query);
  if (api !== state.api) return;
  const isSame = isTail && found.names.join() === old.names.join() && found.end >= old.end;
  if (isTail && !isSame) {
    state.series = null;
    await readSeries(api);
    return;
  }
  state.series = { ...(isTail ? joined(old, found) : found), from };
}

function joined(old, tail) {
  const kept = pointAt(old.steps, tail.steps[0]);
  const glue = (before, after) => [...before.slice(0, kept), ...after];
  const columns = ["weights", "proportions", "losses", "index", "width"].map((name) =>
    [name, old[name].map((row, i) => glue(row, tail[name][i]))]);
  return { ...tail, ...Object.fromEntries(columns), steps: glue(old.steps, tail.steps), num_random: glue(old.num_random, tail.num_random) };
}

// --- showing ---

function takePaths(paths) {
  if (paths.names.join() !== state.names.join()) {
    state.names = paths.names;
    state.positions = new Map(paths.names.map((name, i) => [name, i]));
  }
  paper.show(paths);
  sketch.show(paths);
}

function showOverview() {
  const { overview, status } = state;
  const { phase } = overview;
  showPace();
  const trained = overview.ranks.length ? Math.max(...overview.ranks.map((rank) => rank.step)) + 1 : 0;
  at("tile-step").textContent = `${count(trained)} of ${count(overview.total_steps)}`;
  at("tile-progress").max = overview.total_steps;
  at("tile-progress").value = Math.min(trained, overview.total_steps);
  at("tile-phase").textContent = phase ? `${count(phase.index)}, ${phase.kind}` : "none yet";
  at("tile-phase-more").textContent = phase ? `steps ${count(phase.start)}–${count(phase.start + phase.length - 1)}` : "";
  if (status.is_paused) at("tile-phase-more").textContent += ", the run is paused";
  at("tile-regime").textContent = phase?.regime ?? overview.regimes[0].name;
  const next = overview.regimes.find((regime) => regime.start >= overview.end && regime.start > 0);
  at("tile-regime-more").textContent = next ? `then ${next.name} at ${count(next.start)}` : "";
  const most = Math.max(0, ...overview.ranks.map((rank) => rank.lag));
  at("tile-ranks").textContent = count(overview.ranks.length);
  at("tile-ranks-more").textContent = most ? `up to ${count(most)} steps behind` : "";
  at("tile-alarms").textContent = count(overview.num_alarms);
  at("tile-alarms").className = overview.num_alarms ? "alarming" : "";
  const newest = overview.alarms[0];
  at("tile-alarms-more").textContent = newest ? `${newest.source} at step ${count(newest.step)}` : "";
  announceAlarms();
  document.title = phase ? `${phase.regime} ${count(trained)} · Curriculum mixer` : "Curriculum mixer";
  sources.show(overview, state.positions);
  ranks.show(overview, status);
  showAlarms(at("alarm-table"), overview.alarms);
  if (state.names.length) pivot.show(overview, state.names);
  control.show(at("run").value, status, overview);
}

function showPace() {
  const { steps_per_s: pace, total_steps: total, batch_tokens: tokens, ranks: reporting } = state.overview;
  const left = total - Math.max(-1, ...reporting.map((rank) => rank.step)) - 1;
  at("tile-pace").textContent = pace === null ? "–" : pace === 0 ? "idle" : `${compact(pace * tokens)} tokens/s`;
  at("tile-pace-more").textContent = pace === null ? "not known yet"
    : pace === 0 ? (left > 0 ? "no new step in the last minute" : "all steps are done")
      : `${compact(pace)} steps/s${left > 0 ? `, ${duration(left / pace)} left` : ""}`;
}

// Says aloud what one would look up for.
function announceAlarms() {
  const { num_alarms: total, alarms } = state.overview;
  if (state.numAlarms !== null && total > state.numAlarms) at("announcer").textContent = `Alarm: ${alarmText(alarms[0])}`;
  state.numAlarms = total;
}

function showSeries() {
  const { series, overview } = state;
  const data = { ...series, regimes: overview.regimes, alarms: overview.alarms, positions: series.names.map((name) => state.positions.get(name)) };
  for (const plot of Object.values(plots)) plot.show(data);
  for (const grain of document.querySelectorAll(".grain")) {
    grain.textContent = series.per_point > 1 ? `Each point is the mean of up to ${series.per_point} phases.` : "";
  }
  fillLegend(data);
  const [first, last] = [series.steps[0] ?? 0, Math.max((series.until || 1) - 1, 0)];
  const wasAtEnd = state.cursor === null || state.cursor >= Number(at("cursor").max);
  Object.assign(at("cursor"), { min: first, max: last });
  setCursor(wasAtEnd ? last : Math.min(Math.max(state.cursor, first), last));
  at("zoom-all").disabled = at("zoom-out").disabled = !state.window;
  at("zoom-in").disabled = series.steps.length < 2;
}

function fillLegend(data) {
  const key = [theme(), ...data.names, data.num_others].join();
  if (key === at("legend").dataset.key) return;
  at("legend").dataset.key = key;
  const entries = data.names.map((name) => {
    const button = make("button", { type: "button", "aria-pressed": String(state.single === name), title: name },
      swatch(colourOf(state.positions.get(name) ?? -1)), make("span", {}, name));
    button.addEventListener("click", () => singleOut(state.single === name ? null : name));
    return button;
  });
  if (data.num_others) entries.push(make("span", { className: "note" }, swatch(colourOf(-1)), ` ${labelOf(data, data.names.length)}`));
  at("legend").replaceChildren(...entries);
}

function singleOut(name) {
  state.single = name;
  for (const plot of Object.values(plots)) plot.setSingle(state.series?.names.includes(name) ? name : null);
  for (const button of at("legend").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.title === name));
  const focused = document.activeElement?.closest("#source-table tbody button")?.title;
  sources.setSingle(name);
  if (focused) [...at("source-table").querySelectorAll("tbody button")].find((button) => button.title === focused)?.focus();
}

function setCursor(step, here = null) {
  state.cursor = step;
  const { series } = state;
  at("cursor").value = step;
  at("cursor-step").textContent = count(step);
  if (!series?.steps.length) return;
  const k = pointAt(series.steps, step);
  const values = series.weights.map((row, i) => [labelOf(series, i), row[k]]).sort((a, b) => b[1] - a[1]).slice(0, 5);
  at("cursor").setAttribute("aria-valuetext", `step ${count(step)}: ${values.map(([name, value]) => `${name} ${number(value)}`).join(", ")}`);
  for (const plot of Object.values(plots)) plot.setCursor(step, plot === here);
  paper.setCursor(step);
}

// --- zoom ---

function zoomTo(from, to) {
  const end = state.overview.end;
  const isWhole = from <= 0 && to >= end;
  state.window = isWhole ? null : { from: Math.max(Math.round(from), 0), to: to >= end ? null : Math.round(to) };
  state.series = null;
  refresh();
}

function zoomBy(factor) {
  const { series, cursor } = state;
  const [from, until] = [series.steps[0], series.until];
  const half = ((until - from) * factor) / 2;
  if (half < 5) return;
  const middle = Math.min(Math.max(cursor, from), until);
  zoomTo(middle - half, middle + half);
}

// --- problems, token, theme, run ---

function showProblem(error) {
  if (error.name === "AbortError") return;
  const needsToken = error.status === 401 || error.status === 403;
  const text = [error.message, error.hint].filter(Boolean).join(" ");
  if (at("problem").dataset.text === text && !at("problem").hidden) return;
  at("problem").dataset.text = text;
  const button = make("button", { type: "button" }, "Give a token");
  button.addEventListener("click", () => askToken());
  at("problem").replaceChildren(make("span", {}, text), ...(needsToken ? [button] : []));
  at("problem").hidden = false;
  if (!(error.status >= 0)) console.error(error); // not the server's doing: a fault of this page
}

function hideProblem() {
  at("problem").hidden = true;
}

// Resolves to whether a token was given.
function askToken() {
  const dialog = at("token-dialog");
  at("token-input").value = "";
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const value = at("token-input").value.trim();
      at("token-input").value = "";
      if (dialog.returnValue === "cancel") return resolve(false);
      keepToken(dialog.returnValue === "keep" ? value : "");
      showToken();
      readRuns();
      choose(state.api);
      return resolve(dialog.returnValue === "keep" && value !== "");
    }, { once: true });
  });
}

function showToken() {
  at("token-button").textContent = token() ? "Token given" : "Token";
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  at("theme").setAttribute("aria-pressed", String(dark));
  for (const plot of Object.values(plots)) plot.draw();
  paper.draw();
  sketch.draw();
  if (state.series) {
    showSeries();
    sources.fill();
  }
}

function keepTheme(value) {
  try {
    localStorage.setItem("theme", value);
  } catch {
    // without storage the choice lasts as long as the page
  }
}

function readRuns() {
  return runs.read(new URL(location.href).searchParams.get("run") ?? "");
}

// Goes to a run by name, the default one if that is empty; it may be a new one.
async function showRun(name) {
  const url = new URL(location.href);
  if (name) url.searchParams.set("run", name);
  else url.searchParams.delete("run");
  history.replaceState(null, "", url);
  await readRuns();
  choose(new Api(at("run").value));
}

// Shows a run: everything of the one before is forgotten.
function choose(api) {
  state.events?.stop();
  Object.assign(state, { api, overview: null, series: null, window: null, cursor: null, numAlarms: null, names: [], positions: new Map() });
  pivot.setApi(api);
  let timer = 0;
  state.events = new Events(api, {
    onEvent: (type) => {
      if (type === "ping" || document.hidden) return;
      clearTimeout(timer);
      timer = setTimeout(refresh, type === "open" ? 0 : EVENT_MS);
    },
    onState: showConnection,
  });
  refresh();
  journal.setApi(api);
  api.get("config").then((config) => { at("config-text").textContent = JSON.stringify(config.curriculum, (_, value) => value ?? undefined, 2); }, showProblem);
}

function showConnection(what, text) {
  at("connection").dataset.state = what;
  const place = at("connection-text");
  // a countdown is for the eye: screen readers hear of the break once
  place.setAttribute("aria-live", what === "lost" && place.textContent.startsWith("Not connected") ? "off" : "polite");
  place.textContent = text;
}

at("theme").addEventListener("click", () => {
  const dark = theme() !== "dark";
  keepTheme(dark ? "dark" : "light");
  setTheme(dark);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => setTheme(event.matches));
at("token-button").addEventListener("click", () => askToken());
at("cursor").addEventListener("input", () => setCursor(at("cursor").valueAsNumber));
at("zoom-in").addEventListener("click", () => zoomBy(0.5));
at("zoom-out").addEventListener("click", () => zoomBy(2));
at("zoom-all").addEventListener("click", () => zoomTo(0, Infinity));
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  state.events.retry();
  refresh();
});
setInterval(() => { if (!document.hidden) refresh(); }, POLL_MS);

showToken();
setTheme(theme() === "dark");
readRuns().then(refresh); // which says by its name what the default run is
choose(new Api(new URL(location.href).searchParams.get("run") ?? ""));
