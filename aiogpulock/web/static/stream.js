// The server-sent events, kept alive: an EventSource gives up at an error answer, and notices no silence.

const SILENCE = 16000; // ms; the server speaks every 5 s
const RETRY_MOST = 10000;

// `onState` hears "connecting", "live" or "disconnected".
export function follow(url, { onView, onClock, onState }) {
  let source = null;
  let silence = 0;
  let retry = 1000;

  function heard() {
    clearTimeout(silence);
    silence = setTimeout(lost, SILENCE);
    retry = 1000;
    onState("live");
  }

  function lost() {
    clearTimeout(silence);
    source.close();
    onState("disconnected");
    silence = setTimeout(connect, retry);
    retry = Math.min(retry * 2, RETRY_MOST);
  }

  function connect() {
    clearTimeout(silence);
    if (source) source.close();
    source = new EventSource(url);
    source.addEventListener("clock", (event) => { heard(); onClock(Number(event.data)); });
    source.addEventListener("view", (event) => { heard(); onView(JSON.parse(event.data)); });
    source.addEventListener("error", lost);
    silence = setTimeout(lost, SILENCE);
  }

  connect();
  // A phone that wakes up, or a laptop that is back on its network, need not wait for its turn.
  window.addEventListener("online", connect);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && source.readyState === EventSource.CLOSED) connect();
  });
}
