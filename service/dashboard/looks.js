// Colours and numbers, said once for every part of the page.

import { DASHES, OTHERS, PALETTE } from "./palette.js"; // mixer/palette.py, as a module

export function theme() {
  return document.documentElement.dataset.theme;
}

// Of a source by its declared position, the same on every page and plot; below 0: the others, added up.
export function colourOf(position) {
  return position < 0 ? OTHERS[theme()] : PALETTE[theme()][position % PALETTE[theme()].length];
}

// Sources beyond the palette have its colours again, and lines of another kind.
export function dashOf(position) {
  return position < 0 ? [] : DASHES[Math.floor(position / PALETTE.light.length) % DASHES.length];
}

// The page's own colours, as canvas needs them.
export function inks() {
  const style = getComputedStyle(document.documentElement);
  const names = ["paper", "card", "ink", "soft", "line", "faint", "accent", "good", "warn", "bad", "room"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const count = (value) => whole.format(value);
export const compact = (value) => (Math.abs(value) < 1000 ? String(+value.toPrecision(3)) : short.format(value));

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 10 ** -digits || Math.abs(value) >= 1e6)) return value.toExponential(1);
  return value.toFixed(digits);
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86_400).toFixed(1)} days`;
}

// An element with properties, attributes (`aria-label`, `data-x`) and children.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "scope" || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function swatch(position) {
  const mark = make("span", { className: dashOf(position).length ? "swatch dashed" : "swatch", "aria-hidden": "true" });
  mark.style.setProperty("--colour", colourOf(position));
  return mark;
}

const ofDay = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const ofYear = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

// The time on this device's clock, with the day unless it is today; `at` in seconds since 1970.
export function clock(at) {
  if (at === null || at === undefined) return "";
  const date = new Date(at * 1000);
  return (date.toDateString() === new Date().toDateString() ? ofDay : ofYear).format(date);
}

export function timeOf(at) {
  if (at === null || at === undefined) return "–";
  return make("time", { dateTime: new Date(at * 1000).toISOString(), title: new Date(at * 1000).toString() }, clock(at));
}

// A small line without axes, [points], null where nothing is known; as tall as its own range.
export function sparkline(values, position, name) {
  const known = values.map((value, k) => [k, value]).filter(([, value]) => value !== null && value !== undefined);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 72 18", class: "spark", role: "img", "aria-label": name })) svg.setAttribute(key, value);
  if (!known.length) return svg;
  const numbers = known.map(([, value]) => value);
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const x = (k) => 1 + (70 * k) / Math.max(values.length - 1, 1);
  const y = (value) => (high > low ? 16 - (14 * (value - low)) / (high - low) : 9);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", known.map(([k, value]) => `${x(k).toFixed(1)},${y(value).toFixed(1)}`).join(" "));
  line.setAttribute("stroke", colourOf(position));
  svg.append(line);
  return svg;
}

// Fills a table: `columns` are [title, class]; a row's first cell is its heading.
export function fillTable(table, columns, rows, caption = "") {
  const head = make("thead", {}, make("tr", {}, ...columns.map(([title, kind]) =>
    make("th", { scope: "col", className: kind ?? "" }, title))));
  const body = make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((cell, i) => {
    const kind = columns[i][1] ?? "";
    return i === 0 ? make("th", { scope: "row", className: kind }, cell) : make("td", { className: kind }, cell);
  }))));
  if (!rows.length) {
    body.append(make("tr", {}, make("td", { colSpan: columns.length, className: "text note" }, "Nothing yet.")));
  }
  table.replaceChildren(...(caption ? [make("caption", { className: "hidden-text" }, caption)] : []), head, body);
}

// Sets up a canvas for sharp lines on this screen; gives its context and its size in CSS pixels.
export function prepare(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "11.5px system-ui, sans-serif";
  return { context, width, height };
}

export function debounced(milliseconds, action) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...args), milliseconds);
  };
}

// The text, or as much of it as the space has room for.
export function fitted(context, text, space) {
  if (context.measureText(text).width <= space) return text;
  let kept = text;
  while (kept.length > 1 && context.measureText(`${kept}…`).width > space) kept = kept.slice(0, -1);
  return `${kept}…`;
}
