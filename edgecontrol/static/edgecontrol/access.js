/* What unfold 0.91 keeps from the keyboard and from screen readers: its clickable spans, divs and links without an
 * address become buttons that say whether they are open, and its page has a main part.
 */
document.addEventListener("alpine:initialized", () => {
  document.getElementById("nav-sidebar-inner")?.setAttribute("aria-label", "Pages");
  (document.getElementById("main") ?? document.getElementById("page"))?.setAttribute("role", "main");

  // By the icon, which is their whole text.
  const NAMES = {
    add: "Add",
    arrow_back: "Back",
    dock_to_right: "Navigation",
    hub: "EdgeControl",
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
    const text = element.textContent.trim();
    const name = element.title || NAMES[text];
    // What has neither is the dark part beside a sheet: the keyboard has Escape for it.
    if (element.hasAttribute("tabindex") || !(text || name)) return;
    element.setAttribute("role", "button");
    element.setAttribute("tabindex", "0");
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

  // The sheet of filters stands behind the whole list in the page: the focus goes there, and back when it closes.
  const sheet = document.getElementById("changelist-filter");
  if (sheet) {
    let opener;
    Alpine.effect(() => {
      if (Alpine.evaluate(sheet, "filterOpen")) {
        opener = document.activeElement;
        setTimeout(() => sheet.querySelector("input, select, a[href], button")?.focus(), 50);
      } else {
        opener?.focus();
        opener = undefined;
      }
    });
  }

  // An icon is a word in a font of pictures: not to be read out, unless it is all that its button says.
  function silence(icon) {
    const owner = icon.closest("a, button, [role=button]");
    const word = icon.textContent.trim();
    if (icon === owner) return;
    if (owner && owner.textContent.trim() === word && !owner.title && !owner.ariaLabel) {
      if (!NAMES[word]) return;
      owner.setAttribute("aria-label", NAMES[word]);
    }
    icon.setAttribute("aria-hidden", "true");
  }

  function all() {
    // Simplebar calls every part of a page that scrolls by the same name.
    document.querySelector("#nav-sidebar-apps .simplebar-content-wrapper")?.setAttribute("aria-label", "List of pages");
    document.querySelectorAll(MOUSE_ONLY).forEach(equip);
    document.querySelectorAll(".material-symbols-outlined:not([aria-hidden])").forEach(silence);
  }
  all();
  new MutationObserver(all).observe(document.body, { childList: true, subtree: true });
});
