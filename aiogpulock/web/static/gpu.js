// One GPU: who has it, since when, its memory, and who waits.

import { element, keyed, setText, show } from "./dom.js";
import { clock, duration, gibibytes, gpuName, plural, roughly, shortId, where } from "./format.js";

const STATES = {
  free: "free",
  granted: "being claimed",
  held: "held",
  draining: "waiting for memory",
  foreign: "held by another program",
  unreadable: "cannot be read",
  dead: "needs attention",
};
const SHOWN_WAITERS = 4;

// `now()` is the server's time; `onRelease(gpu)` is called where the viewer may release.
export function gpuPanel(first, now, onRelease) {
  const state = element("span", { class: "state" });
  const name = element("h3");
  const model = element("span", { class: "model" });
  const task = element("p", { class: "task" });
  const age = element("p", { class: "age", "aria-hidden": "true" });
  const facts = element("p", { class: "facts" });
  const usual = element("p", { class: "facts usual" });
  const note = element("p", { class: "note" });
  const used = element("div");
  const bar = element("div", { class: "bar", role: "meter", "aria-label": `memory of ${gpuName(first)}` }, used);
  const figure = element("span");
  const memory = element("div", { class: "memory" }, bar, figure);
  const waiting = element("h4");
  const queue = element("ol");
  const more = element("button", { type: "button", class: "more", "aria-expanded": "false" });
  const release = element("button", { type: "button", class: "release" }, "Release…");
  const panel = element(
    "article", { class: "gpu" },
    element("div", { class: "top" }, name, model, state),
    element("div", { class: "who" }, task, age),
    element("div", { class: "detail" }, facts, usual),
    note, memory, waiting, queue, more, release,
  );
  let gpu = first;
  let expanded = false;
  more.addEventListener("click", () => {
    expanded = !expanded;
    more.setAttribute("aria-expanded", String(expanded));
    panel.update(gpu);
  });
  release.addEventListener("click", () => onRelease(gpu));

  panel.update = (next) => {
    gpu = next;
    const holder = gpu.holder;
    setText(name, gpuName(gpu));
    setText(model, [gpu.device?.name.replace(/^NVIDIA /, ""), gpuName(gpu).endsWith(gpu.id) ? "" : shortId(gpu.id)]
      .filter(Boolean).join(" · "));
    name.title = gpu.id;
    setText(task, holder ? holder.task || "unnamed" : "");
    show(task.parentElement, Boolean(holder));
    show(release, Boolean(holder) && gpu.canRelease);
    show(facts.parentElement, Boolean(holder));
    show(note, gpu.note !== "");
    setText(note, gpu.note);
    showMemory(gpu.device);
    show(waiting, gpu.waiters > 0);
    setText(waiting, `${gpu.waiters} waiting`);
    const seats = gpu.queue.slice(0, expanded ? undefined : SHOWN_WAITERS);
    let position = 0; // the deaf are passed over
    keyed(queue, seats.map((seat) => ({ ...seat, position: seat.deaf ? null : ++position })), (seat) => seat.id, seatItem);
    show(more, gpu.waiters > SHOWN_WAITERS);
    setText(more, expanded ? unlisted(gpu) : `and ${gpu.waiters - SHOWN_WAITERS} more`);
    panel.tick();
  };

  // What passes with time alone.
  panel.tick = () => {
    const holder = gpu.holder;
    const held = holder && holder.since !== null ? now() - holder.since : null;
    const left = holder && holder.deadline !== null ? holder.deadline - now() : null;
    const kind = gpu.note !== "" && gpu.state !== "unreadable" ? "dead" : gpu.state;
    panel.dataset.state = kind;
    setText(state, STATES[kind]);
    setText(age, held === null ? "" : clock(held));
    if (holder) setText(facts, factsOf(gpu, left));
    const typical = gpu.typical_hold;
    show(usual, holder && typical !== null && gpu.state !== "foreign");
    if (typical !== null) setText(usual, `usually ${duration(typical)}`);
    usual.classList.toggle("unusual", held !== null && typical !== null && held > 10 && held > 5 * typical);
    for (const item of queue.children) item.tick(gpu, held);
  };

  function seatItem() {
    const who = element("span", { class: "task" });
    const place = element("span", { class: "host" });
    const times = element("span", { class: "times" });
    const item = element("li", {}, who, place, times);
    let seat = null;
    item.update = (next) => {
      seat = next;
      setText(who, seat.task || "unnamed");
      setText(place, where(seat) + (seat.deaf ? " · does not answer" : ""));
      item.classList.toggle("deaf", seat.deaf);
    };
    item.tick = (lock, held) => {
      const eta = seat.deaf ? null : expectedWait(lock.typical_hold, seat.position, held);
      const waited = `waits ${clock(now() - seat.since)}`;
      setText(times, eta === null ? waited : `${waited}, ${roughly(eta)} to go`);
    };
    return item;
  }

  function showMemory(device) {
    show(memory, Boolean(device));
    if (!device) return;
    const known = device.total !== null && device.total > 0;
    show(bar, known);
    if (known) {
      const share = Math.round(100 * device.used / device.total);
      used.style.width = `${share}%`;
      bar.setAttribute("aria-valuenow", String(share));
    }
    setText(figure, known ? `${gibibytes(device.used)} of ${gibibytes(device.total)} GiB in use` : device.fault);
  }

  return panel;
}

// The server lists the first hundred.
function unlisted(gpu) {
  const rest = gpu.waiters - gpu.queue.length;
  return rest > 0 ? `show fewer (${rest} are not listed)` : "show fewer";
}

function factsOf(gpu, left) {
  if (gpu.state === "foreign") return "set by another program: no lease, no queue";
  const parts = [where(gpu.holder)];
  if (left !== null) parts.push(left >= 0 ? `lease ${clock(left)} left` : `lease over for ${clock(-left)}`);
  return parts.filter(Boolean).join(" · ");
}

// As aiogpulock/history.py has it.
function expectedWait(typical, position, held) {
  if (typical === null) return null;
  const rest = held === null ? 0 : Math.max(0, typical - held);
  return rest + (position - 1) * typical;
}

export function describe(gpu) {
  const holder = gpu.holder ? `held by ${gpu.holder.task || "unnamed"}` : STATES[gpu.state];
  return `${gpuName(gpu)} ${holder}${gpu.waiters ? `, ${plural(gpu.waiters, "waits", "wait")}` : ""}`;
}
