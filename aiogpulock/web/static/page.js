// The page: it shows the newest view, and lets the time pass in between.

import { durationChart } from "./chart.js";
import { element, keyed, setText, show } from "./dom.js";
import { eventRow } from "./events.js";
import { gpuName, plural } from "./format.js";
import { describe, gpuPanel } from "./gpu.js";
import { releaseDialog } from "./release.js";
import { follow } from "./stream.js";

const at = (id) => document.getElementById(id);
const charts = { wait: durationChart(at("waits"), "wait"), hold: durationChart(at("holds"), "hold") };
const openRelease = releaseDialog(at("release"));
const HOLD_FIELDS = ["at", "gpu", "wait", "hold", "event", "task"];
const ANNOUNCE_EVERY = 4000; // ms: a screen reader is no ticker

let view = null;
let ahead = 0; // seconds by which the server's clock is ahead of this one
let announced = new Map();
let announceAfter = 0;

const now = () => Date.now() / 1000 + ahead;

const nameOf = (id) => gpuName(view.gpus.find((gpu) => gpu.id === id) ?? { id });

// An error of ours would leave a page that stands still and says "live".
addEventListener("error", ({ message }) => {
  document.body.toggleAttribute("data-stale", true);
  setText(at("trouble"), `This page has failed: ${message}. Reload it; the same is at gpu-lock/status.`);
  show(at("trouble"), true);
});

follow("events", {
  onClock(time) { ahead = time - Date.now() / 1000; },
  onView(next) { view = next; render(); },
  onState(state) {
    if (document.body.dataset.connection === state) return;
    document.body.dataset.connection = state;
    at("connection").dataset.state = state;
    const since = new Date().toLocaleTimeString("en-GB");
    setText(at("connection"), state === "disconnected" ? `disconnected since ${since}` : state);
  },
});
setInterval(() => { for (const panel of at("gpus").children) panel.tick(); }, 1000);
at("chart-gpu").addEventListener("change", renderCharts);

function render() {
  const gpus = view.gpus.map((gpu) => ({ ...gpu, canRelease: view.can_release }));
  document.body.toggleAttribute("data-stale", view.error !== "");
  setText(at("trouble"), view.error === "" ? "" : `${view.error}. What is shown may be old.`);
  show(at("trouble"), view.error !== "");
  keyed(at("gpus"), gpus, (gpu) => gpu.id, (gpu) => gpuPanel(gpu, now, openRelease));
  show(at("no-gpus"), gpus.length === 0 && view.error === "");
  renderTotals(gpus);
  renderChoice(gpus);
  renderCharts();
  renderEvents();
  renderAbout();
  announce(gpus);
}

function renderTotals(gpus) {
  const sick = gpus.filter((gpu) => gpu.note !== "").length;
  const free = gpus.filter((gpu) => gpu.note === "" && gpu.state === "free").length;
  const waiting = gpus.reduce((sum, gpu) => sum + gpu.waiters, 0);
  const alarm = sick ? [plural(sick, "needs attention", "need attention")] : [];
  const figures = [`${gpus.length - free - sick} held`, `${free} free`, `${waiting} waiting`];
  setText(at("alarm"), alarm.join());
  setText(at("totals"), gpus.length ? figures.join(" · ") : "");
  document.title = gpus.length ? `${[...alarm, figures[0], figures[2]].join(", ")} · GPU locks` : "GPU locks";
}

function renderChoice(gpus) {
  const choice = at("chart-gpu");
  show(at("chart-choice"), gpus.length > 1);
  const chosen = choice.value;
  const ids = gpus.map((gpu) => gpu.id);
  if (ids.join() === [...choice.options].slice(1).map((option) => option.value).join()) return;
  choice.replaceChildren(choice.options[0], ...ids.map((id) => element("option", { value: id }, nameOf(id))));
  choice.value = ids.includes(chosen) ? chosen : "";
}

function renderCharts() {
  if (!view) return;
  const chosen = at("chart-gpu").value;
  const points = view.holds
    .map((values) => Object.fromEntries(HOLD_FIELDS.map((name, index) => [name, values[index]])))
    .filter((point) => chosen === "" || point.gpu === chosen)
    .map((point) => ({ ...point, gpu: nameOf(point.gpu) }));
  charts.wait(points, now());
  charts.hold(points, now());
}

function renderEvents() {
  const seen = new Map();
  const rows = view.events.map((event) => {
    const name = `${event.gpu_id} ${event.at} ${event.holder_id} ${event.event}`;
    seen.set(name, (seen.get(name) ?? 0) + 1);
    return { ...event, key: `${name} ${seen.get(name)}` };
  });
  keyed(at("events").tBodies[0], rows, (event) => event.key,
    (event) => eventRow(event, nameOf, now));
  show(at("events"), rows.length > 0);
  show(at("no-events"), rows.length === 0 && view.unread === "");
  show(at("unread"), view.unread !== "");
  setText(at("unread"), view.unread === "" ? "" : `Not every history can be read: ${view.unread}`);
}

function renderAbout() {
  const parts = [`aiogpulock ${view.version}`, view.server, view.namespace === "gpu_lock" ? "" : view.namespace];
  parts.push(view.nvml === "" ? "" : "no GPU memory: NVML cannot be asked here");
  setText(at("about"), parts.filter(Boolean).join(" · "));
  at("about").title = view.nvml;
}

// Who has which GPU, when that changes, and not more often than one can listen.
function announce(gpus) {
  const states = new Map(gpus.map((gpu) => [gpu.id, `${gpu.state} ${gpu.holder?.id}`]));
  const changed = gpus.filter((gpu) => announced.has(gpu.id) && announced.get(gpu.id) !== states.get(gpu.id));
  if (changed.length && Date.now() < announceAfter) return;
  announced = states;
  if (!changed.length) return;
  announceAfter = Date.now() + ANNOUNCE_EVERY;
  setText(at("announcements"), changed.length > 3
    ? plural(changed.length, "GPU has changed hands", "GPUs have changed hands")
    : changed.map(describe).join(". "));
}
