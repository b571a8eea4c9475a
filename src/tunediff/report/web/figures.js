// Figures as evaluations yield them (shapes.py says what each of their words means): drawn here without knowing whose they are.

const OWN_COLOUR = new Set(["base", "tuned", "adapter", "hybrid", "full", "shared"]);
const OTHERS = ["var(--prefix)", "var(--thinking)", "var(--answer)", "var(--tuned)", "var(--base)", "var(--shared)"];
const LONG = 12; // rows of numbers below a drawing, above which they stand folded
const FEW = 4; // lines whose bands can still be told apart

const known = Number.isFinite;
const range = (row, name) => between(row[`${name}_low`], row[`${name}_high`], row[name]);
const ranged = (row, name) => spelled(row[name]) + (range(row, name) ? ` (${range(row, name)})` : "");
const wordIn = ({ words }, column) => words[column] ?? wordOf(column);
const plain = (value) => wordOf(String(value));
const picker = (word, options, act) => element("label", { class: "soft" }, `${word} `, selector(word, options, act));

function coloursOf(spec) {
  const groups = spec.group ? distinct(spec.columns[spec.group]) : [];
  const others = groups.filter((group) => !OWN_COLOUR.has(group));
  return new Map(groups.map((group) => [group, OWN_COLOUR.has(group) ? `var(--${group})` : OTHERS[others.indexOf(group) % OTHERS.length]]));
}

function sectionsOf(figures) {
  return distinct(figures.map((spec) => spec.section)).map((title) => {
    const mine = figures.filter((spec) => spec.section === title);
    const keys = new Map(mine.flatMap((spec) => tried(() => legendIn(spec), () => [])).map((entry) => [entry.join(), entry]));
    const captions = distinct(mine.map((spec) => spec.caption)).filter(Boolean);
    return section(title, captions.map((caption) => soft(caption)),
      keys.size > 1 ? legendOf([...keys.values()], "legend keys broad") : null,
      element("div", { class: "grid" }, mine.map((spec) => tried(() => shown(spec), (error) => undrawn(spec, error)))));
  });
}

// one figure that fails takes no other with it
function tried(act, otherwise) {
  try { return act(); } catch (error) { return otherwise(error); }
}

const empty = (title, words) => figure(title, soft(words), { make: null });
const undrawn = (spec, error) => empty(String(spec.title), `This figure could not be drawn: ${error.message}`);

// the lines that are drawn, and no others: of some groups all rows are controls, of others none
function legendIn(spec) {
  if (!spec.group || spec.kind === "heat") return [];
  const lines = spec.kind === "lines" && spec.control, rows = rowsOf(spec.columns);
  const has = (group, control) => !lines || rows.some((row) => row[spec.group] === group && Boolean(row[spec.control]) === control);
  return [...coloursOf(spec)].flatMap(([group, colour]) => [
    ...(has(group, false) ? [[plain(group), colour]] : []),
    ...(lines && has(group, true) ? [[`${plain(group)}, ${wordIn(spec, spec.control)}`, colour, true]] : [])]);
}

// one figure with its choices; its drawings lie in the grid of their section
function shown(spec) {
  const rows = rowsOf(spec.columns), chosen = new Map(), holder = element("div", { class: "loose" }), draw = () => {
    const mine = rows.filter((row) => spec.choices.every((column) => !chosen.has(column) || String(row[column]) === chosen.get(column)));
    const facets = spec.facet ? distinct(mine.map((row) => row[spec.facet])) : [null];
    holder.replaceChildren(...tried(() => DRAWN[spec.kind](spec, mine, facets, chosen), (error) => [undrawn(spec, error)]));
  };
  const choose = (key, word, options) => {
    chosen.set(key, options[0][0]);
    return picker(word, options, (value) => { chosen.set(key, value); draw(); });
  };
  const pickers = spec.choices.filter((column) => distinct(spec.columns[column]).length > 1)
    .map((column) => choose(column, wordIn(spec, column), distinct(spec.columns[column]).map((value) => [String(value), plain(value)])));
  if (spec.kind === "heat" && spec.y.length > 1) pickers.push(choose("y", "measured as", spec.y.map((name) => [name, wordIn(spec, name)])));
  const groups = [...coloursOf(spec).keys()];
  if (spec.kind === "lines" && groups.length > 2)
    pickers.push(choose("group", wordIn(spec, spec.group),
      [["", "all, without bands"], ...groups.map((group) => [String(group), plain(group)])]));
  draw();
  return element("div", { class: "loose" }, pickers.length ? element("div", { class: "filters broad" }, pickers) : null, holder);
}

// what stands above one drawing: also what was chosen, for it may be saved and stand alone
function titleOf(spec, facet, chosen, y = null) {
  const choices = spec.choices.filter((column) => chosen.has(column))
    .map((column) => `${wordIn(spec, column)} ${plain(chosen.get(column))}`);
  return [y !== null && spec.y.length > 1 ? wordIn(spec, y) : spec.title, facet, ...choices].filter((part) => part !== null).join(", ");
}

const ofFacet = (spec, rows, facet) => rows.filter((row) => facet === null || row[spec.facet] === facet);

const DRAWN = { lines: curvesIn, points: curvesIn, bars: rowsIn, intervals: rowsIn, heat: heatsIn };

// -- lines and points --------------------------------------------------------------------------------------------------

function curvesIn(spec, rows, facets, chosen) {
  const colours = coloursOf(spec), asked = rows.filter((row) => !chosen.get("group") || String(row[spec.group]) === chosen.get("group"));
  const key = (row) => JSON.stringify([spec.group && row[spec.group], spec.control ? Boolean(row[spec.control]) : false]);
  return facets.flatMap((facet) => spec.y.map((y) => {
    const mine = ofFacet(spec, asked, facet), here = mine.filter((row) => known(row[y]) && known(row[spec.x]));
    const keys = distinct(here.map(key)), bands = spec.columns[`${y}_low`] && keys.length <= FEW;
    const lines = keys.map((one) => {
      const [group, control] = JSON.parse(one), some = here.filter((row) => key(row) === one).sort((a, b) => a[spec.x] - b[spec.x]);
      const parts = [group === null ? null : plain(group), control ? wordIn(spec, spec.control) : null].filter((part) => part !== null);
      const word = parts.join(", ") || wordIn(spec, y), end = (row, which) => (bands ? row[`${y}_${which}`] : null);
      const points = some.map((row) => ({ at: row[spec.x], value: row[y], low: end(row, "low"), high: end(row, "high"),
        said: `${word}, ${wordIn(spec, spec.x)} ${spelled(row[spec.x])}: ${ranged(row, y)}` }));
      return { word, colour: colours.get(group) ?? "var(--thinking)", dashed: control, points };
    });
    const rules = spec.rule ? here.filter((row) => row[spec.rule]).map((row) => row[y]).slice(0, 1) : [];
    const log = (column) => spec.log.includes(column);
    return plot(titleOf(spec, facet, chosen, y), lines, { xWord: wordIn(spec, spec.x), xLog: log(spec.x), yLog: log(y), rules,
      joined: spec.kind === "lines", rows: taken(mine) });
  })).filter(Boolean);
}

// A scale: where a number lies, and the marks of the axis. A logarithmic one with numbers on both sides of zero, or with zero,
// begins two thirds of a factor of ten below the smallest.
function scaleOf(values, log, tried, by = shrinking(values)) {
  const above = values.filter((v) => v > 0), least = lowest(values.filter((v) => v !== 0).map(Math.abs));
  if (!log || !above.length) return { as: (v) => v / by, spell: (v) => short(v * by), marks: () => null, log: false };
  if (!tried) {
    if (!(highest(above) > 8 * least)) return scaleOf(values, false, tried, by);
    return { as: (v) => Math.log10(Math.max(v, least / 2)), spell: unlog, marks: logTicks, log: true };
  }
  const beyond = (v) => Math.log10(Math.abs(v)) - Math.log10(least) + 0.66;
  const as = values.every((v) => v > 0) ? Math.log10 : (v) => (v === 0 ? 0 : Math.sign(v) * beyond(v));
  const all = distinct(values).sort((a, b) => b - a), every = Math.ceil(all.length / 6), marked = all.filter((_, n) => n % every === 0);
  const spell = (at) => { const v = marked.find((one) => as(one) === at); return Number.isInteger(v) ? spelled(v) : short(v); };
  return { as, spell, marks: () => marked.map(as), log: true };
}

// Lines of points { at, value, low, high, said }. `rules` are levels to hold them against; where it `settles`, the axis spans what
// follows the first eighth, and the rest is cut; where x was not tried but measured, its axis has round numbers. A line may say for
// itself whether its points are joined and have dots.
function plot(title, lines, { xWord, xLog, yLog, tried = true, rules = [], joined = true, dots = true, settles = false, rows }) {
  const present = lines.map((line) => ({ joined, dots, ...line, points: line.points.filter((point) => known(point.value)) }))
    .filter((line) => line.points.length);
  if (!present.length) return null;
  const all = present.flatMap(({ points }) => points.slice(settles ? Math.floor(points.length / 8) : 0));
  const scaleX = scaleOf(present.flatMap(({ points }) => points.map((point) => point.at)), xLog, tried);
  const reach = (points) => [...points.flatMap(({ value, low, high }) => [value, low ?? value, high ?? value]), ...rules];
  const scaleY = scaleOf([...all.map((point) => point.value), ...rules], yLog, false, shrinking(reach(all)));
  const kept = (points) => (scaleY.log ? points.filter((point) => point.value > 0) : points); // zero has no place on a logarithmic axis
  const xs = present.flatMap(({ points }) => points.map((point) => scaleX.as(point.at)));
  const sides = tried ? [lowest(xs), highest(xs)] : extent(xs, 0.06);
  const ends = extent(reach(kept(all)).map(scaleY.as), 0.06), titled = scaleY.log ? `${title}; logarithmic` : title;
  const { svg, x, y } = frame(titled, sides, ends, scaleX.log && !tried ? `${xWord}, logarithmic` : xWord,
    { spellX: scaleX.spell, spellY: scaleY.spell, atX: scaleX.marks(...sides), atY: scaleY.marks(...ends) });
  const across = (point) => x(scaleX.as(point.at)).toFixed(1), up = (v) => y(Math.max(ends[0], Math.min(ends[1], scaleY.as(v)))).toFixed(1);
  for (const rule of rules) svg.append(drawn("line", { class: "mark", x1: LEFT, x2: WIDE - RIGHT, y1: up(rule), y2: up(rule) }));
  const along = (points, end) => points.map((point) => `${across(point)},${up(point[end])}`);
  for (const { word, colour, dashed, joined, dots, points: every } of present) {
    const points = kept(every), bounded = points.filter((point) => known(point.low) && known(point.high));
    if (joined) {
      const edge = [...along(bounded, "high"), ...along(bounded, "low").reverse()].join(" ");
      if (edge) svg.append(drawn("polygon", { points: edge, fill: colour, opacity: dashed ? 0.08 : 0.18 }));
      svg.append(drawn("polyline", { points: along(points, "value").join(" "), fill: "none", stroke: colour, "stroke-width": 1.6,
        "stroke-dasharray": dashed ? "4 3" : null, title: `${word}: ${spelled(points.at(-1)?.value)} at the end` }));
    }
    for (const point of dots ? points : []) {
      const mark = drawn("g", { opacity: dashed && !joined ? 0.5 : 1, title: point.said }), at = across(point), sides = { x1: at, x2: at };
      if (!joined && known(point.low)) mark.append(drawn("line", { ...sides, y1: up(point.low), y2: up(point.high), stroke: colour }));
      mark.append(drawn("circle", { cx: at, cy: up(point.value), r: joined ? 2.6 : 3.4, fill: colour }));
      svg.append(mark);
    }
  }
  return figure(titled, svg, { rows });
}

// -- rows of dots or bars with whiskers, a panel a measure -----------------------------------------------------------------

function rowsIn(spec, rows, facets, chosen) {
  const colours = coloursOf(spec), panels = spec.y.filter((name) => rows.some((row) => known(row[name])));
  const columns = panels.map((name) => ({ name, word: wordIn(spec, name), log: spec.log.includes(name) }));
  return facets.flatMap((facet) => {
    const here = ofFacet(spec, rows, facet);
    const parts = (n) => [n - 1, n + 1].some((beside) => here[beside]?.[spec.control]); // controls stand beside it
    const lines = here.map((row, n) => ({ of: row, label: String(row[spec.x]), colour: colours.get(row[spec.group]) ?? "var(--thinking)",
      control: Boolean(row[spec.control]), first: !row[spec.control] && parts(n), ruled: Boolean(row[spec.rule]) }));
    const drawing = () => whiskers(titleOf(spec, facet, chosen), lines, columns, { bar: spec.kind === "bars", table: taken(here) });
    return [...(columns.length ? [drawing()] : []), numbers(spec, here)];
  });
}

// the same numbers to be read, intervals below what they bound
function numbers(spec, rows) {
  const hidden = [spec.group, spec.facet, spec.control, spec.rule, ...spec.choices].filter((name) => name !== spec.x);
  const names = Object.keys(spec.columns).filter((name) => !/_(low|high)$/.test(name) && !hidden.includes(name));
  const some = names.filter((name) => rows.some((row) => !absent(row[name])));
  const wordy = new Set(some.filter((name) => name !== spec.x && rows.some((row) => typeof row[name] === "string")));
  const cell = (row, name) => element("td", { class: wordy.has(name) ? "words" : name === spec.x && row[spec.control] ? "control" : "" },
    typeof row[name] === "string" ? row[name] : spelled(row[name]), range(row, name) ? element("small", {}, range(row, name)) : null);
  const more = some.some((name) => name !== spec.x && !spec.y.includes(name)); // than the drawing shows
  const order = [spec.x, ...some.filter((name) => name !== spec.x)];
  const heads = order.map((name) => headOf(wordIn(spec, name), wordy.has(name)));
  const lines = rows.map((row) => element("tr", row[spec.control] ? { class: "control" } : {}, order.map((name) => cell(row, name))));
  const open = more && rows.length <= LONG ? "" : null;
  return element("details", { class: "broad", open }, element("summary", {}, "The same in numbers"),
    wideTable(heads, lines, { class: "measured" }));
}

// -- heat --------------------------------------------------------------------------------------------------------------------

function heatsIn(spec, rows, facets, chosen) {
  const y = chosen.get("y") ?? spec.y[0], most = rows.reduce((sum, row) => Math.max(sum, row[y] ?? 0), 1e-12);
  const across = distinct(spec.columns[spec.x]), up = distinct(spec.columns[spec.group]).sort((a, b) => a - b);
  const at = (row, column) => `${wordIn(spec, column)} ${row[column]}`, said = element("p", { class: "readout broad", role: "status" });
  const place = (row) => [spec.facet && row[spec.facet], at(row, spec.group), at(row, spec.x)].filter(Boolean).join(", ");
  const measured = (row) => spec.y.filter((name) => known(row[name])).map((name) => `${ranged(row, name)} ${wordIn(spec, name)}`);
  const words = (row) => `${place(row)}: ${measured(row).join(", ")}`;
  said.textContent = "Hover a cell, or choose a grid and use the arrow keys, to read its number.";
  const grids = facets.map((facet) => heat(titleOf(spec, facet, chosen), ofFacet(spec, rows, facet),
    { spec, across, up, y, most, words, say: (row) => (said.textContent = words(row)) }));
  return [element("p", { class: "scale soft broad" }, "0 ", element("i"), ` ${spelled(most)} ${wordIn(spec, y)}`), ...grids, said];
}

function heat(title, rows, { spec, across, up, y: name, most, words, say }) {
  const tall = Math.min(16, Math.max(7, 420 / up.length)), high = TOP + BOTTOM + tall * up.length, cells = new Map();
  const { svg, x, y } = frame(title, [-0.5, across.length - 0.5], [-0.5, up.length - 0.5], wordIn(spec, spec.x),
    { high, spellX: (n) => across[n] ?? "", spellY: (n) => up[n] ?? "" });
  const at = (row) => [across.indexOf(row[spec.x]), up.indexOf(row[spec.group])];
  let lit = null;
  const show = (row) => { cells.get(lit)?.classList.remove("lit"); lit = row; cells.get(row).classList.add("lit"); say(row); };
  svg.append(drawn("text", { x: 0, y: 7 }, wordIn(spec, spec.group)));
  for (const row of rows) {
    const [h, v] = at(row), shade = Math.max(0, 0.05 + 0.95 * ((row[name] ?? 0) / most)).toFixed(3);
    const cell = drawn("rect", { class: "cell", x: x(h - 0.5) + 0.5, y: y(v + 0.5) + 0.5, width: x(1) - x(0) - 1, height: y(0) - y(1) - 1,
      style: "fill:rgb(var(--heat))", "fill-opacity": shade, title: words(row), onpointerenter: () => show(row) });
    cells.set(row, cell);
    svg.append(cell);
  }
  svg.setAttribute("tabindex", 0);
  svg.addEventListener("focus", () => show(lit ?? rows[0]));
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const [h, v] = at(lit ?? rows[0]), next = rows.find((row) => at(row).every((n, k) => n === [h, v][k] + by[k]));
    if (next) show(next);
  });
  return figure(title, svg, { rows: taken(rows) });
}
