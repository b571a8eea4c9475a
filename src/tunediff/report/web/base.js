"use strict";
// What both pages draw with. Data reaches a document as text nodes and attributes only.

const DATA = JSON.parse(document.getElementById("payload").textContent);

const absent = (value) => value === null || value === undefined;

// an attribute that is a function hears the event of its name; a style is set as the page's policy allows it
function dressed(made, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (name === "style" && !absent(value)) made.style.cssText = value;
    else if (!absent(value)) made.setAttribute(name, value);
  }
  return made;
}

function element(tag, attributes = {}, ...children) {
  const made = dressed(document.createElement(tag), attributes);
  for (const child of children.flat()) if (!absent(child)) made.append(child);
  return made;
}

// `title` is what a pointer above it is told
function drawn(tag, { title = null, ...attributes } = {}, text = null) {
  const made = dressed(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes);
  if (text !== null) made.textContent = text;
  if (title !== null) made.append(drawn("title", {}, title));
  return made;
}

const many = (value) => value.toLocaleString("en-US");

// `like` is the number whose precision is kept, so that the ends of an interval read as its middle does
function spelled(value, like = value) {
  if (absent(value)) return "–";
  if (Number.isInteger(value)) return many(value);
  const size = Math.abs(like);
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : size < 1 && size > 0.99 ? value.toFixed(4) : value.toFixed(3);
}

const signed = (value) => `${value > 0 ? "+" : ""}${spelled(value)}`;
const between = (low, high, like) => (absent(low) ? "" : `${spelled(low, like)} to ${spelled(high, like)}`);

const distinct = (values) => [...new Set(values)];
const wordOf = (label) => label.replaceAll("_", " ");
const section = (title, ...children) => element("section", {}, element("h2", {}, title), ...children);
const soft = (...words) => element("p", { class: "soft" }, ...words);
const definitions = (kind, entries) => element("dl", { class: kind }, entries.flatMap(([word, said]) => [element("dt", {}, word), element("dd", {}, said)]));
const button = (word, act, attributes = {}) => element("button", { type: "button", onclick: act, ...attributes }, word);
const selector = (word, options, act) => element("select", { "aria-label": word, onchange: (event) => act(event.target.value) },
  options.map(([value, said]) => element("option", { value }, said)));
// entries are [word, colour, whether it is dashed]
const legendOf = (entries, kind = "legend keys") => element("p", { class: kind }, entries.map(([word, colour, dashed]) =>
  element("span", { style: `border-color:${colour}${dashed ? ";border-bottom-style:dashed" : ""}` }, word)));

// -- tables --------------------------------------------------------------------------------------------------------

const tableOf = (heads, rows, attributes = {}) => element("table", attributes, element("thead", {}, element("tr", {}, heads)), element("tbody", {}, rows));
const wideTable = (...parts) => element("div", { class: "wide" }, tableOf(...parts));
const headOf = (word, wordy = false) => element("th", { class: wordy ? "words" : null }, word);

// heads [name, word, whether words stand below it] that sort by their column
const sorters = (heads, by, falling, act) => heads.map(([name, word, wordy]) => element("th",
  { class: wordy ? "words" : null, title: name, "aria-sort": name !== by ? null : falling ? "descending" : "ascending" },
  button(word, () => act(name))));

// for sorting: numbers by size, words by the alphabet, and what has no value last
const ordering = (of, falling) => (a, b) => {
  const [p, q] = [of(a), of(b)], rising = typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(String(q));
  return absent(p) - absent(q) || (falling ? -rising : rising);
};

// columns of equal length -> one object a row
function rowsOf(columns) {
  const names = Object.keys(columns);
  return columns[names[0]].map((_, n) => Object.fromEntries(names.map((name) => [name, columns[name][n]])));
}

// what is typed or pressed is meant for something else
const elsewhere = (event) => event.ctrlKey || event.metaKey || event.altKey;
const typing = (event) => /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName ?? "");

// acts on the width of a node, and again where it changes
function onWidth(node, act) {
  let wide = 0;
  new ResizeObserver(() => {
    if (!node.clientWidth || Math.abs(node.clientWidth - wide) < 4) return;
    wide = node.clientWidth;
    act(wide);
  }).observe(node);
}

// a spread of a hundred thousand arguments overflows the stack
const lowest = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const highest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
// the ends of an axis that has room for this share of the values' span on either side
function extent(values, share) {
  const low = lowest(values), high = highest(values), room = (high - low) * share || Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}
// what numbers are divided by, so that the distance of two of them is one too
const shrinking = (values) => (values.some((v) => Math.abs(v) > 1e300) ? 1e10 : 1);

// -- charts --------------------------------------------------------------------------------------------------------

const WIDE = 340, HIGH = 170, LEFT = 46, BOTTOM = 26, TOP = 10, RIGHT = 8;

function ticks(low, high, count = 4) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough), first = Math.ceil(low / step), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, n) => Number(((first + n) * step).toPrecision(10)));
}

// logarithms of round numbers between two logarithms, all to base 10
function logTicks(low, high) {
  const first = Math.floor(low), powers = Array.from({ length: Math.floor(high) - first + 1 }, (_, n) => first + n);
  const found = powers.flatMap((power) => [1, 2, 5].map((m) => power + Math.log10(m))).filter((at) => at >= low - 1e-9 && at <= high + 1e-9);
  if (found.length < 2) return ticks(10 ** low, 10 ** high, 3).filter((v) => v > 0).map(Math.log10);
  return found.length > 6 ? found.filter((at) => Math.abs(at - Math.round(at)) < 1e-9) : found;
}

const unlog = (at) => short(10 ** at);

// `atX` and `atY` are the places of the marks where round numbers are not what is wanted
function frame(title, xs, ys, xWord, { spellX = short, spellY = short, wide = WIDE, high = HIGH, top = TOP, atX = null, atY = null } = {}) {
  const [x0, x1] = xs, [y0, y1] = ys;
  const x = (v) => LEFT + ((v - x0) / (x1 - x0 || 1)) * (wide - LEFT - RIGHT);
  const y = (v) => high - BOTTOM - ((v - y0) / (y1 - y0)) * (high - BOTTOM - top);
  const svg = drawn("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": title });
  svg.append(drawn("line", { class: "axis", x1: LEFT, x2: wide - RIGHT, y1: high - BOTTOM, y2: high - BOTTOM }));
  for (const at of atY ?? ticks(y0, y1, 3)) svg.append(drawn("text", { x: LEFT - 6, y: y(at) + 4, "text-anchor": "end" }, spellY(at)));
  for (const at of atX ?? ticks(x0, x1, 4)) svg.append(drawn("text", { x: x(at), y: high - 11, "text-anchor": atX && x(at) > wide - RIGHT - 9 ? "end" : "middle" }, spellX(at)));
  svg.append(drawn("text", { x: wide - RIGHT, y: high, "text-anchor": "end" }, xWord));
  return { svg, x, y };
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toFixed(1))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toFixed(0))}k`;
  return size !== 0 && size < 0.001 ? value.toExponential(0) : String(Number(value.toPrecision(3)));
}
