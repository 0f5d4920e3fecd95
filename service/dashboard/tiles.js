// The tiles on top: step, phase, regime, throughput, ranks and alarms, each with the time where it has one.

import { clock, compact, count, duration } from "./looks.js";
import { trainedSteps } from "./verdict.js";

const at = (id) => document.getElementById(id);

export function showTiles(overview, { isRecord }) {
  const { phase } = overview;
  showPace(overview, isRecord);
  const trained = trainedSteps(overview);
  at("tile-step").textContent = `${count(trained)} of ${count(overview.total_steps)}`;
  at("tile-progress").max = overview.total_steps;
  at("tile-progress").value = Math.min(trained, overview.total_steps);
  at("tile-phase").textContent = phase ? `${count(phase.index)}, ${phase.kind}` : "none yet";
  at("tile-phase-more").textContent = phase ? `steps ${count(phase.start)}–${count(phase.start + phase.length - 1)}${since(phase.at, ", decided")}` : "";
  const regime = overview.regimes.findLast(({ start }) => start <= Math.max(overview.end - 1, 0)) ?? overview.regimes[0];
  at("tile-regime").textContent = phase?.regime ?? regime.name;
  const next = overview.regimes.find(({ start }) => start >= overview.end && start > 0);
  at("tile-regime-more").textContent = [since(regime.at, "since "), next ? `then ${next.name} at ${count(next.start)}` : ""].filter(Boolean).join(", ");
  at("tile-ranks").textContent = count(overview.ranks.length);
  const most = Math.max(0, ...overview.ranks.map((rank) => rank.lag));
  at("tile-ranks-more").textContent = most ? `up to ${count(most)} ${most === 1 ? "step" : "steps"} behind` : "";
  const newest = overview.alarms[0];
  const lasting = new Set(overview.alarms.filter((alarm) => alarm.is_lasting).map((alarm) => alarm.source));
  at("tile-alarms").textContent = lasting.size ? `${count(overview.num_alarms)}, ${count(lasting.size)} lasting` : count(overview.num_alarms);
  at("tile-alarms").className = lasting.size ? "alarming" : "";
  at("tile-alarms-more").textContent = newest ? `${newest.source} at step ${count(newest.step)}${since(newest.at, ", ")}` : "";
}

export function clearTiles() {
  for (const tile of document.querySelectorAll(".tiles dd[id]")) tile.textContent = tile.classList.contains("more") ? "" : "–";
  at("tile-progress").value = 0;
  at("tile-alarms").className = "";
}

function since(time, before) {
  return time === null || time === undefined ? "" : `${before} ${clock(time)}`.replace("  ", " ");
}

function showPace(overview, isRecord) {
  const { steps_per_s: pace, total_steps: total, batch_tokens: tokens, ranks: reporting } = overview;
  const left = total - Math.max(-1, ...reporting.map((rank) => rank.step)) - 1;
  at("tile-pace").textContent = pace === null ? "–" : pace === 0 ? "idle" : `${compact(pace * tokens)} tokens/s`;
  at("tile-pace-more").textContent = pace === null ? (isRecord ? "a record has none" : "not known yet")
    : pace === 0 ? (left > 0 ? "no new step in the last minute" : "all steps are done")
      : `${compact(pace)} steps/s${left > 0 ? `, ${duration(left / pace)} left` : ""}`;
}
