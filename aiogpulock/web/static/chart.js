// A chart of durations: one dot per hold, time to the right, a logarithmic scale upwards.

import { setText, svg } from "./dom.js";
import { duration, timeOfDay } from "./format.js";

const MARKS = new Map([
  [0.001, "1 ms"], [0.01, "10 ms"], [0.1, "100 ms"], [1, "1 s"], [10, "10 s"], [60, "1 min"], [600, "10 min"],
  [3600, "1 h"], [21600, "6 h"], [86400, "1 d"], [604800, "7 d"], [6048000, "70 d"],
]);
const STEPS = [...MARKS.keys()];
const WIDTH = 560;
const HEIGHT = 168;
const LEFT = 52;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 24;

export function durationChart(figure, what) {
  const caption = figure.querySelector("figcaption");
  const title = caption.textContent;
  const summary = document.createElement("span");
  caption.append(summary);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const empty = document.createElement("p");
  empty.className = "empty";
  empty.textContent = "No hold has ended yet.";
  figure.append(picture, empty);
  let drawn = null;

  return (points, now) => {
    const shown = JSON.stringify([points, timeOfDay(points[0]?.at ?? 0, now)]);
    if (shown === drawn) return;
    drawn = shown;
    picture.toggleAttribute("hidden", points.length === 0);
    empty.hidden = points.length > 0;
    if (points.length === 0) {
      setText(summary, "");
      return;
    }
    const values = points.map((point) => point[what]).sort((a, b) => a - b);
    const at = (share) => values[Math.min(values.length - 1, Math.ceil(share * values.length) - 1)];
    const median = at(0.5);
    const text = `median ${duration(median)} · 95 % ${duration(at(0.95))} · most ${duration(values.at(-1))}`;
    setText(summary, text);
    picture.setAttribute("aria-label", `${title}, last ${points.length}: ${text}`);
    picture.replaceChildren(...draw(points, what, median, values, now));
  };
}

function draw(points, what, median, values, now) {
  const low = STEPS.findLast((mark) => mark <= values[0]) ?? STEPS[0];
  const top = STEPS.find((mark) => mark >= values.at(-1) && mark > low) ?? STEPS.at(-1);
  const start = points[0].at;
  const span = Math.max(points.at(-1).at - start, 1e-3);
  const x = (time) => LEFT + ((time - start) / span) * (WIDTH - LEFT - RIGHT);
  const y = (value) => {
    const share = Math.log(Math.min(Math.max(value, low), top) / low) / Math.log(top / low);
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
  };
  const lines = STEPS.filter((mark) => mark >= low && mark <= top).flatMap((mark) => [
    svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(mark), y2: y(mark) }),
    svg("text", { class: "label", x: LEFT - 8, y: y(mark) + 4, "text-anchor": "end" }, MARKS.get(mark)),
  ]);
  const ends = [[start, "start"], [points.at(-1).at, "end"]].map(([time, anchor]) =>
    svg("text", { class: "label", x: x(time), y: HEIGHT - 4, "text-anchor": anchor }, timeOfDay(time, now)));
  const dots = points.map((point) =>
    svg("circle", {
      class: point.event === "released" ? "dot" : "dot bad", cx: x(point.at), cy: y(point[what]), r: 3,
    }, svg("title", {}, `${point.gpu} ${point.task}: ${duration(point[what])}, ${point.event}`)));
  const middle = svg("line", { class: "median", x1: LEFT, x2: WIDTH - RIGHT, y1: y(median), y2: y(median) });
  return [...lines, ...ends, middle, ...dots];
}
