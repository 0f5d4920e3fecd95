// The runs: which one is shown, and what an admin may do with it: pause it, let it go on, fork it, archive it.

import { Api } from "./api.js";
import { answered, asAdmin, confirmed, inWords, say } from "./dialogs.js";
import { count, make } from "./looks.js";

const PAUSE = "Ranks get no new batches and nothing is decided until the run is resumed; reports are still taken.";
const ARCHIVE = "It stops for ever: ranks get no more batches of it. Its journal stays in the server's folder.";

// The list to choose from. Archived runs are in it while they are asked for, and the one that is shown.
export class RunList {
  // onRead(runs): the list has come; onChosen(name): that one is to be shown, the default one if it is empty.
  constructor({ onRead, onChosen }) {
    Object.assign(this, { onRead, runs: [], chosen: "" });
    [this.select, this.button] = ["run", "run-archived"].map((id) => document.getElementById(id));
    this.select.addEventListener("change", () => onChosen(this.select.value));
    this.button.addEventListener("click", () => {
      this.button.setAttribute("aria-pressed", String(!this.hasArchived));
      this.fill();
    });
  }

  // As the list has it; null if that is not known.
  get shown() {
    return this.runs.find((run) => (this.chosen ? run.name === this.chosen : run.is_default)) ?? null;
  }

  get hasArchived() {
    return this.button.getAttribute("aria-pressed") === "true";
  }

  // chosen: as in the address, empty for the default run.
  async read(chosen) {
    this.chosen = chosen;
    try {
      this.runs = await new Api("").get("runs");
      this.onRead(this.runs);
    } catch {
      this.runs = []; // without the list the default run is shown; what is wrong is told by the other requests
    }
    this.fill();
  }

  fill() {
    const first = this.runs.find((run) => run.is_default)?.name ?? "default";
    const others = this.runs.filter((run) => !run.is_default);
    const named = (runs) => runs.map(({ name }) => make("option", { value: name }, name));
    const archived = others.filter((run) => run.status === "archived");
    const listed = archived.filter(({ name }) => this.hasArchived || name === this.chosen);
    const options = [make("option", { value: "" }, first), ...named(others.filter((run) => run.status !== "archived"))];
    if (listed.length) options.push(make("optgroup", { label: "Archived" }, ...named(listed)));
    if (this.chosen && !others.some(({ name }) => name === this.chosen)) options.push(...named([{ name: this.chosen }]));
    this.select.replaceChildren(...options);
    this.select.value = this.chosen;
    this.button.hidden = archived.length === 0;
    this.button.textContent = `Archived (${archived.length})`;
  }
}

export class RunControl {
  // onRuns(name): the runs have changed; show that one, the default one if it is empty.
  constructor({ onRuns, onDone, askToken }) {
    Object.assign(this, { onRuns, onDone, askToken, runs: [], name: "", isPaused: false, end: 0 });
    this.at = (id) => document.getElementById(id);
    for (const [id, action] of [["run-pause", () => this.pause()], ["run-fork", () => this.fork()], ["run-archive", () => this.archive()]]) {
      this.at(id).addEventListener("click", () => this.busy(action));
    }
    this.at("fork-form").addEventListener("submit", (event) => this.checkFork(event));
  }

  setRuns(runs) {
    this.runs = runs;
  }

  // chosen: as in the address, empty for the default run.
  show(chosen, status, { end }) {
    const isPaused = status?.is_paused ?? false;
    const run = this.runs.find(({ name, is_default: isDefault }) => (chosen ? name === chosen : isDefault));
    this.name = run?.name ?? chosen;
    this.isPaused = isPaused;
    this.end = end;
    this.at("run-name").textContent = this.name;
    const isArchived = run?.status === "archived";
    this.at("run-state").textContent = isArchived ? "archived" : isPaused ? "paused" : "going on";
    this.at("run-pause").disabled = isArchived;
    this.at("run-fork").disabled = isArchived && run.is_default; // a server of a record alone makes none
    this.at("run-pause").textContent = isPaused ? "Resume" : "Pause";
    this.at("run-archive").disabled = isArchived || (run?.is_default ?? true);
    this.at("run-archive-note").hidden = isArchived || !this.at("run-archive").disabled;
  }

  // One thing at a time, and what went wrong is said here.
  async busy(action) {
    if (this.isBusy) return;
    this.isBusy = true;
    try {
      await action();
    } catch (error) {
      this.sayProblem(error);
    } finally {
      this.isBusy = false;
    }
  }

  async pause() {
    const [name, action] = [this.name, this.isPaused ? "resume" : "pause"];
    if (action === "pause" && !(await confirmed(`Pause ${name}?`, PAUSE, "Pause"))) return;
    if (await this.post(name, action)) {
      this.say("good", `Run ${name} ${action === "pause" ? "is paused" : "goes on"}.`);
      this.onDone();
    }
  }

  async archive() {
    const name = this.name;
    if (!(await confirmed(`Archive ${name}?`, ARCHIVE, "Archive"))) return;
    if (await this.post(name, "archive")) {
      this.say("good", `Run ${name} is archived.`);
      this.onRuns("");
    }
  }

  async fork() {
    const parent = this.name;
    this.at("fork-title").textContent = `Fork ${parent}`;
    this.at("fork-step").placeholder = count(this.end);
    this.forkProblem("");
    if ((await answered(this.at("fork-dialog"), "no")) !== "yes") return;
    const [name, step] = [this.at("fork-name").value, this.at("fork-step").valueAsNumber];
    const body = Number.isNaN(step) ? { name } : { name, at_step: step };
    const made = await this.post(parent, "fork", body);
    if (!made) return;
    this.at("fork-name").value = this.at("fork-step").value = "";
    this.say("good", `Run ${name} shares the history of ${parent}, and is shown now.`);
    this.onRuns(name);
  }

  checkFork(event) {
    if (event.submitter?.value !== "yes" || this.at("fork-name").checkValidity()) return;
    event.preventDefault();
    this.forkProblem("Give the new run a name of letters, digits, dots, dashes and underscores.");
    this.at("fork-name").focus();
  }

  forkProblem(text) {
    this.at("fork-problem").textContent = text;
    this.at("fork-name").setAttribute("aria-invalid", String(text !== ""));
  }

  post(name, action, body = {}) {
    const onRefused = (error) => this.sayProblem(error);
    return asAdmin(() => new Api(name).post(action, body), { askToken: this.askToken, onRefused });
  }

  sayProblem(error) {
    const { text, hint } = inWords(error);
    this.say("bad", text, hint);
  }

  say(state, text, hint = "") {
    say(this.at("run-verdict"), state, text, hint);
  }
}
