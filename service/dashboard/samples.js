// What the model wrote: a line for each sample, and the text of the one that is chosen.

import { count, fillTable, make, number } from "./looks.js";
import { rove } from "./roving.js";

const SHOWN = 20;

export class SamplePanel {
  constructor({ onProblem }) {
    this.onProblem = onProblem;
    this.at = (id) => document.getElementById(id);
    this.clear();
    rove(this.at("sample-table"));
  }

  clear() {
    Object.assign(this, { samples: [], chosen: null, key: "" });
    this.show();
  }

  setApi(api) {
    this.api = api;
    this.clear();
    return this.read();
  }

  async read() {
    const api = this.api;
    if (!api) return;
    let found;
    try {
      found = await api.get("samples", { limit: SHOWN });
    } catch (error) {
      this.onProblem(error);
      return;
    }
    if (api !== this.api) return;
    this.samples = found.samples;
    this.show();
  }

  // The newest, unless another one was chosen, which stays while it is among those that are shown.
  show() {
    const chosen = this.samples.find((sample) => sample.step === this.chosen) ?? this.samples[0];
    this.at("sample-note").textContent = this.samples.length ? noteOf(this.samples[0]) : "No sample has come yet.";
    this.at("sample-title").textContent = chosen ? `After step ${count(chosen.step)}` : "";
    this.at("sample-title").hidden = !chosen;
    const box = this.at("sample-text");
    box.replaceChildren(...(chosen ? [make("span", { className: "prompt" }, chosen.prompt), chosen.text] : []));
    box.hidden = !chosen;
    const key = JSON.stringify([this.samples.map(({ step, score }) => [step, score]), chosen?.step]);
    if (key === this.key) return; // buttons keep the focus
    this.key = key;
    const isInside = this.at("sample-table").contains(document.activeElement);
    const columns = [["step"], ["coherence"], ["bigrams"], ["trigrams"], ["words"], ["characters"], ["compresses"], ["low in a row"]];
    fillTable(this.at("sample-table"), columns, this.samples.map((sample) => [
      this.button(sample, sample === chosen), ...[sample.score, sample.bigrams, sample.trigrams, sample.words, sample.characters].map(points),
      `${number(sample.compression, 1)}×`, sample.low_in_row ? make("span", { className: "behind" }, count(sample.low_in_row)) : "0",
    ]), "Samples, newest first");
    if (isInside) this.at("sample-table").querySelector("[aria-pressed=true]")?.focus();
  }

  button(sample, isChosen) {
    const button = make("button", {
      type: "button", className: "link", id: `sample-${sample.step}`, "aria-pressed": String(isChosen), title: `Read the sample of step ${count(sample.step)}`,
    }, count(sample.step));
    button.addEventListener("click", () => {
      this.chosen = sample.step;
      this.show();
    });
    return button;
  }
}

function points(value) {
  return value === null ? "–" : number(value, 1);
}

function noteOf(sample) {
  if (sample.score === null) return `The newest, after step ${count(sample.step)}, could not be scored yet.`;
  const low = sample.low_in_row ? ` Low in a row: ${count(sample.low_in_row)}.` : "";
  return `The newest, after step ${count(sample.step)}, has a coherence of ${number(sample.score, 1)} of 100.${low}`;
}
