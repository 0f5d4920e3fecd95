// The columns of a walk as they grow: which points are asked for again, and how they join those that are there.

import { pointAt } from "./drawing.js";
import { trainedSteps } from "./verdict.js";

const OPEN_POINTS = 64; // the newest ones, asked for again as reports come

// The first point that reports may still change: of ranks that are far behind those before it stay as they are.
export function firstOpen({ steps }, settled) {
  return steps[Math.min(Math.max(pointAt(steps, settled ?? 0) - 1, steps.length - OPEN_POINTS, 0), steps.length - 1)];
}

// The first step that some rank has still to report, of those that decisions wait for; null if none has.
export function settledStep({ overview, status }) {
  if (!overview || !status || trainedSteps(overview) >= overview.total_steps) return null;
  const absent = new Set(status.ranks.filter((rank) => rank.is_absent).map((rank) => rank.rank));
  const steps = overview.ranks.filter(({ rank }) => !absent.has(rank)).map(({ step }) => step);
  return steps.length ? Math.min(...steps) + 1 : null;
}

export function joined(old, tail) {
  const kept = pointAt(old.steps, tail.steps[0]);
  const glue = (before, after) => [...before.slice(0, kept), ...after];
  const columns = ["weights", "proportions", "losses", "index", "width"].map((name) =>
    [name, old[name].map((row, i) => glue(row, tail[name][i]))]);
  return { ...tail, ...Object.fromEntries(columns), steps: glue(old.steps, tail.steps), num_random: glue(old.num_random, tail.num_random), loss: glue(old.loss, tail.loss) };
}
