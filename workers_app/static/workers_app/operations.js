// The menus and dialogs of operations. Without this file every operation is a link to a page with the same form.

const HEADERS = { "X-Dialog": "1" };

// -- menus: the browser opens and closes them (popover); here they are placed, and answer to the arrow keys.

function place(menu) {
  const button = document.querySelector(`[popovertarget="${menu.id}"]`);
  const at = button.getBoundingClientRect();
  const below = window.innerHeight - at.bottom;
  const up = below < menu.offsetHeight + 8 && at.top > below;
  menu.style.left = `${Math.max(8, Math.min(at.right, window.innerWidth - 8) - menu.offsetWidth)}px`;
  menu.style.top = up ? `${Math.max(8, at.top - menu.offsetHeight - 4)}px` : `${at.bottom + 4}px`;
}

// These events do not bubble, but they can be captured.
document.addEventListener("toggle", (event) => {
  if (event.target.matches?.(".ec-menu") && event.newState === "open") {
    place(event.target);
    event.target.querySelector("a")?.focus({ preventScroll: true });
  }
}, true);

document.addEventListener("scroll", (event) => {
  const menu = document.querySelector(".ec-menu:popover-open");
  if (menu && !menu.contains(event.target)) menu.hidePopover();
}, true);

document.addEventListener("keydown", (event) => {
  const menu = event.target.closest?.(".ec-menu");
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!menu || !step) return;
  event.preventDefault();
  const items = [...menu.querySelectorAll("a")];
  items[(items.indexOf(event.target) + step + items.length) % items.length].focus();
});

// -- dialogs

let dialog;

function opened() {
  if (!dialog) {
    dialog = document.createElement("dialog");
    dialog.className = "ec-dialog";
    dialog.setAttribute("aria-labelledby", "ec-dialog-title");
    dialog.addEventListener("click", (event) => {
      if (event.target.closest("[data-close]")) dialog.close();
    });
    dialog.addEventListener("submit", send);
    document.body.append(dialog);
  }
  if (!dialog.open) dialog.showModal();
  return dialog;
}

function show(html) {
  opened().innerHTML = html;
  const fields = "input:not([type=hidden]), textarea, select";
  const first = dialog.querySelector(`.errors :is(${fields})`) ?? dialog.querySelector(fields) ?? dialog.querySelector("[type=submit]");
  first?.focus();
}

function fail(text) {
  const note = document.createElement("p");
  note.className = "ec-failure";
  note.setAttribute("role", "alert");
  note.textContent = text;
  const form = opened().querySelector("form");
  dialog.querySelector(".ec-failure")?.remove();
  if (form) {
    form.prepend(note);
    return;
  }
  const close = document.createElement("button");
  close.className = "ec-menu-button ec-labelled";
  close.dataset.close = "";
  close.textContent = "Close";
  dialog.replaceChildren(note, close);
}

function go(url) {
  const wanted = new URL(url, location.href);
  if (wanted.pathname + wanted.search === location.pathname + location.search) location.reload();
  else location.assign(wanted);
}

async function receive(request) {
  try {
    const answer = await request;
    // Sent to the login page: the page itself must go there, and come back.
    if (answer.redirected) location.reload();
    else if (answer.headers.get("Content-Type")?.startsWith("application/json")) go((await answer.json()).go);
    else if (answer.ok) show(await answer.text());
    else if (answer.status === 403) fail("You may not do this, or this page is too old. Reload it and try again.");
    else fail(`The control plane answered with an error (${answer.status}). Nothing may have been done; reload the page to see.`);
  } catch {
    fail("The control plane cannot be reached. Nothing may have been done; try again.");
  }
}

function send(event) {
  event.preventDefault();
  const form = event.target;
  const button = form.querySelector("[type=submit]");
  if (button.disabled) return;
  const body = new URLSearchParams(new FormData(form));
  button.disabled = true;
  receive(fetch(form.getAttribute("action"), { method: "POST", body, headers: HEADERS })).finally(() => { button.disabled = false; });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-operation]");
  // With a modifier key it is an ordinary link to the operation's page.
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  link.closest(".ec-menu")?.hidePopover();
  receive(fetch(link.href, { headers: HEADERS }));
});
