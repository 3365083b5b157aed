// The chat: questions go out, answers come in piece by piece.

import { chats, keep, newChat, title } from "./chats.js";
import { complete } from "./completion.js";
import { byId, h, replace, say } from "./dom.js";
import { howItCame } from "./how.js";
import { markdown } from "./markdown.js";
import { store } from "./store.js";
import { count, digits, seconds } from "./words.js";

const IDEAS = ["Why is the sky blue?", "Explain gravity in two sentences.", "Write a short story about a lighthouse keeper."];
const NEAR_END_PX = 80;

let chat = chats[0] ?? newChat();
/** @type {AbortController | null} */
let running = null;

export function startChat() {
  const question = byId("question");
  byId("composer").onsubmit = (event) => { event.preventDefault(); ask(); };
  question.oninput = fitQuestion;
  question.onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
  };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && running) stop(); });
  byId("stop").onclick = stop;
  byId("new-chat").onclick = () => { open(newChat()); question.focus(); };
  byId("past").onchange = (event) => open(chats.find((each) => each.id === event.target.value));
  const temperature = byId("temperature");
  temperature.oninput = () => { byId("temperature-shown").textContent = temperature.value; };
  temperature.oninput();
  open(chat);
}

/** The models that can be chosen, as the swarm has them now. */
export function showModels() {
  const models = Object.values(store.models).filter((model) => model.name);
  const select = byId("model");
  const before = select.value;
  const options = models.map(({ name, state }) =>
    h("option", { value: name }, state === "unavailable" ? `${name} (unavailable)` : name));
  replace(select, ...options);
  const names = models.map(({ name }) => name);
  select.value = names.includes(before) ? before : store.models[store.bestModel()]?.name ?? "";
}

function open(next) {
  stop();
  chat = next;
  byId("messages").replaceChildren(...(chat.messages.length ? chat.messages.map(draw) : [welcome()]));
  showTitle();
  byId("messages").scrollTop = byId("messages").scrollHeight;
}

function showTitle() {
  byId("chat-title").textContent = title(chat);
  const earlier = chats.filter((each) => each.messages.length);
  byId("past-choice").hidden = earlier.length < 2 && !(earlier.length === 1 && earlier[0] !== chat);
  replace(byId("past"), h("option", { value: "" }, "Earlier chats"),
    ...earlier.filter((each) => each !== chat).map((each) => h("option", { value: each.id }, title(each))));
  byId("past").value = "";
}

function welcome() {
  return h(
    "div", { class: "welcome" },
    h("p", { class: "hello" }, "Ask, and watch the answer travel."),
    h("p", {}, "No machine here holds the whole model. Each token passes through all of its layers, from peer to peer, and comes back to you."),
    h("ul", { class: "ideas" }, ...IDEAS.map((idea) =>
      h("li", {}, h("button", { type: "button", onclick: () => { byId("question").value = idea; ask(); } }, idea)))),
  );
}

// ── asking ──

async function ask() {
  const content = byId("question").value.trim();
  if (running || !content) return;
  const model = byId("model").value;
  byId("question").value = "";
  fitQuestion();
  /** @type {import("./chats.js").Message[]} */
  const messages = [...chat.messages, { role: "user", content }];
  /** @type {import("./chats.js").Message} */
  const answer = { role: "assistant", content: "" };
  chat.messages = [...messages, answer];
  showTitle();
  const list = byId("messages");
  list.querySelector(".welcome")?.remove();
  const element = draw(answer);
  list.append(draw(messages.at(-1)), element);
  list.scrollTop = list.scrollHeight;
  running = new AbortController();
  setRunning(true);
  const own = chat;
  await receive({
    model,
    messages: messages.filter(({ content: text }) => text).map(({ role, content: text }) => ({ role, content: text })),
    temperature: Number(byId("temperature").value),
    max_tokens: Number(byId("max-tokens").value) || 512,
  }, answer, element, running);
  keep();
  if (own === chat) showTitle();
}

/** Take the answer to `body` into `answer`, and show it in `element` as it grows. */
async function receive(body, answer, element, stopper) {
  const began = performance.now();
  let pieces = 0;
  let first = 0;
  let due = false;
  const show = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      const rate = pieces > 1 ? ` · ${digits((pieces - 1) / ((performance.now() - first) / 1000))} tokens/s` : "";
      const live = pieces ? `${count(pieces, "piece")} · first after ${seconds((first - began) / 1000)}${rate}` : "";
      if (running === stopper) redraw(element, answer, live);
    });
  };
  try {
    for await (const { text, how, tokens, finish } of complete(body, stopper.signal)) {
      if (text) {
        first ||= performance.now();
        pieces++;
        answer.content += text;
        show();
      }
      if (how) answer.how = { ...how, tokens: null };
      if (tokens && answer.how) answer.how.tokens = tokens;
      if (finish === "length") answer.cut = true;
    }
  } catch (error) {
    if (error.name === "AbortError") answer.stopped = true;
    else answer.problem = error.message;
  } finally {
    if (running === stopper) {
      running = null;
      setRunning(false);
    }
  }
  redraw(element, answer, null);
  say(answer.problem ?? (answer.stopped ? "Stopped." : "The answer is there."));
}

function stop() {
  running?.abort();
}

function setRunning(yes) {
  byId("send").hidden = yes;
  byId("stop").hidden = !yes;
  byId("messages").setAttribute("aria-busy", String(yes));
  if (!yes && document.activeElement === document.body) byId("question").focus();
}

function fitQuestion() {
  const question = byId("question");
  question.style.setProperty("height", "auto");
  question.style.setProperty("height", `${question.scrollHeight}px`);
}

// ── drawing ──

function draw(message) {
  const who = message.role === "user" ? "You" : "The swarm";
  const element = h("article", { class: `message ${message.role}`, "aria-label": who }, h("div", { class: "text" }), h("footer", {}));
  redraw(element, message, null);
  return element;
}

/** @param {string | null} live figures while it runs; null = it does not */
function redraw(element, message, live) {
  const list = byId("messages");
  const follow = list.scrollHeight - list.scrollTop - list.clientHeight < NEAR_END_PX;
  const [text, footer] = element.children;
  if (message.role === "user") text.textContent = message.content;
  else text.replaceChildren(...markdown(message.content));
  element.classList.toggle("growing", live !== null);
  footer.replaceChildren(...below(message, live));
  if (follow) list.scrollTop = list.scrollHeight;
}

function below(message, live) {
  if (message.role === "user") return [];
  if (live !== null) return [h("p", { class: "live" }, live || "on its way")];
  return [
    message.problem && h("p", { class: "problem" }, message.problem),
    message.stopped && h("p", { class: "quiet-text" }, "You stopped this answer."),
    message.cut && h("p", { class: "quiet-text" }, "It ended at the longest answer allowed; Settings has a longer one."),
    message.how && howItCame(message.how),
  ].filter(Boolean);
}
