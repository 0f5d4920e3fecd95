// What an admin may do with a run: pause it, let it go on, fork it, archive it.

import { Api } from "./api.js";
import { answered, asAdmin, confirmed } from "./dialogs.js";
import { count } from "./looks.js";

const PAUSE = "Ranks get no new batches and nothing is decided until the run is resumed; reports are still taken.";
const ARCHIVE = "It stops for ever: ranks get no more batches of it. Its journal stays in the server's folder.";

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
  show(chosen, { is_paused: isPaused }, { end }) {
    const run = this.runs.find(({ name, is_default: isDefault }) => (chosen ? name === chosen : isDefault));
    this.name = run?.name ?? chosen;
    this.isPaused = isPaused;
    this.end = end;
    this.at("run-name").textContent = this.name;
    this.at("run-state").textContent = isPaused ? "paused" : "going on";
    this.at("run-pause").textContent = isPaused ? "Resume" : "Pause";
    this.at("run-archive").disabled = run?.is_default ?? true;
    this.at("run-archive-note").hidden = !this.at("run-archive").disabled;
  }

  // One thing at a time, and what went wrong is said here.
  async busy(action) {
    if (this.isBusy) return;
    this.isBusy = true;
    try {
      await action();
    } catch (error) {
      this.say("bad", `${error.message} ${error.hint ?? ""}`);
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
    const onRefused = (error) => this.say("bad", `${error.message} ${error.hint}`);
    return asAdmin(() => new Api(name).post(action, body), { askToken: this.askToken, onRefused });
  }

  say(state, text) {
    Object.assign(this.at("run-verdict").dataset, { state });
    this.at("run-verdict").textContent = text;
  }
}
