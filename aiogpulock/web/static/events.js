// The table of what happened.

import { element, setText } from "./dom.js";
import { duration, timeOfDay } from "./format.js";

const ENDS = ["released", "reaped", "forced"];
const NOTABLE = ["reaped", "forced", "alert"];

// `nameOf(gpuId)` is what the page calls that GPU; `now()` is the server's time.
export function eventRow(event, nameOf, now) {
  const [text, notable] = event.event === "memory" ? verdict(event) : happening(event);
  const ended = ENDS.includes(event.event) && event.fencing_token > 0;
  const time = element("time", { datetime: new Date(event.at * 1000).toISOString() });
  const row = element(
    "tr", notable ? { class: "notable" } : {},
    element("td", { class: "time" }, time),
    element("td", { class: "gpu-id", title: event.gpu_id }, nameOf(event.gpu_id)),
    element("td", { class: "task" }, event.task_name || "–"),
    element("td", { class: "what" }, text),
    element("td", { class: "number", "data-label": "waited" }, ended ? duration(event.wait) : ""),
    element("td", { class: "number", "data-label": "held" }, ended ? duration(event.hold) : ""),
    element("td", { class: "actor" }, event.actor),
  );
  row.update = () => setText(time, timeOfDay(event.at, now()));
  return row;
}

// Whether the memory came back after a hold; the reason is news only if it did not.
function verdict(event) {
  const status = event.details.status ?? "";
  const text = `memory ${status.replaceAll("_", " ")}`;
  return [status === "freed" ? text : `${text}: ${event.reason}`, status === "not_freed"];
}

function happening(event) {
  const reason = [event.event, "normal"].includes(event.reason) ? "" : event.reason;
  const details = Object.entries(event.details).map(([name, value]) => `${name} ${value}`).join(", ");
  const text = [event.event, reason].filter(Boolean).join(", ").replaceAll("_", " ");
  return [details ? `${text} (${details})` : text, NOTABLE.includes(event.event) || (event.event === "released" && reason)];
}
