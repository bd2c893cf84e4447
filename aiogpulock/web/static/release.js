// The dialog that releases a lock by force: exactly the holder that was on the screen when it was opened.

import { setText, show } from "./dom.js";
import { gpuName, where } from "./format.js";

export function releaseDialog(dialog) {
  const form = dialog.querySelector("form");
  const problem = dialog.querySelector("#release-problem");
  let gpu = null;

  dialog.querySelector("[value=cancel]").addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const refused = await release(gpu, form.elements.token.value, form.elements.reason.value);
    setText(problem, refused);
    show(problem, refused !== "");
    if (refused === "") dialog.close();
  });

  return (chosen) => {
    gpu = chosen;
    form.reset(); // the last one's reason is none for this one
    const place = where(gpu.holder);
    setText(dialog.querySelector("#release-what"),
      `${gpuName(gpu)} is held by ${gpu.holder.task || "unnamed"}${place ? ` (${place})` : ""}.`);
    show(problem, false);
    dialog.showModal();
  };
}

// Answers why it was refused; empty: it was not.
async function release(gpu, token, reason) {
  try {
    const answer = await fetch("gpu-lock/release", {
      method: "POST",
      headers: { Authorization: `Bearer ${asBytes(token)}`, "Content-Type": "application/json" },
      body: JSON.stringify({ gpu_id: gpu.id, holder_id: gpu.holder.id, reason: reason || "operator" }),
    });
    return answer.ok ? "" : (await answer.json()).detail;
  } catch {
    return "The server does not answer.";
  }
}

// A header takes bytes only: the token's UTF-8, one character each.
function asBytes(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}
