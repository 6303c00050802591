/* What unfold 0.91 leaves to the mouse alone: it clicks on spans, divs and links without an address.
 * Each of them becomes a button for the keyboard and for screen readers, which hear whether it is open.
 */
document.addEventListener("alpine:initialized", () => {
  // By the icon, which is their whole text.
  const NAMES = {
    dock_to_right: "Navigation",
    close: "Close",
    unfold_more: "My account",
    light_mode: "Colours",
    dark_mode: "Colours",
    computer: "Colours",
    filter_list: "Filter",
    more_horiz: "More",
    more_vert: "More",
  };
  const MOUSE_ONLY = ":is(span, div, a:not([href]), h2, h3)[x-on\\:click]";

  function equip(element) {
    if (element.hasAttribute("tabindex") || element.closest("[aria-hidden=true]")) return;
    element.setAttribute("role", "button");
    element.setAttribute("tabindex", "0");
    const text = element.textContent.trim();
    const name = element.title || NAMES[text];
    if (name) element.setAttribute("aria-label", name);
    const [, state] = /^\s*(\w+) = !\1\b/.exec(element.getAttribute("x-on:click")) ?? [];
    if (state) {
      Alpine.effect(() => element.setAttribute("aria-expanded", String(Boolean(Alpine.evaluate(element, state)))));
    }
    element.addEventListener("keydown", (event) => {
      if (event.target !== element || (event.key !== "Enter" && event.key !== " ")) return;
      event.preventDefault();
      element.click();
    });
  }

  const all = () => document.querySelectorAll(MOUSE_ONLY).forEach(equip);
  all();
  new MutationObserver(all).observe(document.body, { childList: true, subtree: true });
});
