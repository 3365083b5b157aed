// Requests to the gateway that served this page. Failures become sentences.

import { byId } from "./dom.js";
import { sentence } from "./words.js";

const KEY = "p2pgrid-key";

/** Its message can be shown as it stands. */
export class Refused extends Error {}

/** @type {Promise<boolean> | null} */
let asking = null;
let declined = false;

/** Whoever has no key is not asked for one again, until they do something that needs it. */
export function mayAskForKey() {
  declined = false;
}

/**
 * Ask, with the key if there is one; ask for one when the gateway wants it.
 * @param {string} path @param {RequestInit} options
 * @returns {Promise<Response>} a good one. Throws Refused, or AbortError when it was stopped.
 */
export async function request(path, options = {}) {
  while (true) {
    const used = sessionStorage.getItem(KEY);
    const response = await send(path, options, used);
    if (response.ok) return response;
    if (response.status !== 401) throw new Refused(await why(response));
    const another = sessionStorage.getItem(KEY) !== used;
    if (!another && (declined || !(await askForKey(used !== null)))) {
      declined = true;
      throw new Refused("This gateway wants an API key.");
    }
  }
}

async function send(path, options, key) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The gateway does not answer. Is it still running?");
  }
}

/** @param {boolean} wrong the last one was no good */
function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("ask-key");
    if (wrong) byId("ask-key-why").textContent = "That key was not accepted. Check it and try again.";
    byId("key").value = "";
    byId("no-key").onclick = () => dialog.close();
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "ok" && byId("key").value.trim();
      if (given) sessionStorage.setItem(KEY, given);
      asking = null;
      resolve(Boolean(given));
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function why(response) {
  let said = "";
  try {
    said = (await response.json()).error?.message ?? "";
  } catch {
    // No error document: the status has to do.
  }
  const after = Number(response.headers.get("Retry-After"));
  const again = after > 0 ? ` Try again in ${after} s.` : "";
  return sentence(said || `The gateway refused with status ${response.status}`) + again;
}
