/* Keeps a part of a page fresh: asks for it again and again and changes in place only what differs.
 *
 *   <div data-live="/address/of/the/same/html/" data-live-seconds="5">…</div>
 *
 * Keyboard focus, selection, scrolling and opened <details> stay as they are. Nothing is asked while the tab is hidden.
 * Optional, anywhere in the page: [data-live-pause], a button; [data-live-trouble], where it is said that the page is
 * not fresh; [data-live-as-of], inside the part, when it was read.
 */

const PATIENCE = 15_000;
const SLOWEST = 60_000;

const LOGGED_OUT = "You have been logged out.";
const FORBIDDEN = "You may not see this any more.";

function keep(part) {
  const pause = document.querySelector("[data-live-pause]");
  const trouble = document.querySelector("[data-live-trouble]");
  const pace = Number(part.dataset.liveSeconds || 5) * 1000;
  let timer, asking, wait = pace, paused = false, over = false;

  async function refresh() {
    clearTimeout(timer);
    if (document.hidden || paused || over || asking) return;
    asking = new AbortController();
    const patience = setTimeout(() => asking.abort(), PATIENCE);
    try {
      // A redirect leads to the login page, which must not end up inside this one.
      const answer = await fetch(part.dataset.live, { signal: asking.signal, redirect: "manual", cache: "no-store" });
      if (answer.type === "opaqueredirect") return end(LOGGED_OUT);
      if (answer.status === 403) return end(FORBIDDEN);
      if (!answer.ok) throw new Error(`the control plane answers ${answer.status}`);
      const fresh = document.createElement("template");
      fresh.innerHTML = await answer.text();
      if (paused) return;
      const focused = document.activeElement;
      morph(part, fresh.content);
      // A browser takes the focus from whatever is moved.
      if (focused !== document.activeElement && part.contains(focused)) focused.focus({ preventScroll: true });
      wait = pace;
      say("");
    } catch (error) {
      const why = error instanceof TypeError || error.name === "AbortError" ? "the control plane does not answer" : error.message;
      say(`Not fresh: ${why}. This is as of ${asOf()}; trying again.`);
      wait = Math.min(SLOWEST, wait * 2);
    } finally {
      clearTimeout(patience);
      asking = undefined;
      if (!over) timer = setTimeout(refresh, wait);
    }
  }

  function end(why) {
    over = true;
    say(`${why} This is as of ${asOf()}.`);
    const again = document.createElement("a");
    again.href = location.href;
    again.textContent = "Load the page again";
    trouble?.append(" ", again);
  }

  function asOf() {
    return part.querySelector("[data-live-as-of]")?.textContent ?? "an earlier moment";
  }

  function say(text) {
    part.toggleAttribute("data-live-stale", Boolean(text));
    // Said once, not with every attempt: it is read out to those who cannot see it.
    if (trouble && trouble.textContent !== text) trouble.textContent = text;
  }

  if (pause) {
    pause.hidden = false;
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
      if (paused) clearTimeout(timer);
      else refresh();
    });
    pause.setAttribute("aria-pressed", "false");
  }
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  timer = setTimeout(refresh, pace);
}

/* Make the children of `old` like those of `fresh`. Elements with an id keep their identity wherever they move. */
function morph(old, fresh) {
  const wanted = new Set([...fresh.children].map((child) => child.id).filter(Boolean));
  for (const child of [...old.children]) if (child.id && !wanted.has(child.id)) child.remove();
  let here = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const kept = (child.id && [...old.children].find((own) => own.id === child.id)) || here;
    if (kept && alike(kept, child)) {
      if (kept !== here) old.insertBefore(kept, here);
      else here = here.nextSibling;
      change(kept, child);
    } else {
      old.insertBefore(child, here);
    }
  }
  while (here) {
    const next = here.nextSibling;
    here.remove();
    here = next;
  }
}

function alike(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName && (one.id || "") === (other.id || "");
}

function change(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) {
    // Whoever opened it wants it open.
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  morph(old, fresh);
}

document.querySelectorAll("[data-live]").forEach(keep);
