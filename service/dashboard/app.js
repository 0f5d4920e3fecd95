// The page that watches a run: what it reads, how often, and who shows it.

import { Api, Events, keepToken, token } from "./api.js";
import { firstOpen, joined, settledStep } from "./columns.js";
import { inWords } from "./dialogs.js";
import { labelOf, pointAt } from "./drawing.js";
import { count, make, number, swatch, theme } from "./looks.js";
import { Paper } from "./paper.js";
import { PivotForm } from "./pivot.js";
import { Plot } from "./plot.js";
import { rove } from "./roving.js";
import { RunControl, RunList } from "./runs.js";
import { SamplePanel } from "./samples.js";
import { AlarmTable, JournalTable, RankTable, SourceTable, alarmMark, alarmText, missing } from "./tables.js";
import { clearTiles, showTiles } from "./tiles.js";
import { showVerdict, trainedSteps, verdictOf, whyNoPivot } from "./verdict.js";

const POINTS = Math.min(800, Math.max(300, innerWidth)); // of a plot: more than its pixels would not show
const POLL_MS = 5000; // ranks report without an event
const EVENT_MS = 1000; // events come in heaps; the page is redrawn once for each heap

const at = (id) => document.getElementById(id);
const state = {
  api: null, events: null, overview: null, status: null, series: null, names: [], positions: new Map(),
  window: null, cursor: null, singles: new Set(), query: "", numAlarms: null, verdict: null,
  parent: null, forkStep: null, // of a fork: the columns of the run that it left, and where
  readAt: null, lost: null, // when the server last answered, and what it says since it does not
};

const plots = {
  weights: new Plot(at("weights"), { ...hooks(), kind: "stack", pick: (data) => ({ rows: data.weights, low: 0, high: 1 }) }),
  losses: new Plot(at("losses"), { ...hooks(), kind: "lines", pick: (data) => ({ rows: data.losses, overall: data.loss, parent: data.parent }) }),
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
const sources = new SourceTable(at("source-table"), { onSingle: toggle, onQuery: (query) => { state.query = query; refresh(); } });
const ranks = new RankTable(at("rank-table"), at("ranks-note"));
const alarms = new AlarmTable(at("alarm-table"), { onStep: goTo, onSource: (name, step) => { singleOut(new Set([name])); goTo(step); sources.find(name); } });
const journal = new JournalTable({ onProblem: showProblem, onStep: goTo });
const samples = new SamplePanel({ onProblem: showProblem });
const pivot = new PivotForm({ onPreview: (preview) => sketch.setPreview(preview), onDone: () => refresh(), askToken });
const control = new RunControl({ onRuns: showRun, onDone: () => refresh(), askToken });
const runs = new RunList({ onRead: (list) => control.setRuns(list), onChosen: (name) => { at("run-verdict").textContent = ""; showRun(name); } });
for (const id of ["settings", "sections", "zoom", "legend"]) rove(at(id));

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
    Object.assign(state, { lost: null, readAt: Date.now() / 1000 });
    if (state.status?.problem) showProblem({ status: 0, message: `The run cannot go on: ${state.status.problem}` });
    else hideProblem();
  } catch (error) {
    if (api === state.api) await lose(error);
  } finally {
    isBusy = false;
    judge();
    if (api !== state.api) refresh();
  }
}

// What is shown has become old: says so, and looks whether the run was archived meanwhile.
async function lose(error) {
  showProblem(error);
  if (error.status === 401 || error.status === 403) state.lost = { kind: "closed", at: null, text: "no access" };
  else if (error.status === 0 || error.status >= 500 || error.name === "TimeoutError") {
    state.lost = { kind: "gone", at: state.readAt ?? state.lost?.at ?? Date.now() / 1000, text: error.status >= 500 ? "failing" : "gone" };
  } else if (error.status === 404) state.lost = { kind: "closed", at: null, text: "no such run" };
  else if (!isRecord()) {
    await readRuns();
    if (isRecord()) choose(new Api(at("run").value));
  }
}

function isRecord() {
  return runs.shown?.status === "archived";
}

async function readOnce(api) {
  const status = isRecord() ? null : api.get("status");
  const [overview, told] = await Promise.all([api.get("overview", { query: state.query }), status]);
  if (api !== state.api) return;
  const isChanged = overview.num_entries !== state.overview?.num_entries || !state.series;
  const isHeard = overview.num_lines !== state.overview?.num_lines; // reports change the newest points
  const [paths] = isChanged ? await Promise.all([api.get("region"), readSeries(api)]) : [null, isHeard && (await readSeries(api))];
  if (api !== state.api) return;
  Object.assign(state, { overview, status: told });
  if (paths) takePaths(paths);
  showOverview();
  if (isChanged || isHeard) showSeries();
  if (isChanged) journal.refresh();
}

// The whole window at first, then only from the last point on, until there are twice as many points as wanted.
async function readSeries(api) {
  const { from, to } = state.window ?? { from: 0, to: null };
  const old = state.series;
  const isTail = old && !to && old.from === from && old.steps.length > 1 && old.steps.length < 2 * POINTS;
  const query = isTail
    ? { from_step: firstOpen(old, settledStep(state)), per_point: old.per_point, points: POINTS }
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
  showTiles(overview, { isRecord: isRecord() });
  announceAlarms();
  sources.show(overview, state.positions);
  ranks.show(overview, status);
  alarms.show(overview.alarms);
  if (state.names.length) pivot.show(overview, state.names);
  control.show(at("run").value, status, overview);
}

// The verdict on what is known now, which changes also while nothing comes.
function judge() {
  const { overview, status, lost, readAt } = state;
  const before = state.verdict?.kind;
  const run = runs.shown;
  state.verdict = verdictOf({ overview, status, run, lost, age_s: readAt === null ? 0 : Date.now() / 1000 - readAt });
  const name = run?.name ?? at("run").value;
  showVerdict(state.verdict, { name, step: overview ? trainedSteps(overview) : null });
  pivot.setClosed(whyNoPivot(state.verdict, overview ?? undefined));
  if (isRecord()) showConnection("record", "Nothing changes any more");
  if (before && before !== state.verdict.kind && before !== "connecting") at("announcer").textContent = `Run ${name}: ${state.verdict.text}`;
}

// Says aloud what one would look up for.
function announceAlarms() {
  const { num_alarms: total, alarms } = state.overview;
  if (state.numAlarms !== null && total > state.numAlarms) at("announcer").textContent = `Alarm: ${alarmText(alarms[0])}`;
  state.numAlarms = total;
}

function showSeries() {
  const { series, overview } = state;
  const inAlarm = new Set(overview.alarms.filter((alarm) => alarm.is_lasting).map((alarm) => alarm.source));
  const isLive = !isRecord() && trainedSteps(overview) < overview.total_steps;
  const data = {
    ...series, regimes: overview.regimes, alarms: overview.alarms, inAlarm, positions: series.names.map((name) => state.positions.get(name)),
    settled: settledStep(state) ?? undefined, parent: state.parent, forkStep: state.forkStep,
  };
  for (const plot of Object.values(plots)) plot.show(data);
  for (const grain of document.querySelectorAll(".grain")) {
    grain.textContent = series.per_point > 1 ? `Each point is the mean of up to ${series.per_point} phases.` : "";
  }
  const absent = missing(overview.ranks);
  at("loss-note").textContent = [
    "The thick line is all sources together.", state.parent ? `Dashed: the run it left, ${state.parent.name}.` : "",
    isLive && absent !== "all level" ? `Dotted, for ${absent}.` : "",
  ].filter(Boolean).join(" ");
  sources.setSeries(series);
  fillLegend(data);
  const [first, last] = [series.steps[0] ?? 0, Math.max((series.until || 1) - 1, 0)];
  const wasAtEnd = state.cursor === null || state.cursor >= Number(at("cursor").max);
  Object.assign(at("cursor"), { min: first, max: last });
  setCursor(wasAtEnd ? last : Math.min(Math.max(state.cursor, first), last));
  at("zoom-all").disabled = at("zoom-out").disabled = !state.window;
  at("zoom-in").disabled = series.steps.length < 2;
}

function fillLegend(data) {
  const alarmed = overviewAlarms();
  const key = [theme(), ...data.names, data.num_others, ...[...alarmed].map(([name, list]) => `${name}${list.some((alarm) => alarm.is_lasting)}`)].join();
  if (key === at("legend").dataset.key) return;
  at("legend").dataset.key = key;
  const entries = data.names.map((name) => {
    const button = make("button", { type: "button", "aria-pressed": String(state.singles.has(name)), title: name },
      swatch(state.positions.get(name) ?? -1), alarmMark(alarmed.get(name) ?? []), make("span", { className: "name" }, name));
    button.addEventListener("click", () => toggle(name));
    return button;
  });
  const all = make("button", { type: "button", id: "legend-all", title: "Show all sources alike", hidden: state.singles.size === 0 }, "All");
  all.addEventListener("click", () => singleOut(new Set()));
  entries.push(all);
  if (data.num_others) entries.push(make("span", { className: "note" }, swatch(-1), ` ${labelOf(data, data.names.length)}`));
  at("legend").replaceChildren(...entries);
}

function overviewAlarms() {
  return Map.groupBy(state.overview?.alarms ?? [], (alarm) => alarm.source);
}

function toggle(name) {
  const singles = new Set(state.singles);
  if (!singles.delete(name)) singles.add(name);
  singleOut(singles);
}

function singleOut(names) {
  state.singles = names;
  const shown = new Set([...names].filter((name) => state.series?.names.includes(name)));
  for (const plot of Object.values(plots)) plot.setSingles(shown);
  for (const button of at("legend").querySelectorAll("[aria-pressed]")) button.setAttribute("aria-pressed", String(names.has(button.title)));
  if (at("legend-all")) at("legend-all").hidden = names.size === 0;
  sources.setSingles(names);
}

// Puts the cursor at a step, which may lie outside of what is shown.
function goTo(step) {
  const { series } = state;
  if (!series?.steps.length) return;
  state.cursor = step;
  if (step < series.steps[0] || step >= series.until) {
    state.goal = step;
    zoomTo(0, Infinity);
  } else setCursor(step);
}

function setCursor(step, here = null) {
  const { series } = state;
  if (state.goal !== undefined && series?.steps.length) [step, state.goal] = [state.goal, undefined];
  state.cursor = step;
  at("cursor").value = step;
  at("cursor-step").textContent = series ? `step ${count(step)}` : "–";
  if (!series?.steps.length) return;
  const k = pointAt(series.steps, step);
  const values = series.weights.map((row, i) => [labelOf(series, i), row[k], i]).sort((a, b) => b[1] - a[1]);
  at("cursor").setAttribute("aria-valuetext", `step ${count(step)}: ${values.slice(0, 5).map(([name, value]) => `${name} ${number(value)}`).join(", ")}`);
  at("cursor-weights").replaceChildren(...values.map(([name, value, i]) => make("span", {}, swatch(state.positions.get(series.names[i]) ?? -1), `${name} ${number(value)}`)));
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
  const { text, hint } = inWords(error);
  if (at("problem").dataset.text === text + hint && !at("problem").hidden) return;
  at("problem").dataset.text = text + hint;
  const button = make("button", { type: "button" }, "Give a token");
  button.addEventListener("click", () => askToken());
  const needsToken = error.status === 401 || error.status === 403;
  at("problem").replaceChildren(make("strong", {}, text), ...(hint ? [make("span", { className: "hint" }, hint)] : []), ...(needsToken ? [button] : []));
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
      again();
      return resolve(dialog.returnValue === "keep" && value !== "");
    }, { once: true });
  });
}

// With another token: what was refused before is asked for again, and what was typed stays.
async function again() {
  await readRuns();
  if (isRecord()) {
    choose(new Api(at("run").value));
    return;
  }
  state.lost = null;
  state.events?.retry();
  refresh();
  journal.setApi(state.api);
  samples.setApi(state.api);
  readConfig(state.api);
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
    showOverview();
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

// Shows a run: everything of the one before is forgotten, and leaves the page at once.
function choose(api) {
  state.events?.stop();
  Object.assign(state, {
    api, events: null, overview: null, status: null, series: null, window: null, cursor: null, goal: undefined, singles: new Set(),
    numAlarms: null, names: [], positions: new Map(), parent: null, forkStep: null, readAt: null, lost: null, verdict: null,
  });
  clear();
  pivot.setApi(api);
  if (!isRecord()) state.events = follow(api);
  judge();
  refresh();
  journal.setApi(api);
  samples.setApi(api);
  readConfig(api);
}

function readConfig(api) {
  api.get("config").then((config) => takeConfig(api, config), showProblem);
}

function clear() {
  hideProblem();
  clearTiles();
  for (const id of ["legend", "rank-table", "cursor-weights"]) at(id).replaceChildren();
  at("legend").dataset.key = "";
  for (const id of ["ranks-note", "loss-note", "config-text"]) at(id).textContent = "";
  for (const plot of Object.values(plots)) {
    plot.setSingles(new Set());
    plot.show(null);
  }
  paper.clear();
  sketch.clear();
  sources.clear();
  sources.setSingles(new Set());
  alarms.show([]);
  Object.assign(at("cursor"), { min: 0, max: 0, value: 0 });
  at("cursor-step").textContent = "–";
  at("run-name").textContent = at("run-state").textContent = "–";
}

function follow(api) {
  let timer = 0;
  return new Events(api, {
    onEvent: (type) => {
      if (type === "ping" || document.hidden || api !== state.api) return;
      if (type === "open" || type === "sample") samples.read();
      clearTimeout(timer);
      timer = setTimeout(refresh, type === "open" ? 0 : EVENT_MS);
    },
    onState: (what, text) => { if (api === state.api) showConnection(what, text); },
  });
}

async function takeConfig(api, config) {
  if (api !== state.api) return;
  at("config-text").textContent = JSON.stringify(config.curriculum, (_, value) => value ?? undefined, 2);
  if (!config.parent) return;
  state.forkStep = config.parent.step;
  const parent = runs.runs.find((run) => run.fingerprint === config.parent.fingerprint && run.name !== config.run);
  if (!parent) return;
  try {
    const series = await new Api(parent.name).get("series", { from_step: config.parent.step, points: POINTS });
    if (api !== state.api) return;
    state.parent = { name: parent.name, names: series.names, steps: series.steps, until: series.until, rows: series.losses, overall: series.loss };
    if (state.series) showSeries();
  } catch {
    // the parent may be gone; the fork is shown all the same
  }
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
at("smooth").addEventListener("click", () => {
  const isSmooth = at("smooth").getAttribute("aria-pressed") !== "true";
  at("smooth").setAttribute("aria-pressed", String(isSmooth));
  for (const plot of Object.values(plots)) plot.setSmooth(isSmooth);
});
at("zoom-all").addEventListener("click", () => zoomTo(0, Infinity));
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  state.events?.retry();
  refresh();
});
setInterval(() => {
  judge();
  if (!document.hidden && !(isRecord() && state.series && !state.lost)) refresh();
}, POLL_MS);

showToken();
setTheme(theme() === "dark");
readRuns().then(() => choose(new Api(new URL(location.href).searchParams.get("run") ?? "")));
