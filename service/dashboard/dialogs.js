// Asking before something is done that an admin alone may do.

import { make } from "./looks.js";

// Resolves to whether it is wanted. The answer that changes nothing has the focus.
export function confirmed(title, text, yes) {
  const dialog = document.getElementById("confirm-dialog");
  document.getElementById("confirm-title").textContent = title;
  document.getElementById("confirm-text").textContent = text;
  dialog.querySelector("button[value=yes]").textContent = yes;
  return answered(dialog, "no").then((answer) => answer === "yes");
}

// Shows a dialog and resolves to the value of the button that closed it; Escape gives `otherwise`.
export function answered(dialog, otherwise) {
  dialog.returnValue = otherwise;
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

// Sends, and asks for a token where the one given does not reach; resolves to the answer, or null if none was given.
export async function asAdmin(send, { askToken, onRefused }) {
  for (;;) {
    try {
      return await send();
    } catch (error) {
      if (error.status !== 401 && error.status !== 403) throw error;
      onRefused(error);
      if (!(await askToken())) return null;
    }
  }
}

// What went wrong, for the person who reads it: what happened, and apart from it what to do.
export function inWords(error) {
  if (error.status === 403) return { text: "This token may look, not change.", hint: "Give a token with the scope admin, or ask somebody who has one." };
  if (error.status === 401) return { text: "The server wants a token.", hint: "Whoever runs it makes one with: mixer token create NAME --scope read" };
  return { text: error.message, hint: error.hint ?? "" };
}

// Puts a message into its place, the hint apart; the same one is not said twice.
export function say(place, state, text, hint = "") {
  place.dataset.state = state;
  if (place.dataset.said === text + hint && place.textContent) return;
  place.dataset.said = text + hint;
  place.replaceChildren(text, ...(hint ? [make("span", { className: "hint" }, hint)] : []));
}
