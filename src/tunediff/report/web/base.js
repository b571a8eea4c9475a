"use strict";
// What both pages draw with. Data reaches a document as text nodes and attributes only.

const DATA = JSON.parse(document.getElementById("payload").textContent);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) made.append(child);
  return made;
}

function drawn(tag, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

// `like` is the number whose precision is kept, so that the ends of an interval read as its middle does
function spelled(value, like = value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(like);
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : size < 1 && size > 0.99 ? value.toFixed(4) : value.toFixed(3);
}

const distinct = (values) => [...new Set(values)];
const wordOf = (label) => label.replaceAll("_", " ");
const section = (title, ...children) => element("section", {}, element("h2", {}, title), ...children);

// a spread of a hundred thousand arguments overflows the stack
const lowest = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const highest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
// what numbers are divided by, so that the distance of two of them is one too
const shrinking = (values) => (values.some((v) => Math.abs(v) > 1e300) ? 1e10 : 1);

// -- charts --------------------------------------------------------------------------------------------------------

const WIDE = 340, HIGH = 170, LEFT = 46, BOTTOM = 26, TOP = 10, RIGHT = 8;

function ticks(low, high, count = 4) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) {
    found.push(Number(at.toPrecision(10)));
    if (at + step === at) break; // too large for so small a step
  }
  return found;
}

// logarithms of round numbers between two logarithms, all to base 10
function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= high; power += 1)
    for (const times of [1, 2, 5]) {
      const at = power + Math.log10(times);
      if (at >= low - 1e-9 && at <= high + 1e-9) found.push(at);
    }
  if (found.length < 2) return ticks(10 ** low, 10 ** high, 3).filter((v) => v > 0).map(Math.log10);
  return found.length > 6 ? found.filter((at) => Math.abs(at - Math.round(at)) < 1e-9) : found;
}

const unlog = (at) => short(10 ** at);

// `atX` and `atY` are the places of the marks where round numbers are not what is wanted
function frame(title, xs, ys, xWord, { spellX = short, spellY = short, wide = WIDE, high = HIGH, atX = null, atY = null } = {}) {
  const half = Math.max(0.5, Math.abs(ys[0]) * 1e-9);
  const [x0, x1] = xs, [y0, y1] = ys[0] === ys[1] ? [ys[0] - half, ys[1] + half] : ys;
  const x = (v) => LEFT + ((v - x0) / (x1 - x0 || 1)) * (wide - LEFT - RIGHT);
  const y = (v) => high - BOTTOM - ((v - y0) / (y1 - y0)) * (high - BOTTOM - TOP);
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
