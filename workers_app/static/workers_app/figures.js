// Draws a worker host's figures over time with unfold's Chart.js. Where the machine was not heard, there is a gap.

const COLUMNS = { load: [1], memory: [2], disk: [3], jobs: [4, 5] };
const NAMES = { 4: "Jobs", 5: "Slots" };
const UNITS = { load: "", memory: " %", disk: " GB", jobs: "" };
const AGAIN_MS = 60_000;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = () => document.documentElement.classList.contains("dark");

function clock(ms, hours) {
  const when = new Date(ms).toISOString();
  return hours > 48 ? when.slice(5, 10) : when.slice(11, 16);
}

// A point without a value wherever more than two and a half of the usual steps lie between two points.
function series(points, column) {
  const steps = points.slice(1).map((point, at) => point[0] - points[at][0]);
  const usual = steps.length ? Math.min(...steps) : 0;
  const drawn = [];
  points.forEach((point, at) => {
    if (at && steps[at - 1] > 2.5 * usual) drawn.push({ x: points[at - 1][0] + usual, y: null });
    drawn.push({ x: point[0], y: point[column] });
  });
  return drawn;
}

// At whole hours or days, which a linear axis does not know.
function ticks({ hours, now }) {
  const step = (hours > 48 ? 24 : hours > 12 ? 4 : 1) * 3_600_000;
  const first = Math.ceil((now - hours * 3_600_000) / step) * step;
  return Array.from({ length: Math.floor((now - first) / step) + 1 }, (_, at) => ({ value: first + at * step }));
}

function options({ hours, now }, name) {
  const grid = css(dark() ? "--color-base-700" : "--color-base-200");
  const text = css(dark() ? "--color-base-400" : "--color-base-500");
  return {
    animation: false,
    interaction: { axis: "x", intersect: false, mode: "nearest" },
    maintainAspectRatio: false,
    parsing: false,
    plugins: {
      legend: { display: false },
      tooltip: {
        callbacks: {
          title: (items) => `${new Date(items[0].parsed.x).toISOString().slice(0, 16).replace("T", " ")} UTC`,
          label: (item) => `${NAMES[item.dataset.column] ?? ""} ${item.parsed.y}${UNITS[name]}`.trim(),
        },
      },
    },
    scales: {
      x: {
        afterBuildTicks: (axis) => { axis.ticks = ticks({ hours, now }); },
        border: { display: false },
        grid: { display: false },
        max: now,
        min: now - hours * 3_600_000,
        ticks: { callback: (ms) => clock(ms, hours), color: text, maxRotation: 0 },
        type: "linear",
      },
      y: {
        border: { display: false },
        grid: { color: grid },
        min: 0,
        suggestedMax: { load: 1, memory: 100, disk: 1, jobs: 1 }[name],
        ticks: { color: text, maxTicksLimit: 5, precision: name === "jobs" ? 0 : undefined },
      },
    },
  };
}

function datasets(answer, name) {
  return COLUMNS[name].map((column) => ({
    borderColor: css(column === 5 ? "--ec-quiet-dot" : "--ec-busy-dot"),
    borderDash: column === 5 ? [4, 4] : [],
    borderWidth: 1.5,
    column,
    data: series(answer.points, column),
    pointHoverRadius: 3,
    pointRadius: 0,
    stepped: name === "jobs",
  }));
}

function describe(canvas, answer, name, title) {
  const values = answer.points.map((point) => point[COLUMNS[name][0]]).filter((value) => value !== null);
  const last = values.at(-1);
  const words = (value) => `${Math.round(value * 10) / 10}${UNITS[name]}`;
  const said = values.length
    ? `last ${words(last)}, lowest ${words(Math.min(...values))}, highest ${words(Math.max(...values))}`
    : "nothing was told";
  canvas.setAttribute("aria-label", `${title}: ${said}`);
  return values.length ? words(last) : "";
}

for (const root of document.querySelectorAll("[data-figures]")) {
  const note = root.querySelector("[data-figures-note]");
  const buttons = [...root.querySelectorAll("[data-hours]")];
  const charts = new Map();
  let hours = 24;
  let answer;

  function draw() {
    if (!answer) return;
    note.hidden = answer.points.length > 0;
    note.textContent = "No figures in this span of time: they are kept while the worker host is heard, one every few minutes.";
    root.querySelector(".ec-charts").hidden = answer.points.length === 0;
    for (const canvas of root.querySelectorAll("[data-figure]")) {
      const name = canvas.dataset.figure;
      const title = canvas.closest("figure").querySelector("figcaption").firstChild.textContent.trim();
      root.querySelector(`[data-last="${name}"]`).textContent = describe(canvas, answer, name, title);
      charts.get(name)?.destroy();
      charts.set(name, new Chart(canvas, { type: "line", data: { datasets: datasets(answer, name) }, options: options(answer, name) }));
    }
  }

  async function load() {
    try {
      const got = await fetch(`${root.dataset.figures}?hours=${hours}`);
      if (!got.ok || got.redirected) throw new Error(got.status);
      answer = await got.json();
      draw();
    } catch {
      note.hidden = false;
      note.textContent = "The figures cannot be fetched at the moment.";
    }
  }

  for (const button of buttons) {
    button.addEventListener("click", () => {
      hours = Number(button.dataset.hours);
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      load();
    });
  }
  new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["class"] });
  setInterval(() => document.hidden || load(), AGAIN_MS);
  load();
}
