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
  const tokens = DATA.training.tokens;
  const present = series.filter(([name]) => DATA.training[name]?.some((v) => v !== null));
  if (!present.length) return null;
  // the first steps of what is measured are far off: the axis spans what follows the first eighth
  const settled = present.flatMap(([name]) => DATA.training[name].slice(whole ? 0 : Math.floor(tokens.length / 8))).filter((v) => v !== null);
  const low = Math.min(...settled), high = Math.max(...settled), room = (high - low) * 0.06;
  const { svg, x, y } = frame(title, [0, tokens.at(-1)], [low - room, high + room], "tokens");
  const clip = (v) => Math.max(low - room, Math.min(high + room, v));
  for (const [name, word, colour] of present) {
    const points = DATA.training[name].map((v, i) => (v === null ? null : `${x(tokens[i]).toFixed(1)},${y(clip(v)).toFixed(1)}`)).filter(Boolean);
    const line = drawn("polyline", { points: points.join(" "), fill: "none", stroke: colour, "stroke-width": 1.6 });
    line.append(drawn("title", {}, `${word || title}: ${spelled(DATA.training[name].at(-1))} at the end`));
    svg.append(line);
  }
  const last = present.map(([name, word]) => `${word ? word + " " : ""}${spelled(DATA.training[name].at(-1))}`).join(", ");
  const rows = () => [["tokens", ...present.map(([name]) => name)], tokens.map((t, i) => [t, ...present.map(([name]) => DATA.training[name][i])])];
  return figure(`${title}: ${last}`, svg, { rows });
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

// lines with the bands of their intervals. Each is { word, colour, xs, values, lows, highs, dashed }; `place` says where a
// point lies, `asX` and `asY` are what an axis shows of a number, `level` is a value to hold the lines against
function bands(title, lines, xWord, { place, rows, asX = (v) => v, asY = (v) => v, level = null, ...axes }) {
  const drawnLines = lines.map((line) => ({ ...line, points: line.xs.map((at, i) => ({ at, value: line.values[i], low: line.lows?.[i] ?? line.values[i], high: line.highs?.[i] ?? line.values[i] }))
    .filter((point) => point.value !== null && point.value !== undefined) })).filter((line) => line.points.length);
  if (!drawnLines.length) return null;
  const every = drawnLines.flatMap((line) => line.points), all = [...every.flatMap((point) => [point.value, point.low, point.high]), ...(level === null ? [] : [level])].map(asY);
  const low = Math.min(...all), high = Math.max(...all), room = (high - low) * 0.06, places = (axes.atX ?? []).concat(every.map((point) => asX(point.at)));
  const { svg, x, y } = frame(title, [Math.min(...places), Math.max(...places)], [low - room, high + room], xWord, { ...axes, atY: axes.atY?.(low - room, high + room) });
  if (level !== null) svg.append(drawn("line", { class: "mark", x1: LEFT, x2: WIDE - RIGHT, y1: y(asY(level)), y2: y(asY(level)) }));
  for (const { word, colour, points, lows, dashed } of drawnLines) {
    const at = (name) => points.map((point) => `${x(asX(point.at)).toFixed(1)},${y(asY(point[name])).toFixed(1)}`);
    if (lows) svg.append(drawn("polygon", { points: [...at("high"), ...at("low").reverse()].join(" "), fill: colour, opacity: dashed ? 0.08 : 0.18 }));
    svg.append(drawn("polyline", { points: at("value").join(" "), fill: "none", stroke: colour, "stroke-width": 1.6, ...(dashed ? { "stroke-dasharray": "4 3" } : {}) }));
    for (const point of points) {
      const dot = drawn("circle", { cx: x(asX(point.at)), cy: y(asY(point.value)), r: 2.6, fill: colour });
      dot.append(drawn("title", {}, `${word}, ${place(point.at)}: ${spelled(point.value)}${lows ? ` (${spelled(point.low, point.value)} to ${spelled(point.high, point.value)})` : ""}`));
      svg.append(dot);
    }
  }
  return figure(title, svg, { rows });
}

// a line a column of the table of layers
function banded(title, layers, lines) {
  const columns = lines.flatMap(([name]) => [name, `${name}_low`, `${name}_high`]).filter((name) => DATA.layers[name]);
  return bands(title, lines.map(([name, word, colour]) => ({ word, colour, xs: layers, values: DATA.layers[name], lows: DATA.layers[`${name}_low`], highs: DATA.layers[`${name}_high`] })), "layer", {
    place: (layer) => `layer ${layer}`,
    rows: () => [["layer", ...columns], layers.map((layer, i) => [layer, ...columns.map((name) => DATA.layers[name][i])])] });
}

// -- rows of dots with whiskers, a panel a measure ---------------------------------------------------------------------

// Rows are { label, colour, control, first, ruled, of }: `of` holds the numbers, `first` opens a group, and a line stands
// in every panel at a row that is ruled. Columns are { name, word, log }. Drawn as wide as there is room for.
function whiskers(title, rows, columns, { bar = false, table }) {
  const spread = columns.map(({ name, log }) => {
    const all = rows.flatMap(({ of }) => [of[name], of[`${name}_low`], of[`${name}_high`]]).filter((v) => v !== null && v !== undefined);
    const far = log && Math.min(...all) > 0 && Math.max(...all) > 8 * Math.min(...all), as = far ? Math.log10 : (v) => v;
    const low = Math.min(...all.map(as), ...(bar ? [0] : [])), high = Math.max(...all.map(as), ...(bar ? [0] : [])), room = (high - low) * 0.07 || Math.abs(high) * 0.1 || 1;
    return { as, far, low: low >= 0 && !far ? Math.max(0, low - room) : low - room, high: high + room };
  });

  // panels stand beside each other where each has room for its heading, else in two rows, else one below the other
  function draw(wide) {
    const stacked = wide < 640, label = stacked ? 0 : Math.min(310, 0.29 * wide), gap = 26, most = stacked ? wide / 6.3 : (label - 24) / 6.3;
    const step = stacked ? 38 : rows.some((row) => broken(row.label, most).length > 1) ? 30 : 25, head = 26, foot = 38;
    const across = stacked ? 1 : (wide - label) / columns.length > 175 ? columns.length : Math.ceil(columns.length / 2);
    const each = (wide - label - gap * (across - 1) - 12) / across, tall = head + rows.length * step + foot, high = tall * Math.ceil(columns.length / across) - 12;
    const svg = drawn("svg", { viewBox: `0 0 ${Math.round(wide)} ${high}`, role: "img", "aria-label": title });
    const words = (row, x, y) => {
      const all = broken(row.label, most), lines = all.slice(0, stacked ? 1 : 2), indent = row.control ? 14 : 0;
      if (all.length > lines.length) lines[lines.length - 1] += " …"; // a dot says the whole
      lines.forEach((line, n) => svg.append(drawn("text", { class: row.control ? "name control" : "name", x: x + indent, y: y + 4 + (n - (lines.length - 1) / 2) * 12 }, line)));
    };
    columns.forEach(({ name, word }, c) => {
      const { as, far, low, high: top } = spread[c], first = c % across === 0, left = label + (c % across) * (each + gap) + 6, above = Math.floor(c / across) * tall, end = above + head + rows.length * step;
      const x = (v) => left + ((as(v) - low) / (top - low)) * each, y = (n) => above + head + (n + (stacked ? 0.72 : 0.5)) * step;
      svg.append(drawn("text", { class: "name", x: left, y: above + 12 }, far ? `${word}, logarithmic` : word), drawn("line", { class: "axis", x1: left, x2: left + each, y1: end, y2: end }));
      const marks = far ? logTicks(low, top) : ticks(low, top, each < 150 ? 2 : 3), every = Math.ceil((marks.length * 36) / each);
      for (const at of marks.filter((_, n) => n % every === 0)) svg.append(drawn("text", { x: left + ((at - low) / (top - low)) * each, y: end + 15, "text-anchor": "middle" }, far ? unlog(at) : short(at)));
      rows.forEach((row, n) => {
        const from = above + head + n * step;
        if (row.first && n) svg.append(drawn("line", { class: "axis", x1: first && !stacked ? 0 : left, x2: left + each, y1: from, y2: from }));
        if (!row.ruled || row.of[name] === null) return;
        const at = x(row.of[name]), rule = (y1, y2) => svg.append(drawn("line", { class: "mark", style: `stroke:${row.colour}`, x1: at, x2: at, y1, y2 }));
        if (stacked) rows.forEach((_, n) => rule(y(n) - 7, y(n) + 7)); // names stand between
        else rule(above + head, end);
      });
      rows.forEach((row, n) => {
        const value = row.of[name], lows = row.of[`${name}_low`] ?? value, highs = row.of[`${name}_high`] ?? value;
        if (first) words(row, stacked ? left : 0, stacked ? y(n) - 15 : y(n));
        if (value === null || value === undefined) return;
        const one = drawn("g", row.control ? { opacity: 0.5 } : {});
        if (bar) one.append(drawn("rect", { x: Math.min(x(0), x(value)), width: Math.abs(x(value) - x(0)), y: y(n) - 6, height: 12, fill: row.colour, opacity: 0.45 }));
        one.append(drawn("line", { x1: x(lows), x2: x(highs), y1: y(n), y2: y(n), stroke: row.colour, "stroke-width": 1.8 }));
        if (!bar) one.append(drawn("circle", { cx: x(value), cy: y(n), r: 4, fill: row.control ? "var(--paper)" : row.colour, stroke: row.colour, "stroke-width": 1.6 }));
        one.append(drawn("title", {}, `${row.label}: ${word} ${spelled(value)}${highs > lows ? ` (${spelled(lows, value)} to ${spelled(highs, value)})` : ""}`));
        svg.append(one);
      });
    });
    return svg;
  }

  let wide = 1100;
  const holder = element("div", {}, draw(wide));
  new ResizeObserver(() => {
    if (!holder.clientWidth || Math.abs(holder.clientWidth - wide) < 4) return;
    wide = holder.clientWidth;
    holder.replaceChildren(draw(wide));
  }).observe(holder);
  return figure(title, holder, { rows: table, make: () => aside(draw(1100)), kind: "broad" });
}

// words in lines of at most `most` letters
function broken(text, most) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1) && lines.at(-1).length + word.length + 1 > most) lines.push("");
    lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return lines;
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
