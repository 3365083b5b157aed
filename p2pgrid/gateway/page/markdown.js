// The little Markdown that models write most: paragraphs, headings, lists, code, emphasis. Links stay text, on purpose:
// what a model says should not lead anybody anywhere by a click. Only elements and text are made, never markup.

import { h } from "./dom.js";

const INLINE = /(`+)(.+?)\1|\*\*(.+?)\*\*|__(.+?)__|\*([^\s*](?:.*?[^\s*])?)\*/s;
const LIST = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;

/** @param {string} text @returns {HTMLElement[]} */
export function markdown(text) {
  const lines = text.replace(/\r/g, "").split("\n");
  const blocks = [];
  while (lines.length) {
    const line = lines[0];
    if (!line.trim()) lines.shift();
    else if (/^\s*(```|~~~)/.test(line)) blocks.push(code(lines));
    else if (/^#{1,6}\s/.test(line)) blocks.push(h("p", { class: "heading" }, ...inline(lines.shift().replace(/^#+\s+/, ""))));
    else if (LIST.test(line)) blocks.push(list(lines));
    else blocks.push(paragraph(lines));
  }
  return blocks;
}

function code(lines) {
  const fence = lines.shift().trim().slice(0, 3);
  const inside = [];
  while (lines.length && lines[0].trim() !== fence) inside.push(lines.shift());
  lines.shift();
  return h("pre", { tabindex: "0" }, h("code", {}, inside.join("\n")));
}

function list(lines) {
  const first = LIST.exec(lines[0]);
  const items = [];
  while (lines.length && LIST.test(lines[0])) {
    const [, , , rest] = LIST.exec(lines.shift());
    const parts = [rest];
    while (lines.length && /^\s+\S/.test(lines[0]) && !LIST.test(lines[0])) parts.push(lines.shift().trim());
    while (lines.length > 1 && !lines[0].trim() && LIST.test(lines[1])) lines.shift();
    items.push(h("li", {}, ...inline(parts.join(" "))));
  }
  return first[2] ? h("ol", { start: first[2] }, ...items) : h("ul", {}, ...items);
}

function paragraph(lines) {
  const inside = [];
  while (lines.length && lines[0].trim() && !/^\s*(```|~~~)|^#{1,6}\s/.test(lines[0])) {
    if (inside.length && LIST.test(lines[0])) break;
    inside.push(lines.shift().trim());
  }
  return h("p", {}, ...inline(inside.join("\n")));
}

function inline(text) {
  const parts = [];
  let rest = text;
  for (let found = INLINE.exec(rest); found; found = INLINE.exec(rest)) {
    if (found.index) parts.push(rest.slice(0, found.index));
    if (found[1]) parts.push(h("code", {}, found[2].trim()));
    else if (found[3] ?? found[4]) parts.push(h("strong", {}, ...inline(found[3] ?? found[4])));
    else parts.push(h("em", {}, ...inline(found[5])));
    rest = rest.slice(found.index + found[0].length);
  }
  return [...parts, rest].filter((part) => part !== "");
}
