// Figures: each is an SVG with a caption, and can be taken away as SVG or PNG.

function save(name, type, content) {
  const link = element("a", { download: name, href: URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const cellOf = (value) => (/[",\n\r]/.test(String(value ?? "")) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
const csv = (columns, rows) => [columns, ...rows].map((row) => row.map(cellOf).join(",")).join("\n") + "\n";

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
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
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
  const tool = (word, act) => element("button", { type: "button", title: `save as ${word}`, onclick: act }, word);
  return element("figure", { class: kind },
    element("figcaption", {}, element("span", {}, title), element("span", { class: "tools" },
      make ? tool("SVG", () => save(`${name}.svg`, "image/svg+xml", standing(make()).text)) : null,
      make ? tool("PNG", () => savePng(name, make())) : null,
      rows ? tool("CSV", () => save(`${name}.csv`, "text/csv", csv(...rows()))) : null)),
    shown);
}

function curve(title, series, whole = false) {
  const tokens = DATA.training.tokens, present = series.filter(([name]) => DATA.training[name]?.some((v) => v !== null));
  const last = present.map(([name, word]) => `${word ? word + " " : ""}${spelled(DATA.training[name].findLast((v) => v !== null))}`).join(", ");
  const lines = present.map(([name, word, colour]) => ({ word: word || title, colour, points: tokens.map((at, i) => ({ at, value: DATA.training[name][i] })) }));
  const rows = () => [["tokens", ...present.map(([name]) => name)], tokens.map((t, i) => [t, ...present.map(([name]) => DATA.training[name][i])])];
  // the first steps of what is measured are far off
  return plot(`${title}: ${last}`, lines, { xWord: "tokens", dots: false, settles: !whole, rows });
}

// `kinds` is [[word, colour, values]...], stacked in this order from below
function histogram(title, kinds, [low, high], marks = []) {
  const bins = 40, counts = kinds.map(() => new Array(bins).fill(0));
  kinds.forEach(([, , values], k) => values.forEach((v) => (counts[k][Math.min(bins - 1, Math.max(0, Math.floor(((v - low) / (high - low)) * bins)))] += 1)));
  const whole = counts[0].map((_, bin) => counts.reduce((sum, some) => sum + some[bin], 0));
  const { svg, x, y } = frame(title, [low, high], [0, Math.max(1, ...whole)], "");
  for (let bin = 0; bin < bins; bin += 1) {
    const a = low + (bin / bins) * (high - low), b = low + ((bin + 1) / bins) * (high - low);
    let below = 0;
    kinds.forEach(([word, colour], k) => {
      const count = counts[k][bin];
      if (!count) return;
      const bar = drawn("rect", { x: x(a) + 0.5, width: x(b) - x(a) - 1, y: y(below + count), height: y(below) - y(below + count), fill: typeof colour === "function" ? colour((a + b) / 2) : colour });
      bar.append(drawn("title", {}, `${count} ${word} from ${a.toFixed(3)} to ${b.toFixed(3)}`));
      svg.append(bar);
      below += count;
    });
  }
  for (const [at, word] of marks) {
    svg.append(drawn("line", { class: "mark", x1: x(at), x2: x(at), y1: TOP, y2: HIGH - BOTTOM }));
    svg.append(drawn("text", { x: x(at) + 4, y: TOP + 8 }, word));
  }
  const rows = () => [["from", "to", ...kinds.map(([word]) => word)], whole.map((_, bin) => [low + (bin / bins) * (high - low), low + ((bin + 1) / bins) * (high - low), ...counts.map((some) => some[bin])])];
  return figure(title, svg, { rows });
}

function bars(title, names, values, colours, yWord) {
  const high = 150, { svg, x, y } = frame(title, [0, names.length], [0, Math.max(1e-12, ...values)], "", { spellX: () => "", wide: 600, high });
  names.forEach((name, n) => {
    const bar = drawn("rect", { x: x(n) + 1.5, width: x(n + 1) - x(n) - 3, y: y(values[n]), height: Math.max(0, y(0) - y(values[n])), fill: colours[n] });
    bar.append(drawn("title", {}, `${name}: ${spelled(values[n])}`));
    svg.append(bar, drawn("text", { x: x(n + 0.5), y: high - 11, "text-anchor": "middle" }, name.includes("/") ? name.split("/")[1] : name));
  });
  return figure(title, svg, { rows: () => [["place", yWord], names.map((name, n) => [name, values[n]])] });
}

// a drawing is given its colours by the page only while it stands in it
function aside(svg) {
  const holder = element("div", { class: "away" }, svg);
  document.body.append(holder);
  setTimeout(() => holder.remove(), 2000);
  return svg;
}

// -- thousands of points: drawn on a canvas, found by the pointer ----------------------------------------------------

function scatter(title, points, { xs, ys, xWord, yWord, spellY, bright, onpick, words }) {
  let wide = 720, high = 280;
  const left = 46, right = 10, top = 24, bottom = 34;
  const x = (v) => left + ((v - xs[0]) / (xs[1] - xs[0])) * (wide - left - right);
  const y = (v) => high - bottom - ((v - ys[0]) / (ys[1] - ys[0])) * (high - top - bottom);
  const canvas = element("canvas", { role: "img", "aria-label": title, class: "scatter", tabindex: 0 });
  const tip = element("div", { class: "tip", hidden: "" }), ratio = window.devicePixelRatio || 1;
  const colourOf = (name) => (name.startsWith("var(") ? getComputedStyle(document.documentElement).getPropertyValue(name.slice(4, -1)).trim() : name);

  function draw() {
    wide = canvas.clientWidth || wide;
    high = Math.round(Math.max(220, Math.min(300, wide * 0.3)));
    canvas.style.height = `${high}px`;
    canvas.width = wide * ratio;
    canvas.height = high * ratio;
    const pen = canvas.getContext("2d"), soft = colourOf("var(--soft)");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = "11px system-ui, sans-serif";
    pen.fillStyle = soft;
    pen.strokeStyle = colourOf("var(--line)");
    pen.beginPath();
    pen.moveTo(left, high - bottom + 0.5);
    pen.lineTo(wide - right, high - bottom + 0.5);
    pen.stroke();
    pen.textAlign = "center";
    for (const at of ticks(...xs, 5)) pen.fillText(short(at), x(at), high - 18);
    pen.textAlign = "right";
    for (const at of ticks(...ys, 4)) pen.fillText(spellY(at), left - 7, y(at) + 4);
    pen.fillText(xWord, wide - right, high - 3);
    pen.textAlign = "left";
    pen.fillText(yWord, 2, 10);
    for (const lit of [false, true])
      for (const point of points) {
        if (bright(point) !== lit) continue;
        pen.globalAlpha = lit ? 0.8 : 0.1;
        pen.fillStyle = pen.strokeStyle = colourOf(point.colour);
        pen.beginPath();
        pen.arc(x(point.x), y(point.y), lit ? 2.6 : 2, 0, 2 * Math.PI);
        if (point.hollow) pen.stroke();
        else pen.fill();
      }
    pen.globalAlpha = 1;
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect(), px = ((event.clientX - box.left) / box.width) * wide, py = ((event.clientY - box.top) / box.height) * high;
    let best = null, least = 90;
    for (const point of points) {
      const distance = (x(point.x) - px) ** 2 + (y(point.y) - py) ** 2 + (bright(point) ? 0 : 30);
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  canvas.addEventListener("pointermove", (event) => {
    const point = nearest(event), box = canvas.parentElement.getBoundingClientRect();
    tip.hidden = !point;
    canvas.style.cursor = point ? "pointer" : "default";
    if (!point) return;
    tip.textContent = words(point);
    const place = event.clientX - box.left;
    tip.style.left = `${place}px`;
    tip.style.top = `${event.clientY - box.top + 14}px`;
    tip.style.transform = place > box.width / 2 ? "translateX(-100%)" : "";
  });
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
  canvas.addEventListener("click", (event) => { const point = nearest(event); if (point) onpick(point); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new ResizeObserver(() => canvas.clientWidth !== wide && draw()).observe(canvas);

  function make() {
    const svg = drawn("svg", { viewBox: `0 0 ${wide} ${high}` });
    svg.append(drawn("line", { class: "axis", x1: left, x2: wide - right, y1: high - bottom, y2: high - bottom }));
    for (const at of ticks(...xs, 5)) svg.append(drawn("text", { x: x(at), y: high - 18, "text-anchor": "middle" }, short(at)));
    for (const at of ticks(...ys, 4)) svg.append(drawn("text", { x: left - 7, y: y(at) + 4, "text-anchor": "end" }, spellY(at)));
    svg.append(drawn("text", { x: wide - right, y: high - 3, "text-anchor": "end" }, xWord), drawn("text", { x: 2, y: 10 }, yWord));
    for (const point of points) svg.append(drawn("circle", { cx: x(point.x).toFixed(1), cy: y(point.y).toFixed(1), r: 2.4, fill: point.hollow ? "none" : colourOf(point.colour), stroke: point.hollow ? colourOf(point.colour) : "none", opacity: bright(point) ? 0.8 : 0.1 }));
    return aside(svg);
  }
  return { node: figure(title, element("div", { class: "over" }, canvas, tip), { make, kind: "broad", rows: () => [["latent", "relative_decoder_norm", "firing_rate"], points.map((p) => [p.latent, p.x, 10 ** p.y])] }), draw };
}
