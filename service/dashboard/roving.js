// One Tab stop for a group of buttons or links: the arrow keys go from one to the next, Home and End to the ends.

export function rove(group, selector = "button, a, select, input") {
  let current = "";
  const items = () => [...group.querySelectorAll(selector)].filter((item) => !item.disabled && !item.closest("[hidden]"));
  const keyOf = (item) => item.id || item.title || item.textContent;

  const settle = () => {
    const all = items();
    const chosen = all.find((item) => keyOf(item) === current) ?? all[0];
    for (const item of all) if (item.tabIndex !== (item === chosen ? 0 : -1)) item.tabIndex = item === chosen ? 0 : -1;
  };

  group.addEventListener("focusin", (event) => {
    const item = event.target.closest(selector);
    if (!item) return;
    current = keyOf(item);
    settle();
  });
  group.addEventListener("keydown", (event) => {
    const all = items();
    const at = all.indexOf(event.target.closest(selector));
    if (at < 0 || event.target.matches("select, input")) return;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    all[(to + all.length) % all.length].focus();
  });
  new MutationObserver(settle).observe(group, { childList: true, subtree: true, attributeFilter: ["disabled", "hidden"] });
  settle();
}
