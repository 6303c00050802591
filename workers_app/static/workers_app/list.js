// Keeps what a list shows fresh: the cells of the rows that are there, never their order or what is ticked.
// What has left the list grows pale; what has joined it is counted, and comes with the next loading of the page.

const SECONDS = Number(document.querySelector("[data-list-seconds]")?.dataset.listSeconds);

const rows = (root) => new Map([...root.querySelectorAll("#result_list tr.data-row")].map((row) => [
  new URL(row.querySelector("th a")?.href ?? "", location.href).pathname, row,
]));

function renew(old, fresh) {
  const cells = [...fresh.children];
  [...old.children].forEach((cell, at) => {
    const open = cell.querySelector(":popover-open") || cell.contains(document.activeElement);
    if (open || cell.classList.contains("action-checkbox") || cell.innerHTML === cells[at].innerHTML) return;
    cell.replaceChildren(...cells[at].childNodes);
  });
}

function tell(text) {
  let note = document.getElementById("ec-joined");
  if (!note && !text) return;
  if (!note) {
    note = document.createElement("p");
    note.id = "ec-joined";
    note.className = "ec-joined";
    note.setAttribute("role", "status");
    document.getElementById("changelist-form").before(note);
  }
  // Read out only when it is something else than before.
  if (note.dataset.text === text) return;
  note.dataset.text = text;
  const link = document.createElement("a");
  link.href = location.href;
  link.className = "ec-link";
  link.textContent = "Load the list again";
  note.replaceChildren(...(text ? [`${text} `, link] : []));
}

async function refresh() {
  if (document.hidden || document.querySelector("dialog[open]")) return;
  const answer = await fetch(location.href, { cache: "no-store" });
  if (answer.redirected) throw new Error("you may have been logged out");
  if (!answer.ok) throw new Error(`the control plane answers ${answer.status}`);
  const fresh = rows(new DOMParser().parseFromString(await answer.text(), "text/html"));
  const old = rows(document);
  for (const [key, row] of old) {
    row.classList.toggle("ec-left", !fresh.has(key));
    if (fresh.has(key)) renew(row, fresh.get(key));
  }
  const joined = [...fresh.keys()].filter((key) => !old.has(key)).length;
  tell(joined ? `${joined} more by now.` : "");
}

async function again() {
  try {
    await refresh();
  } catch (error) {
    tell(`Not fresh: ${error instanceof TypeError ? "the control plane does not answer" : error.message}.`);
  }
}

if (SECONDS) setInterval(again, SECONDS * 1000);
