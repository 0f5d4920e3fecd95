// The one verdict on a run: in a word, with since when, for the top of the page, the tab's title and its icon.

import { clock, count, duration } from "./looks.js";

const ICONS = {
  training: "good", finished: "done", record: "done", waiting: "wait", starting: "wait", paused: "wait",
  stalled: "wait", closed: "bad", broken: "bad", gone: "bad", connecting: "wait",
};

// { kind, text, isDead }: dead numbers are those of a moment that has passed, and say so.
// `lost`: { at, text } since the server gives no answer; `run`: as /runs lists it; `age_s`: of what was read.
export function verdictOf({ overview, status, run, lost, age_s: age = 0 }) {
  if (lost) return { kind: lost.kind, text: lost.at === null ? lost.text : `${lost.text} since ${clock(lost.at)}`, isDead: true };
  if (!overview) return { kind: "connecting", text: "connecting", isDead: false };
  const trained = trainedSteps(overview);
  const isFinished = trained >= overview.total_steps;
  if (run?.status === "archived") {
    const how = isFinished ? "finished" : `${count(trained)} of ${count(overview.total_steps)} steps`;
    return { kind: "record", text: `a record: ${how}`, isDead: false };
  }
  if (status?.problem) return { kind: "broken", text: "cannot go on", isDead: true };
  if (isFinished) return { kind: "finished", text: "finished", isDead: false };
  if (status?.is_paused) return { kind: "paused", text: "paused", isDead: true };
  if (status && !status.is_ready && !overview.ranks.length) return { kind: "starting", text: "starting", isDead: false };
  if (!overview.ranks.length) return { kind: "waiting", text: "waiting for a trainer", isDead: false };
  const quiet = (overview.quiet_s ?? 0) + age;
  if (overview.stall_s !== null && quiet > overview.stall_s) {
    return { kind: "stalled", text: `stalled for ${duration(quiet)}`, isDead: true };
  }
  return { kind: "training", text: "training", isDead: false };
}

export function trainedSteps({ ranks }) {
  return ranks.length ? Math.max(...ranks.map((rank) => rank.step)) + 1 : 0;
}

// Why no pivot can be asked for; empty if one can.
export function whyNoPivot({ kind }, { end, total_steps: total } = {}) {
  if (kind === "record") return "This is a record: nothing of it can be redrawn. Fork the run to go on otherwise.";
  if (kind === "finished") return "The run is finished: no step is left to redraw.";
  if (kind === "gone" || kind === "broken" || kind === "closed") return "Nothing can be redrawn while the run gives no answer.";
  return end >= total ? "Every step is decided: none is left to redraw." : "";
}

const icons = Object.fromEntries([...new Set(Object.values(ICONS))].map((name) => {
  const image = new Image();
  image.src = new URL(`icon-${name}.svg`, import.meta.url); // at hand when the server no longer is
  return [name, image];
}));

export function showVerdict(verdict, { name, step }) {
  const place = document.getElementById("state");
  place.dataset.kind = verdict.kind;
  document.getElementById("state-text").textContent = verdict.text;
  document.body.dataset.dead = String(verdict.isDead);
  const told = verdict.text[0].toUpperCase() + verdict.text.slice(1);
  document.title = [told, step === null ? "" : count(step), name, "Curriculum mixer"].filter(Boolean).join(" · ");
  const icon = document.querySelector("link[rel=icon]");
  const { src } = icons[ICONS[verdict.kind]];
  if (icon.href !== src) icon.href = src;
}
