// The chats of this tab, kept in it until it is closed.

const KEY = "p2pgrid-chats";
const CHATS_MAX = 20;
const TITLE_CHARS_MAX = 48;

/**
 * @typedef {{role: "user" | "assistant", content: string, how?: import("./how.js").How, problem?: string,
 *   stopped?: boolean, cut?: boolean}} Message
 * @typedef {{id: string, messages: Message[]}} Chat
 */

/** @type {Chat[]} the newest first */
export const chats = load();

/** @returns {Chat} */
export function newChat() {
  if (chats[0]?.messages.length === 0) return chats[0];
  const chat = { id: String(Date.now()), messages: [] };
  chats.unshift(chat);
  chats.splice(CHATS_MAX);
  return chat;
}

export function keep() {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(chats));
  } catch {
    // The tab's storage is full: the chats live as long as the page does.
  }
}

export function title(chat) {
  const first = chat.messages[0]?.content.replace(/\s+/g, " ").trim();
  if (!first) return "New chat";
  return first.length > TITLE_CHARS_MAX ? `${first.slice(0, TITLE_CHARS_MAX).trim()}…` : first;
}

function load() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) ?? [];
  } catch {
    return [];
  }
}
