/* Shows a log and goes on with it while it grows. The log comes from the edge and may hold anything: whatever is shown
 * of it is a text node, never HTML.
 *
 * `held` is the part of the log that the page has: bytes `held.from` to `held.end`, as lines in blocks. Only blocks that
 * are looked at are drawn anew when the search or the form changes.
 */

const page = document.querySelector("[data-log-page]");
const part = (name) => page.querySelector(`[data-log-${name}]`);
const view = page.querySelector("[data-log]");
const [lines, earlier, status, extent, note] = ["lines", "earlier", "status", "extent", "note"].map(part);
const input = page.querySelector("#log-search");

const PART = Number(page.dataset.partBytes);
const STEP = Number(page.dataset.stepBytes);
const MOST = Number(page.dataset.pageBytes);
const ATTEMPT = Number(page.dataset.attempt);
const FASTEST = 1000;
const SLOWEST = 5000;
const PATIENCE = 20_000;
const LINES_OF_BLOCK = 200;
//: A line of more bytes is shown in pieces, so that one that never ends is not put together for ever.
const LONGEST_LINE = 1024 * 1024;
const MOST_MARKS_OF_LINE = 1000;
const FINAL = ["success", "failed", "refused", "lost", "revoked"];

// -- what came, as lines ------------------------------------------------------------

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const NEWLINE = 10;

/* The lines of `bytes`, and the bytes after the last line's end. A character never spans lines, so each is whole. */
function split(bytes) {
  const found = [];
  let begin = 0;
  for (let at = bytes.indexOf(NEWLINE); at >= 0; at = bytes.indexOf(NEWLINE, begin)) {
    found.push({ text: decoder.decode(bytes.subarray(begin, at)), bytes: at + 1 - begin });
    begin = at + 1;
  }
  return [found, bytes.subarray(begin)];
}

/* The last place at or before `at` where a character begins, within UTF-8's four bytes. */
function characterBorder(bytes, at) {
  for (let border = at; border > Math.max(0, at - 4); border--) if ((bytes[border] & 0xc0) !== 0x80) return border;
  return at;
}

/* Where in `bytes`, cut out of the middle of a log, the first whole line begins; else the first whole character. */
function firstBorder(bytes) {
  const newline = bytes.indexOf(NEWLINE);
  if (newline >= 0 && newline + 1 < bytes.length) return newline + 1;
  let at = 0;
  while (at < 3 && (bytes[at] & 0xc0) === 0x80) at++;
  return at;
}

function joined(parts) {
  if (parts.length === 1) return parts[0];
  const all = new Uint8Array(parts.reduce((sum, each) => sum + each.length, 0));
  let at = 0;
  for (const each of parts) {
    all.set(each, at);
    at += each.length;
  }
  return all;
}

// -- what a line looks like: pieces of {name of its class, text} ------------------------

const ANSI = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])/g;

/* Bytes that show nothing of themselves become visible. */
function visible(text) {
  return text
    .replace(/\0/g, "\ufffd")
    .replace(/[\x01-\x08\x0b-\x1f\x7f]/g, (sign) => String.fromCharCode(sign === "\x7f" ? 0x2421 : 0x2400 + sign.charCodeAt(0)));
}

function readable(text) {
  // A progress bar begins its line again and again.
  return visible(text.replace(ANSI, "").replace(/\r+$/, "").replaceAll("\r", "\n"));
}

const LEVELS = { debug: "debug", info: "info", warning: "warning", warn: "warning", error: "error", exception: "error", critical: "error", fatal: "error" };

function structured(text) {
  if (!text.startsWith("{")) return null;
  try {
    const { timestamp, level, event, logger, error_detail: errors, ...further } = JSON.parse(text);
    if (typeof event !== "string") return null;
    const pieces = [];
    if (typeof timestamp === "string") {
      // As it was written, which is in UTC; the day and the rest for those who point at it.
      pieces.push({ name: "time", text: visible(/T([\d:]{8}(?:\.\d{1,3})?)/.exec(timestamp)?.[1] ?? timestamp), title: timestamp });
    }
    if (typeof level === "string" && level) pieces.push({ name: "level", text: visible(level.toUpperCase()) });
    pieces.push({ name: "event", text: readable(event) });
    for (const [name, value] of Object.entries({ ...further, ...(logger ? { logger } : {}) })) {
      if (value === null || value === "") continue;
      pieces.push({ name: "key", text: readable(`${name}=${typeof value === "string" ? value : JSON.stringify(value)}`) });
    }
    if (errors) pieces.push({ name: "trace", text: readable(traceback(errors)) });
    return { pieces, tone: LEVELS[String(level).toLowerCase()] ?? "info" };
  } catch {
    // No JSON, or nested deeper than anybody can read.
    return null;
  }
}

/* Airflow's list of exceptions, written as Python writes them; anything else as JSON. */
function traceback(errors) {
  if (!Array.isArray(errors) || !errors.every((error) => error?.exc_type)) return JSON.stringify(errors, null, 2);
  return errors
    .map(({ exc_type: type, exc_value: value, frames }) => {
      const places = (Array.isArray(frames) ? frames : []).map((at) => `  File "${at?.filename}", line ${at?.lineno}, in ${at?.name}\n`);
      return `${places.length ? "Traceback (most recent call last):\n" : ""}${places.join("")}${type}: ${value}`;
    })
    .join("\n\n");
}

let raw = false;

function look(line) {
  if (line.look?.raw !== raw) {
    const plain = () => ({ pieces: [{ name: "event", text: raw ? visible(line.text) : readable(line.text) }], tone: "plain" });
    line.look = { ...((!raw && structured(line.text)) || plain()), raw };
  }
  return line.look;
}

// -- search ---------------------------------------------------------------------------

/* The expression that finds what is searched for; null when nothing is. */
let sought = null;
let current = null;

function countHits(line) {
  line.hits = 0;
  if (sought) for (const { text } of look(line).pieces) line.hits += text.match(sought)?.length ?? 0;
  return line.hits;
}

function* all() {
  for (const block of held.blocks) yield* block.lines;
}

let total = 0;

function recount() {
  total = 0;
  for (const line of all()) total += countHits(line);
}

function search() {
  const text = input.value;
  sought = text ? new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi") : null;
  current = null;
  recount();
  renew();
  if (total) go(firstInSight());
  showCount();
}

/* The first hit that stands in sight or below, else the last one of all. */
function firstInSight() {
  let seen = null;
  const top = view.scrollTop + view.offsetTop;
  for (const block of held.blocks) {
    const below = block.element.offsetTop + block.element.offsetHeight > top;
    for (const line of block.lines) {
      if (!line.hits) continue;
      seen = { line, nth: 0 };
      if (below && line.element.offsetTop + line.element.offsetHeight > top) return seen;
    }
  }
  return seen;
}

function step(by) {
  if (!total) return;
  const hits = [...all()].filter((line) => line.hits);
  const at = hits.indexOf(current?.line);
  if (at < 0) return go(by > 0 ? { line: hits[0], nth: 0 } : { line: hits.at(-1), nth: hits.at(-1).hits - 1 });
  const nth = current.nth + by;
  if (nth >= 0 && nth < current.line.hits) return go({ line: current.line, nth });
  const line = hits.at((at + by) % hits.length);
  go({ line, nth: by > 0 ? 0 : line.hits - 1 });
}

function go(hit) {
  current = hit;
  following = false;
  const block = held.blocks.find((each) => each.lines.includes(hit.line));
  draw(block);
  for (const mark of page.querySelectorAll("mark.ec-log-here")) mark.classList.remove("ec-log-here");
  const marks = hit.line.element.querySelectorAll("mark");
  const mark = marks[Math.min(hit.nth, marks.length - 1)];
  mark?.classList.add("ec-log-here");
  bring(mark ?? hit.line.element);
  // What was out of sight had an estimated height until now.
  requestAnimationFrame(() => mark?.isConnected && bring(mark));
  showCount();
  showFollow();
}

function bring(element) {
  const [here, frame] = [element.getBoundingClientRect(), view.getBoundingClientRect()];
  if (here.top < frame.top + 24 || here.bottom > frame.bottom - 48) view.scrollTop += here.top - frame.top - view.clientHeight / 2;
  if (here.left < frame.left || here.right > frame.right) view.scrollLeft += here.left - frame.left - view.clientWidth / 2;
}

function showCount() {
  let place = 0;
  if (current) {
    for (const line of all()) {
      if (line === current.line) break;
      place += line.hits;
    }
    place += current.nth + 1;
  }
  const many = total.toLocaleString("en");
  part("count").textContent = !sought ? "" : !total ? "no hit" : place ? `${place.toLocaleString("en")} of ${many}` : many;
  part("previous").disabled = part("next").disabled = !total;
}

// -- lines on the page ------------------------------------------------------------------

/* Counts up whenever what is drawn already is out of date. */
let version = 0;

function marked(text) {
  const found = [];
  let end = 0;
  for (const hit of sought ? text.matchAll(sought) : []) {
    if (found.length > 2 * MOST_MARKS_OF_LINE) break;
    const mark = document.createElement("mark");
    mark.textContent = hit[0];
    found.push(text.slice(end, hit.index), mark);
    end = hit.index + hit[0].length;
  }
  return [...found, text.slice(end)];
}

function drawn(line) {
  const { pieces, tone } = look(line);
  const element = document.createElement("div");
  element.className = `ec-line ec-line--${tone}`;
  for (const { name, text, title } of pieces) {
    const span = document.createElement("span");
    span.className = `ec-line-${name}`;
    if (title) span.title = title;
    // Strings become text nodes.
    span.append(...marked(text));
    if (element.lastChild) element.append(" ");
    element.append(span);
  }
  return element;
}

function draw(block) {
  if (block.version === version) return;
  block.version = version;
  for (const line of block.lines) line.element = drawn(line);
  block.element.replaceChildren(...block.lines.map((line) => line.element));
  if (current && block.lines.includes(current.line)) {
    current.line.element.querySelectorAll("mark")[current.nth]?.classList.add("ec-log-here");
  }
}

const sight = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      target.block.inSight = isIntersecting;
      if (isIntersecting) draw(target.block);
    }
  },
  { root: view, rootMargin: "600px 0px" },
);

function renew() {
  version += 1;
  for (const block of held.blocks) if (block.inSight) draw(block);
  showRest();
}

function newBlock() {
  const element = document.createElement("div");
  element.className = "ec-log-block";
  const block = { element, lines: [], bytes: 0, version, inSight: true };
  element.block = block;
  return block;
}

const nothing = () => ({ blocks: [], from: 0, end: 0, rest: new Uint8Array(0), begun: false });
let held = nothing();

function append(found) {
  const fresh = [];
  for (const line of found) {
    let block = held.blocks.at(-1);
    if (!block || block.lines.length >= LINES_OF_BLOCK) {
      block = newBlock();
      held.blocks.push(block);
      fresh.push(block);
    } else {
      draw(block);
    }
    total += countHits(line);
    line.element = drawn(line);
    block.lines.push(line);
    block.bytes += line.bytes;
    block.element.append(line.element);
  }
  lines.append(...fresh.map((block) => block.element));
  for (const block of fresh) sight.observe(block.element);
}

function prepend(found) {
  const blocks = [];
  for (let at = 0; at < found.length; at += LINES_OF_BLOCK) {
    const block = newBlock();
    block.lines = found.slice(at, at + LINES_OF_BLOCK);
    for (const line of block.lines) {
      total += countHits(line);
      block.bytes += line.bytes;
    }
    block.version = -1;
    draw(block);
    blocks.push(block);
  }
  held.blocks.unshift(...blocks);
  lines.prepend(...blocks.map((block) => block.element));
  for (const block of blocks) sight.observe(block.element);
}

/* What a page that is followed for days lets go of at its top. */
function trim() {
  const most = following ? MOST : 2 * MOST;
  while (held.blocks.length > 1 && held.end - held.from - held.blocks[0].bytes >= most) {
    const [block] = held.blocks.splice(0, 1);
    sight.unobserve(block.element);
    block.element.remove();
    held.from += block.bytes;
    total -= block.lines.reduce((sum, line) => sum + line.hits, 0);
    if (block.lines.includes(current?.line)) current = null;
  }
}

let restElement = null;

/* The line that has no end yet. */
function showRest() {
  restElement?.remove();
  restElement = null;
  if (!held.rest.length) return;
  const whole = held.rest.subarray(0, wholeCharacters(held.rest));
  restElement = drawn({ text: decoder.decode(whole) });
  lines.append(restElement);
}

/* How many of the bytes are whole characters: the last one may be under way. */
function wholeCharacters(bytes) {
  const last = characterBorder(bytes, bytes.length - 1);
  const length = bytes[last] >= 0xf0 ? 4 : bytes[last] >= 0xe0 ? 3 : bytes[last] >= 0xc0 ? 2 : 1;
  return bytes.length - last < length ? last : bytes.length;
}

function feed(bytes) {
  const [found, rest] = split(joined([held.rest, bytes]));
  held.rest = rest;
  if (rest.length > LONGEST_LINE) endLine(characterBorder(rest, rest.length - 1), found);
  view.setAttribute("aria-live", found.length > 3 ? "off" : "polite");
  append(found);
}

/* Show the first `length` bytes of the line that has no end as a line. */
function endLine(length, found) {
  found.push({ text: decoder.decode(held.rest.subarray(0, length)), bytes: length });
  held.rest = held.rest.subarray(length);
}

function clear() {
  sight.disconnect();
  held = nothing();
  total = 0;
  current = null;
  lines.replaceChildren();
}

// -- following ----------------------------------------------------------------------------

let following = true;
let lastTop = 0;

const atEnd = () => view.scrollHeight - view.scrollTop - view.clientHeight < 8;

function stick() {
  if (following) view.scrollTop = view.scrollHeight;
}

view.addEventListener("scroll", () => {
  if (atEnd()) following = true;
  else if (view.scrollTop < lastTop - 1) following = false;
  lastTop = view.scrollTop;
  showFollow();
});
new ResizeObserver(stick).observe(lines);

function showFollow() {
  const button = part("follow");
  button.hidden = following || atEnd();
  button.lastChild.textContent = over ? "To the end" : "Follow";
}

// -- asking for the log ---------------------------------------------------------------------

class Ended extends Error {}

async function ask(offset, limit = PART) {
  const patience = new AbortController();
  const timer = setTimeout(() => patience.abort(), PATIENCE);
  try {
    const address = `${page.dataset.tail}?offset=${offset}&limit=${limit}`;
    // A redirect leads to the login page.
    const answer = await fetch(address, { signal: patience.signal, redirect: "manual", cache: "no-store" });
    if (answer.type === "opaqueredirect") throw new Ended("You have been logged out.");
    if (answer.status === 403) throw new Ended("You may not see this any more.");
    if (answer.status === 404) throw new Ended("The job is gone, and its log with it.");
    if (!answer.ok) throw new Error(`answer ${answer.status}`);
    return {
      bytes: new Uint8Array(await answer.arrayBuffer()),
      size: Number(answer.headers.get("Log-Size")),
      complete: answer.headers.get("Log-Complete") === "true",
      note: answer.headers.get("Log-Note") ?? "",
      state: answer.headers.get("Job-State"),
      attempt: Number(answer.headers.get("Job-Attempt")),
    };
  } finally {
    clearTimeout(timer);
  }
}

async function range(begin, end) {
  const parts = [new Uint8Array(0)];
  while (begin < end) {
    const { bytes } = await ask(begin, Math.min(PART, end - begin));
    if (!bytes.length) break;
    parts.push(bytes);
    begin += bytes.length;
  }
  return joined(parts);
}

/* The first look: the end of the log, from a line's beginning on. */
async function begin(size) {
  const start = Math.max(0, size - STEP);
  const bytes = await range(start, size);
  const cut = start ? firstBorder(bytes) : 0;
  held.from = start + cut;
  held.end = start + bytes.length;
  held.begun = true;
  feed(bytes.subarray(cut));
}

let told = null;
let over = false;

/* Fetch what is new; true when something was. */
async function catchUp() {
  if (!held.begun) await begin(told?.size ?? Number(page.dataset.size));
  let news = false;
  for (;;) {
    const answer = await ask(held.end);
    told = answer;
    // Further behind than the page holds, as after a night in the background; or the log is not the one it was.
    if (answer.size - held.end > MOST || answer.size < held.end) {
      clear();
      await begin(answer.size);
      continue;
    }
    held.end += answer.bytes.length;
    if (answer.bytes.length) feed(answer.bytes);
    news ||= answer.bytes.length > 0;
    if (held.end >= answer.size || !answer.bytes.length) break;
  }
  if (told.complete && held.end >= told.size) over = true;
  if (over && held.rest.length) {
    const found = [];
    endLine(held.rest.length, found);
    append(found);
  }
  return news;
}

let timer;
let asking = false;
let wait = FASTEST;

async function refresh() {
  clearTimeout(timer);
  if (document.hidden || over || asking) return;
  asking = true;
  let ended = false;
  try {
    wait = (await catchUp()) ? FASTEST : Math.min(SLOWEST, wait * 1.5);
    trim();
    show();
  } catch (error) {
    ended = error instanceof Ended;
    say(ended ? error.message : "The control plane cannot be reached; trying again.", ended ? "gone" : "trouble");
    wait = SLOWEST;
  } finally {
    asking = false;
    if (!over && !ended) timer = setTimeout(refresh, wait);
  }
}

async function loadEarlier() {
  const button = earlier.querySelector("button");
  button.disabled = true;
  try {
    const start = Math.max(0, held.from - STEP);
    const bytes = await range(start, held.from);
    const cut = start ? firstBorder(bytes) : 0;
    const [found, rest] = split(bytes.subarray(cut));
    if (rest.length) found.push({ text: decoder.decode(rest), bytes: rest.length });
    // What is looked at stays where it is.
    view.style.overflowAnchor = "none";
    following = false;
    const below = view.scrollHeight - view.scrollTop;
    held.from = start + cut;
    prepend(found);
    show();
    view.scrollTop = view.scrollHeight - below;
    requestAnimationFrame(() => (view.style.overflowAnchor = ""));
  } catch (error) {
    say(error instanceof Ended ? error.message : "The control plane cannot be reached; try again.", "trouble");
  } finally {
    button.disabled = false;
  }
}

// -- what is said around the log ----------------------------------------------------------------

function say(text, kind) {
  // Only when it is something else: it is read out.
  if (status.textContent !== text) status.textContent = text;
  status.dataset.kind = kind;
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function show() {
  showRest();
  showBadge();
  note.textContent = told.note;
  if (over) say("Complete", "complete");
  else if (told.state === "queued") say("Waiting for a worker host", "waiting");
  else if (FINAL.includes(told.state) || (told.note && told.size && ATTEMPT)) say("Waiting for the worker host", "waiting");
  else say("Live", "live");
  extent.textContent = held.from ? `the last ${size(held.end - held.from)} of ${size(told.size)}` : size(told.size);
  const more = held.end - held.from + STEP <= MOST;
  earlier.hidden = !held.from;
  earlier.querySelector("button").hidden = !more;
  earlier.querySelector("span").textContent = more
    ? `${size(held.from)} of the log stand before this.`
    : `${size(held.from)} of the log stand before this, more than a page holds: download it.`;
  showCount();
  stick();
  showFollow();
}

function showBadge() {
  const badge = part("badge").querySelector(".ec-state");
  if (badge && badge.textContent !== told.state) {
    badge.className = `ec-state ec-state--${told.state}`;
    badge.textContent = told.state;
  }
  const newer = part("newer");
  newer.hidden = told.attempt <= Math.max(ATTEMPT, Number(page.dataset.known ?? told.attempt));
  page.dataset.known ??= String(told.attempt);
  if (newer.hidden) return;
  newer.href = new URL(`../${told.attempt}/`, location.href);
  newer.textContent = `Attempt ${told.attempt} (new)`;
}

// -- tools ----------------------------------------------------------------------------------------

function toggle(button, on) {
  button.setAttribute("aria-pressed", String(on));
}

let typing;
input.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, held.end - held.from > 2 * STEP ? 250 : 80);
});
part("search").addEventListener("submit", (event) => event.preventDefault());
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  step(event.shiftKey ? -1 : 1);
});
part("next").addEventListener("click", () => step(1));
part("previous").addEventListener("click", () => step(-1));
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest?.("input, textarea, select, [contenteditable], dialog")) return;
  event.preventDefault();
  input.select();
});

part("raw").addEventListener("click", (event) => {
  raw = !raw;
  toggle(event.currentTarget, raw);
  current = null;
  recount();
  renew();
  showCount();
  stick();
});

const WRAP = "edgecontrol.log.wrap";
function wrap(on) {
  view.classList.toggle("ec-log--wide", !on);
  toggle(part("wrap"), on);
  stick();
}
part("wrap").addEventListener("click", () => {
  const on = view.classList.contains("ec-log--wide");
  wrap(on);
  localStorage.setItem(WRAP, on ? "yes" : "no");
});
wrap(localStorage.getItem(WRAP) !== "no");

part("follow").addEventListener("click", () => {
  following = true;
  stick();
  showFollow();
  view.focus({ preventScroll: true });
});
earlier.querySelector("button").addEventListener("click", loadEarlier);
document.addEventListener("visibilitychange", refresh);
refresh();
