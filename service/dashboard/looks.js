// Colours and numbers, said once for every part of the page.

// The first eight keep 3:1 against both papers and stay apart for the colour-blind; later ones walk by the golden angle.
const PALETTE = {
  light: ["#2a78d6", "#d9660a", "#0f8f6c", "#b5479d", "#857400", "#5b55c9", "#d03b3b", "#37839a"],
  dark: ["#4f9cf0", "#f0903d", "#35c79f", "#e07fc8", "#cdb92f", "#9d97f5", "#f27979", "#63bdd6"],
};

export function theme() {
  return document.documentElement.dataset.theme;
}

export function colourOf(position) {
  const palette = PALETTE[theme()];
  if (position < 0) return theme() === "dark" ? "#77808d" : "#8b93a0"; // the others, added up
  if (position < palette.length) return palette[position];
  const lightness = (theme() === "dark" ? [0.78, 0.66] : [0.6, 0.48])[position % 2];
  return `oklch(${lightness} 0.12 ${Math.round((position * 137.508) % 360)})`;
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

export function swatch(colour) {
  const mark = make("span", { className: "swatch", "aria-hidden": "true" });
  mark.style.background = colour;
  return mark;
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
