// The walk in its region: sources at the corners of a polygon, mixtures at their weighted mean.

import { colourOf, count, fitted, inks, number, prepare } from "./looks.js";

const MAX_LABELS = 30;

export class Paper {
  constructor(canvas, { note = null, hasWalk = true } = {}) {
    Object.assign(this, { canvas, note, hasWalk, data: null, preview: null, cursor: null });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(data) {
    this.data = data;
    if (this.note) {
      this.note.textContent = data.is_exact
        ? "Each corner is a mixture of one source alone."
        : "A shadow of the region: several mixtures share a point, but no mixture of it lies outside the outline.";
    }
    this.describe();
    this.draw();
  }

  clear() {
    this.data = this.preview = this.cursor = null;
    if (this.note) this.note.textContent = "";
    this.draw();
  }

  setPreview(preview) {
    this.preview = preview?.is_feasible ? preview : null;
    this.describe();
    this.draw();
  }

  setCursor(step) {
    this.cursor = step;
    this.draw();
  }

  describe() {
    if (!this.data) return;
    const regime = this.data.regimes[this.regimeAt(this.data.steps.at(-1) ?? 0)];
    const landing = this.preview ? `in the pivot previewed the walk moves by ${number(this.preview.distance)}` : "nothing is previewed";
    this.canvas.setAttribute("aria-label", this.hasWalk
      ? `The walk in its region: ${count(this.data.steps.length)} phases drawn, regime ${regime.name}. Weights and bounds are in the table of sources.`
      : `The region of ${regime.name} and the one that the bounds in the form would draw: ${landing}.`);
  }

  regimeAt(step) {
    return Math.max(this.data.regimes.findLastIndex((regime) => regime.start <= step), 0);
  }

  at([x, y]) {
    return [this.middleX + x * this.scale, this.middleY - y * this.scale];
  }

  draw() {
    const { context, width, height } = prepare(this.canvas);
    if (!this.data || !width) return;
    const ink = inks();
    Object.assign(this, { context, ink });
    const isTriangle = this.data.corners.length === 3;
    const widest = Math.max(...this.data.names.map((name) => context.measureText(name).width));
    const room = this.data.names.length > MAX_LABELS ? 12 : Math.min(Math.max(widest + 14, 46), width * 0.19);
    this.scale = Math.max(Math.min((width - 2 * room) / (isTriangle ? 1.75 : 2), (height - 52) / (isTriangle ? 1.5 : 2)), 10);
    this.middleX = width / 2;
    this.middleY = isTriangle ? 26 + this.scale : height / 2;
    this.frame(width);
    this.regions();
    if (this.hasWalk) this.walk();
    else if (this.data.points.length) this.spot(this.data.points.at(-1), ink.accent, 5.5);
    if (this.preview) this.drawPreview();
  }

  path(points, isClosed = true) {
    this.context.beginPath();
    for (const point of points) this.context.lineTo(...this.at(point));
    if (isClosed) this.context.closePath();
  }

  frame(width) {
    const { context, ink, data } = this;
    context.lineWidth = 1;
    context.strokeStyle = ink.line;
    this.path(data.corners);
    context.stroke();
    if (data.corners.length === 3) this.gridLines();
    if (data.names.length > MAX_LABELS) return;
    context.textBaseline = "middle";
    data.corners.forEach(([x, y], i) => {
      const [left, top] = this.at([x, y]);
      context.fillStyle = colourOf(i);
      context.beginPath();
      context.arc(left, top, 4, 0, 7);
      context.fill();
      context.fillStyle = ink.soft;
      context.textAlign = Math.abs(x) < 0.3 ? "center" : x > 0 ? "left" : "right";
      const side = Math.abs(x) < 0.3 ? 0 : Math.sign(x) * 8;
      const space = x > 0.3 ? width - left - 10 : x < -0.3 ? left - 10 : width / 2;
      const isBelow = data.corners.length === 3 && y < 0;
      if (isBelow) context.textAlign = x > 0 ? "right" : "left";
      const name = isBelow ? fitted(context, data.names[i], this.scale * 0.85) : fitted(context, data.names[i], space);
      context.fillText(name, isBelow ? left - Math.sign(x) * -8 : left + side, top + (Math.abs(x) < 0.3 ? -Math.sign(y || 1) * 13 : isBelow ? 14 : 0));
    });
  }

  // Weights of 0.2, 0.4, ... of each source: only with three sources are these straight lines.
  gridLines() {
    const { context, data, ink } = this;
    context.strokeStyle = ink.faint;
    const [a, b, c] = data.corners;
    const mix = (p, q, share) => [p[0] + (q[0] - p[0]) * share, p[1] + (q[1] - p[1]) * share];
    for (const share of [0.2, 0.4, 0.6, 0.8]) {
      for (const [p, q, r] of [[a, b, c], [b, c, a], [c, a, b]]) {
        this.path([mix(p, q, share), mix(p, r, share)], false);
        context.stroke();
      }
    }
  }

  regions() {
    const { context, ink, data } = this;
    const now = this.regimeAt(data.steps.at(-1) ?? 0);
    data.regimes.forEach((regime, i) => {
      if (i === now || !this.hasWalk) return;
      context.strokeStyle = ink.soft;
      context.setLineDash([3, 3]);
      this.path(regime.outline);
      context.stroke();
      context.setLineDash([]);
    });
    context.globalAlpha = 0.45;
    context.fillStyle = ink.room;
    this.path(data.regimes[now].outline);
    context.fill();
    context.globalAlpha = 1;
    context.strokeStyle = ink.accent;
    context.lineWidth = 1.5;
    context.stroke();
  }

  walk() {
    const { context, ink, data } = this;
    const { points, kinds, steps } = data;
    if (!points.length) return;
    context.strokeStyle = ink.soft;
    context.lineWidth = 1;
    for (let k = 1; k < points.length; k++) {
      context.globalAlpha = 0.1 + 0.6 * (k / points.length) ** 2;
      this.path([points[k - 1], points[k]], false);
      context.stroke();
    }
    points.forEach((point, k) => {
      context.globalAlpha = 0.25 + 0.7 * (k / points.length);
      const [x, y] = this.at(point);
      if (kinds[k] === "random") {
        context.strokeStyle = ink.warn;
        context.lineWidth = 1.4;
        context.beginPath();
        for (const [dx, dy] of [[0, -4], [4, 0], [0, 4], [-4, 0]]) context.lineTo(x + dx, y + dy);
        context.closePath();
        context.stroke();
      } else {
        context.fillStyle = ink.soft;
        context.beginPath();
        context.arc(x, y, 2, 0, 7);
        context.fill();
      }
    });
    context.globalAlpha = 1;
    this.spot(points.at(-1), ink.accent, 5.5);
    if (this.cursor !== null && steps[0] <= this.cursor) {
      this.spot(points[Math.max(steps.findLastIndex((step) => step <= this.cursor), 0)], null, 7);
    }
  }

  spot(point, fill, radius) {
    const { context, ink } = this;
    context.beginPath();
    context.arc(...this.at(point), radius, 0, 7);
    if (fill) {
      context.fillStyle = fill;
      context.fill();
    }
    context.strokeStyle = ink.ink;
    context.lineWidth = 1.5;
    context.stroke();
  }

  drawPreview() {
    const { context, ink, preview } = this;
    context.strokeStyle = ink.bad;
    context.lineWidth = 2;
    context.setLineDash([6, 4]);
    this.path(preview.outline);
    context.stroke();
    context.setLineDash([]);
    this.path([preview.before_point, preview.landed_point], false);
    context.stroke();
    this.spot(preview.landed_point, ink.bad, 5);
  }
}
