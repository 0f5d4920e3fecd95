// Axes: where they end, what is written beside them, what is drawn smoothly.

import { compact } from "./looks.js";

export function ticks(low, high, most) {
  const raw = (high - low) / most;
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step || 0); // no -0
  return found;
}

// Powers of ten, and twos and fives where there are few of them; `low` and `high` are logarithms.
export function logTicks(low, high) {
  const factors = high - low < 2.5 ? [1, 2, 5] : [1];
  const powers = Array.from({ length: Math.floor(high) - Math.floor(low) + 1 }, (_, i) => Math.floor(low) + i);
  const found = powers.flatMap((power) => factors.map((factor) => factor * 10 ** power));
  return found.filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high);
}

export function logText(tick) {
  return tick >= 1e-3 && tick < 1e4 ? String(+tick.toPrecision(1)) : tick.toExponential(0);
}

export function tickText(tick, span) {
  if (Math.abs(tick) >= 1000) return compact(tick);
  if (tick !== 0 && span < 0.005) return (+tick.toPrecision(3)).toExponential();
  const digits = Math.min(Math.max(0, Math.ceil(1.2 - Math.log10(span || 1))), 6);
  return String(+tick.toFixed(digits));
}

export function lastKnown(row) {
  for (let k = row.length - 1; k >= 0; k--) if (row[k] !== null) return row[k];
  return null;
}

// The ends of an axis: from the smallest to the largest value with a little air, but for one wild value in a thousand,
// and for the few lines without which the rest would have more than twice the room. Gives their positions too.
export function rangeOf(rows, isLog) {
  const ends = rows.map((row) => endsOf(row, isLog)).map((pair, i) => pair && [...pair, i]).filter(Boolean);
  const outside = [];
  while (ends.length > 2 && outside.length < Math.max(1, Math.floor(rows.length / 4))) {
    const all = spanOf(ends);
    const spans = ends.map((_, i) => spanOf(ends.toSpliced(i, 1)));
    const i = spans.indexOf(Math.min(...spans));
    if (spans[i] > all / 2) break;
    outside.push(ends.splice(i, 1)[0][2]);
  }
  if (!ends.length) return { low: 0, high: 1, outside };
  const [low, high] = [Math.min(...ends.map(([least]) => least)), Math.max(...ends.map(([, most]) => most))];
  const air = (high - low || Math.abs(high) || 1) * 0.05;
  return { low: low - air, high: high + air, outside };
}

function spanOf(ends) {
  return Math.max(...ends.map(([, most]) => most)) - Math.min(...ends.map(([least]) => least));
}

function endsOf(row, isLog) {
  const values = known([row], isLog);
  if (!values.length) return null;
  const cut = Math.floor(values.length / 1000);
  const ends = [values[cut], values.at(-1 - cut)];
  return isLog ? ends.map(Math.log10) : ends;
}

// Means over `width` neighbours on both sides, of those known; what is unknown stays so.
export function smoothed(row, width) {
  return row.map((value, k) => {
    if (value === null) return null;
    const near = row.slice(Math.max(k - width, 0), k + width + 1).filter((other) => other !== null);
    return near.reduce((sum, other) => sum + other, 0) / near.length;
  });
}

// Places for labels near where they are wanted, at least `gap` apart, within [low, high]. [[want, ...]] in any order.
export function spread(wanted, gap, low, high) {
  const order = wanted.map((y, i) => [y, i]).sort((a, b) => a[0] - b[0]);
  let free = low;
  for (const each of order) {
    each[0] = Math.max(each[0], free);
    free = each[0] + gap;
  }
  let limit = high;
  for (const each of order.toReversed()) {
    each[0] = Math.min(each[0], limit);
    limit = each[0] - gap;
  }
  const places = Array(wanted.length);
  for (const [y, i] of order) places[i] = y;
  return places;
}

export function known(rows, isPositive) {
  return rows.flat().filter((value) => value !== null && (!isPositive || value > 0)).sort((a, b) => a - b);
}

// Whether a logarithmic axis says more: nothing is negative, and the largest would press half of the rest flat.
export function spansDecades(rows) {
  const values = known(rows, false);
  const positive = values.filter((value) => value > 0);
  if (positive.length < 20 || values.some((value) => value < 0)) return false;
  return positive.at(-1) > 20 * positive[Math.floor(positive.length / 2)];
}
