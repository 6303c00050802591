// Turns the sections of [data-tabs] into tabs, named after their headings. Without this file they follow one another.

for (const root of document.querySelectorAll("[data-tabs]")) {
  const sections = [...root.querySelectorAll(":scope > section[id]")];
  const list = document.createElement("div");
  list.className = "ec-tablist";
  list.setAttribute("role", "tablist");

  const tabs = sections.map((section) => {
    const heading = section.querySelector("h2");
    const tab = document.createElement("button");
    tab.type = "button";
    tab.id = `tab-${section.id}`;
    tab.textContent = heading.textContent;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", section.id);
    tab.addEventListener("click", () => choose(section.id, { keep: true }));
    section.setAttribute("role", "tabpanel");
    section.setAttribute("aria-labelledby", tab.id);
    heading.hidden = true;
    list.append(tab);
    return tab;
  });

  function choose(id, { keep = false } = {}) {
    const chosen = sections.some((section) => section.id === id) ? id : sections[0].id;
    sections.forEach((section, at) => {
      const on = section.id === chosen;
      section.hidden = !on;
      tabs[at].setAttribute("aria-selected", on);
      tabs[at].tabIndex = on ? 0 : -1;
    });
    if (keep) history.replaceState(null, "", `#${chosen}`);
  }

  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = (tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length;
    choose(sections[next].id, { keep: true });
    tabs[next].focus();
  });

  window.addEventListener("hashchange", () => choose(location.hash.slice(1)));
  root.prepend(list);
  choose(location.hash.slice(1));
  root.dataset.ready = "";
}
