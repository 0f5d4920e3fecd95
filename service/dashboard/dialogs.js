// Asking before something is done that an admin alone may do.

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
