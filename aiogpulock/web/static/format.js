// Text for times, sizes and names.

const UUID = /^(GPU|MIG)-[0-9a-f]{8}-[0-9a-f-]{27}$/i;

// Two figures are enough: 840 ms, 3.2 s, 2m 10s, 4h 05m, 3d 4h.
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const s = Math.max(0, seconds);
  if (s < 0.001) return "0 ms";
  if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 59.5) return `${Math.round(s)} s`;
  return clock(s);
}

// An estimate, which is no better than a second.
export function roughly(seconds) {
  return seconds < 1 ? "under 1 s" : `about ${clock(Math.round(seconds))}`;
}

// A running time: no part of it jumps in width more than once a minute.
export function clock(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${two(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${two(Math.floor(s / 60) % 60)}m`;
  return `${Math.floor(s / 86400)}d ${Math.floor(s / 3600) % 24}h`;
}

export function timeOfDay(epoch, now) {
  const date = new Date(epoch * 1000);
  const time = date.toLocaleTimeString("en-GB");
  const sameDay = date.toDateString() === new Date(now * 1000).toDateString();
  return sameDay ? time : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`;
}

export function gibibytes(bytes) {
  const gib = bytes / 2 ** 30;
  return gib < 9.95 ? gib.toFixed(1) : String(Math.round(gib));
}

// As people say it: by its index where it is a device of the server's host, else by what it is locked by.
export function gpuName({ id, device }) {
  const index = device?.index ?? (/^\d+$/.test(id) ? id : null);
  if (index !== null) return `GPU ${index}`;
  return shortId(id);
}

// The first block of a UUID tells devices apart.
export function shortId(id) {
  return UUID.test(id) ? `${id.slice(0, 12)}…` : id;
}

export function plural(count, one, many) {
  return `${count} ${count === 1 ? one : many}`;
}

export function where({ user, host, pid }) {
  return [[user, host].filter(Boolean).join("@"), pid ? `pid ${pid}` : ""].filter(Boolean).join(" · ");
}
