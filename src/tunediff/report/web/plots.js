// Figures: each is an SVG with a caption, and can be taken away as SVG or PNG.

function save(name, type, content) {
  const link = element("a", { download: name, href: URL.createObjectURL(new Blob([content], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// a cell that a spreadsheet would compute is marked as text; numbers stay numbers
const computed = (value) => typeof value === "string" && /^[=+\-@＝＋－＠\t\r]/.test(value) && !/^[+-]?[\d.]+(e[+-]?\d+)?$/i.test(value);
const inert = (value) => (computed(value) ? `'${value}` : String(value ?? ""));
const quoted = (value) => (/[",\n\r]/.test(inert(value)) ? `"${inert(value).replaceAll('"', '""')}"` : inert(value));
const csv = (columns, rows) => [columns, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
// rows that are objects, as they are saved
const taken = (rows, names = Object.keys(rows[0] ?? {})) => () => [names, rows.map((row) => names.map((name) => row[name]))];

// the drawing with its colours and letters written out, so that it stands without this page
function standing(svg) {
  const copy = svg.cloneNode(true), there = [svg, ...svg.querySelectorAll("*")], here = [copy, ...copy.querySelectorAll("*")];
  there.forEach((node, i) => {
    const style = getComputedStyle(node);
    for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "text-anchor"])
      here[i].setAttribute(name, style.getPropertyValue(name));
    here[i].removeAttribute("style"); // it is written out, and speaks of this page
  });
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  dressed(copy, { xmlns: "http://www.w3.org/2000/svg", width, height });
  copy.prepend(drawn("rect", { width, height, fill: getComputedStyle(document.body).backgroundColor }));
  return { text: new XMLSerializer().serializeToString(copy), width, height };
}

function savePng(name, svg) {
  const { text, width, height } = standing(svg), image = new Image(), canvas = element("canvas", { width: 3 * width, height: 3 * height });
  image.onload = () => {
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(`${name}.png`, "image/png", blob));
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
}

// `rows` is [columns, rows] of the numbers drawn, for CSV; `make` draws an SVG where the page shows something faster, and is
// null where there is no drawing
function figure(title, shown, { rows = null, make = () => shown, kind = "" } = {}) {
  const name = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60);
  const tool = (word, act) => button(word, act, { title: `save as ${word}` });
  return element("figure", { class: kind },
    element("figcaption", {}, element("span", {}, title), element("span", { class: "tools" },
      make ? tool("SVG", () => save(`${name}.svg`, "image/svg+xml", standing(make()).text)) : null,
      make ? tool("PNG", () => savePng(name, make())) : null,
      rows ? tool("CSV", () => save(`${name}.csv`, "text/csv", csv(...rows()))) : null)),
    shown);
}

// series are [column, word, colour] of the training
function curve(title, series, whole = false) {
  const { training } = DATA, present = series.filter(([name]) => training[name]?.some((v) => v !== null));
  const last = present.map(([name, word]) => `${word ? `${word} ` : ""}${spelled(training[name].findLast((v) => v !== null))}`).join(", ");
  const lines = present.map(([name, word = title, colour = "var(--ink)"]) =>
    ({ word, colour, points: training.tokens.map((at, i) => ({ at, value: training[name][i] })) }));
  const rows = taken(rowsOf(training), ["tokens", ...present.map(([name]) => name)]);
  // the first steps of what is measured are far off
  return plot(`${title}: ${last}`, lines, { xWord: "tokens", dots: false, settles: !whole, rows });
}

// Bars side by side from one number to another, each a stack of [height, colour, what it says] from below.
function bars(title, [from, to], stacks, { least = 1, gap = 0.5, names = [], marks = [], rows, ...look } = {}) {
  const tall = stacks.map((parts) => parts.reduce((sum, [height]) => sum + height, 0)), each = (to - from) / stacks.length;
  const top = marks.length ? TOP + 14 : TOP; // the words of marks stand above the tallest bar
  const { svg, x, y } = frame(title, [from, to], [0, Math.max(least, ...tall)], "", { top, ...look });
  stacks.forEach((parts, n) => {
    const left = x(from + n * each) + gap, width = x(from + (n + 1) * each) - gap - left;
    let below = 0;
    for (const [height, fill, said] of parts) {
      svg.append(drawn("rect", { x: left, width, y: y(below + height), height: y(below) - y(below + height), fill, title: said }));
      below += height;
    }
    if (names[n]) svg.append(drawn("text", { x: left + width / 2, y: y(0) + 15, "text-anchor": "middle" }, names[n]));
  });
  for (const [at, word] of marks) {
    svg.append(drawn("line", { class: "mark", x1: x(at), x2: x(at), y1: TOP, y2: HIGH - BOTTOM }));
    const left = at < (from + to) / 2;
    svg.append(drawn("text", { x: x(at) + (left ? 4 : -4), y: TOP + 8, "text-anchor": left ? "start" : "end" }, word));
  }
  return figure(title, svg, { rows });
}

// `kinds` is [[word, colour, values]...], stacked in this order from below
function histogram(title, kinds, [low, high], marks = []) {
  const bins = 40, edge = (bin) => low + (bin / bins) * (high - low), counts = kinds.map(() => new Array(bins).fill(0));
  const binOf = (v) => Math.min(bins - 1, Math.max(0, Math.floor(((v - low) / (high - low)) * bins)));
  kinds.forEach(([, , values], k) => values.forEach((v) => (counts[k][binOf(v)] += 1)));
  const stacks = counts[0].map((_, bin) => kinds.map(([word, colour], k) =>
    [counts[k][bin], typeof colour === "function" ? colour(edge(bin + 0.5)) : colour,
      `${counts[k][bin]} ${word} from ${edge(bin).toFixed(3)} to ${edge(bin + 1).toFixed(3)}`]).filter(([count]) => count));
  const rows = () => [["from", "to", ...kinds.map(([word]) => word)], stacks.map((_, bin) => [edge(bin), edge(bin + 1), ...counts.map((some) => some[bin])])];
  return bars(title, [low, high], stacks, { marks, rows });
}

// a drawing is given its colours by the page only while it stands in it
function aside(svg) {
  const holder = element("div", { class: "away" }, svg);
  document.body.append(holder);
  setTimeout(() => holder.remove(), 2000);
  return svg;
}

// -- thousands of points: drawn on a canvas above their axes, found by the pointer -----------------------------------

function scatter(title, points, { xs, ys, xWord, yWord, spellY, bright, onpick, words }) {
  const canvas = element("canvas", { role: "img", "aria-label": title, class: "scatter", tabindex: 0, onpointermove: hovered,
    onpointerleave: () => (tip.hidden = true), onclick: (event) => { const point = nearest(event); if (point) onpick(point); } });
  const axes = element("div", { "aria-hidden": "true" }), tip = element("div", { class: "tip", hidden: "" }), over = element("div", { class: "over" }, axes, canvas, tip);
  const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name.slice(4, -1)).trim();
  let wide, x, y;

  function draw() {
    wide = over.clientWidth || 720;
    const high = Math.round(Math.max(220, Math.min(300, wide * 0.3))), ratio = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
    const made = frame(title, xs, ys, xWord, { spellY, wide, high, top: 24, atX: ticks(...xs, 5), atY: ticks(...ys, 4) });
    const colours = new Map(distinct(points.map((point) => point.colour)).map((name) => [name, colourOf(name)]));
    made.svg.append(drawn("text", { x: 2, y: 10 }, yWord));
    axes.replaceChildren(made.svg);
    ({ x, y } = made);
    [canvas.width, canvas.height] = [wide * ratio, high * ratio];
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (const lit of [false, true])
      for (const point of points) {
        if (bright(point) !== lit) continue;
        pen.globalAlpha = lit ? 0.8 : 0.1;
        pen.fillStyle = pen.strokeStyle = colours.get(point.colour);
        pen.beginPath();
        pen.arc(x(point.x), y(point.y), lit ? 2.6 : 2, 0, 2 * Math.PI);
        if (point.hollow) pen.stroke();
        else pen.fill();
      }
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect(), px = ((event.clientX - box.left) / box.width) * wide, py = event.clientY - box.top;
    let best = null, least = 90;
    for (const point of points) {
      const distance = (x(point.x) - px) ** 2 + (y(point.y) - py) ** 2 + (bright(point) ? 0 : 30);
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  function hovered(event) {
    const point = nearest(event), box = over.getBoundingClientRect(), place = event.clientX - box.left;
    tip.hidden = !point;
    canvas.style.cursor = point ? "pointer" : "default";
    if (point) tip.textContent = words(point);
    tip.style.left = `${place}px`;
    tip.style.top = `${event.clientY - box.top + 14}px`;
    tip.style.transform = place > box.width / 2 ? "translateX(-100%)" : "";
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  onWidth(over, draw);

  function make() {
    const svg = axes.firstChild.cloneNode(true);
    for (const point of points) {
      const [fill, stroke] = point.hollow ? ["none", point.colour] : [point.colour, "none"];
      svg.append(drawn("circle", { cx: x(point.x).toFixed(1), cy: y(point.y).toFixed(1), r: 2.4, fill, stroke, opacity: bright(point) ? 0.8 : 0.1 }));
    }
    return aside(svg);
  }
  const rows = () => [["latent", "relative_decoder_norm", "firing_rate"], points.map((p) => [p.latent, p.x, 10 ** p.y])];
  return { node: figure(title, over, { make, kind: "broad", rows }), draw };
}
