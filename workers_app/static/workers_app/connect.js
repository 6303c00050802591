// The pages that connect a machine: copy what is to be copied, and say how far the machine has come.

const AGAIN_MS = 2_000;

async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  // Over plain http there is no clipboard, but a selection can still be copied.
  const area = document.createElement("textarea");
  area.value = text;
  area.style.position = "fixed";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("refused");
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const code = button.parentElement.querySelector("code");
  const word = button.querySelector("[data-copy-word]");
  try {
    await copy(code.textContent);
    word.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    word.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { word.textContent = "Copy"; }, 2_000);
});

for (const box of document.querySelectorAll("[data-status-url]")) {
  const ended = new Set(["connected", "expired", "revoked"]);

  async function look() {
    if (!document.hidden) {
      try {
        const answer = await fetch(box.dataset.statusUrl);
        if (answer.redirected) return location.reload();
        if (!answer.ok) throw new Error(answer.status);
        const said = await answer.json();
        if (said.url) box.querySelector("[data-worker]").href = said.url;
        // Written only when it changes: whoever listens to the page must not hear it again and again.
        if (box.dataset.status !== said.status) box.dataset.status = said.status;
        delete box.dataset.lost;
      } catch {
        box.dataset.lost = "";
      }
    }
    if (!ended.has(box.dataset.status)) setTimeout(look, AGAIN_MS);
  }

  if (!ended.has(box.dataset.status)) setTimeout(look, AGAIN_MS);
}
