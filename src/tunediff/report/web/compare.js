// The payload of several runs -> their comparison: one row a member, figures that follow the filter.

const MEMBERS = DATA.members;
const KEYS = Object.keys(MEMBERS[0]?.keys ?? {});
const COLOURS = ["#2166ac", "#d9730d", "#1b9e77", "#7c5cc4", "#c2447f", "#8c6d1f", "#3a9fb5", "#6b7075", "#e0a100", "#16406b", "#7bb662", "#b03a2e", "#a58bd8", "#1d5c4a"];
const EV = "fidelity/explained_variance/pooled", L0 = "fidelity/l0/mean";
const METRICS = [...new Set(MEMBERS.flatMap((m) => Object.keys(m.metrics)))];
const HEADLINE = Object.entries(DATA.headline).filter(([name]) => METRICS.includes(name));

const metric = (m, name) => m.metrics[name]?.[0] ?? null;
const words = (value) => (value === null || value === undefined ? "–" : typeof value === "number" ? String(value) : Array.isArray(value) ? value.join(", ") : String(value));
const brief = (name) => name.replace(/^(fidelity|geometry)\//, "").replaceAll("_", " ").replaceAll("/", " ");
const named = (m) => KEYS.map((key) => `${key}=${words(m.keys[key])}`).join(" ") || m.identity;
// a layer as the models count it, also where a relative depth was asked for
const layerOf = (m) => { const found = /\.(\d+)(?:,|$)/.exec(m.study.streams ?? ""); return found ? Number(found[1]) : typeof m.keys.layer === "number" ? m.keys.layer : null; };
const AXES = [["layer", layerOf], ...KEYS.filter((key) => key !== "layer").map((key) => [key, (m) => m.keys[key] ?? null]), ...METRICS.map((name) => [name, (m) => metric(m, name)])];
const axis = (name) => AXES.find(([word]) => word === name)?.[1] ?? (() => null);
const numeric = (name) => MEMBERS.some((m) => typeof axis(name)(m) === "number") && MEMBERS.every((m) => axis(name)(m) === null || typeof axis(name)(m) === "number");

let asked = "", sortBy = KEYS[0] ?? "state", falling = false;
let colourBy = KEYS.find((key) => key.startsWith("dictionary")) ?? KEYS.find((key) => key !== "layer" && key !== "seed") ?? KEYS[0] ?? "state";
const CURVES = [...new Set(MEMBERS.flatMap((m) => Object.keys(m.curves)))].filter((name) => name !== "tokens");
const choice = { x: L0, y: EV, layerMetric: METRICS.includes(EV) ? EV : METRICS[0], curve: CURVES.includes("explained_variance/pooled") ? "explained_variance/pooled" : CURVES[0] ?? "" };

const groupOf = (m) => words(colourBy === "layer" ? layerOf(m) : m.keys[colourBy] ?? m.study.dictionary);
const groups = () => [...new Set(MEMBERS.map(groupOf))];
const colourOf = (m) => COLOURS[groups().indexOf(groupOf(m)) % COLOURS.length];

function chosen() {
  const terms = asked.toLowerCase().split(/\s+/).filter(Boolean);
  return MEMBERS.filter((m) => { const text = `${named(m)} ${m.state} ${m.identity} ${m.error ?? ""} ${m.study.model_pair ?? ""}`.toLowerCase(); return terms.every((term) => text.includes(term)); });
}

function picker(label, options, value, change) {
  const select = element("select", { "aria-label": label }, options.map((name) => element("option", name === value ? { value: name, selected: "" } : { value: name }, name)));
  select.addEventListener("change", () => { change(select.value); draw(); });
  return element("label", {}, `${label} `, select);
}

// -- the table -----------------------------------------------------------------------------------------------------

function table(members) {
  const columns = [...KEYS.map((key) => [key, key, (m) => m.keys[key]]), ["state", "state", (m) => m.state], ["page", "page", (m) => m.identity],
    ...HEADLINE.map(([name, word]) => [name, word, (m) => metric(m, name)])];
  const of = columns.find(([name]) => name === sortBy)?.[2] ?? ((m) => m.state);
  const order = [...members].sort((a, b) => {
    const [p, q] = [of(a), of(b)];
    const way = typeof p === "number" && typeof q === "number" ? p - q : p === null || p === undefined ? 1 : q === null || q === undefined ? -1 : words(p).localeCompare(words(q));
    return falling ? -way : way;
  });
  const state = (m) => (!["finished", "failed"].includes(m.state) && m.step !== null && m.step !== undefined ? `${m.state} ${m.step.toLocaleString("en-US")}/${(m.steps ?? m.step).toLocaleString("en-US")}` : m.state);
  return element("div", { class: "wide" }, element("table", { id: "members" },
    element("thead", {}, element("tr", {}, columns.map(([name, word, value]) => element("th", { title: name, "aria-sort": name === sortBy ? (falling ? "descending" : "ascending") : null, class: members.some((m) => typeof value(m) === "string") ? "words" : null },
      element("button", { type: "button", onclick: () => { falling = name === sortBy ? !falling : false; sortBy = name; draw(); } }, word))))),
    element("tbody", {}, order.map((m) => element("tr", { class: m.error ? "wrong" : "" },
      columns.map(([name, , value], n) => element("td", { class: typeof value(m) === "string" ? "words" : null, title: m.metrics[name]?.[1] !== null && m.metrics[name] ? `${spelled(m.metrics[name][1])} to ${spelled(m.metrics[name][2])}` : null },
        n === 0 ? element("i", { class: "dot", style: `background:${colourOf(m)}` }) : null,
        n < KEYS.length ? words(value(m)) : name === "state" ? state(m) : name === "page" ? (m.page ? element("a", { href: m.page }, m.identity) : m.identity) : spelled(value(m)))))),
      order.length ? [] : element("tr", {}, element("td", { colspan: columns.length }, "No member matches.")))));
}

// -- figures -------------------------------------------------------------------------------------------------------

const span = (values) => { const low = Math.min(...values), high = Math.max(...values), room = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1; return [low - room, high + room]; };

function dots(title, members, x, y, xWord, joined) {
  const found = members.map((m) => [m, x(m), y(m)]).filter(([, a, b]) => typeof a === "number" && typeof b === "number");
  const least = Math.min(...found.map((p) => p[1])), log = least > 0 && Math.max(...found.map((p) => p[1])) > 20 * least;
  const points = log ? found.map(([m, a, b]) => [m, Math.log10(a), b]) : found;
  if (!points.length) return element("figure", {}, element("figcaption", {}, title), element("p", { class: "soft" }, "No finished member has both."));
  const { svg, x: atX, y: atY } = frame(title, span(points.map((p) => p[1])), span(points.map((p) => p[2])), log ? `${xWord}, logarithmic` : xWord, log ? { spellX: (at) => short(Number((10 ** at).toPrecision(2))) } : {});
  for (const group of groups()) {
    const mine = points.filter(([m]) => groupOf(m) === group);
    const line = joined(mine.map(([, a, b]) => [a, b]).sort((p, q) => p[0] - q[0]));
    if (line.length > 1) svg.append(drawn("polyline", { points: line.map(([a, b]) => `${atX(a).toFixed(1)},${atY(b).toFixed(1)}`).join(" "), fill: "none", stroke: colourOf(mine[0][0]), "stroke-width": 1.4, opacity: 0.7 }));
    for (const [m, a, b] of mine) {
      const dot = drawn("circle", { cx: atX(a), cy: atY(b), r: 4, fill: colourOf(m) });
      dot.append(drawn("title", {}, `${named(m)}\n${xWord} ${spelled(log ? 10 ** a : a)}, ${title.split(" against")[0]} ${spelled(b)}`));
      svg.append(dot);
    }
  }
  return element("figure", {}, element("figcaption", {}, title), svg);
}

// the best of what costs no more
const frontier = (points) => points.filter(([, b], i) => points.slice(0, i).every(([, other]) => other < b));
const means = (points) => [...new Set(points.map(([a]) => a))].map((a) => { const here = points.filter((p) => p[0] === a).map((p) => p[1]); return [a, here.reduce((s, v) => s + v, 0) / here.length]; });

function exclusives(members) {
  const kinds = [["geometry/count/base_only", "base-only", "var(--base)"], ["geometry/count/tuned_only", "tuned-only", "var(--tuned)"]];
  const counted = members.filter((m) => kinds.every(([name]) => metric(m, name) !== null));
  if (!counted.length) return null;
  const largest = Math.max(1, ...counted.flatMap((m) => kinds.map(([name]) => metric(m, name))));
  return element("figure", { class: "broad" }, element("figcaption", {}, "Exclusive latents: base-only (blue) and tuned-only (orange)"),
    element("div", { class: "bars" }, counted.flatMap((m) => [element("span", { title: m.identity }, named(m)), element("span", {}, kinds.map(([name, word, colour]) =>
      element("b", { title: `${metric(m, name)} ${word}`, style: `display:block;height:7px;margin:1px 0;background:${colour};width:${(100 * metric(m, name)) / largest}%` }))),
      element("span", {}, kinds.map(([name]) => metric(m, name)).join(" / "))])));
}

function curves(members) {
  const having = members.filter((m) => m.curves[choice.curve]?.length > 1);
  const title = `${brief(choice.curve)} over tokens, on training batches`;
  if (!having.length) return element("figure", {}, element("figcaption", {}, title), element("p", { class: "soft" }, "No member has this curve."));
  const settled = having.flatMap((m) => m.curves[choice.curve].slice(Math.floor(m.curves.tokens.length / 8))).filter((v) => v !== null);
  const [low, high] = span(settled), clip = (v) => Math.max(low, Math.min(high, v));
  const { svg, x, y } = frame(title, [0, Math.max(...having.map((m) => m.curves.tokens.at(-1)))], [low, high], "tokens");
  for (const m of having) {
    const line = drawn("polyline", { fill: "none", stroke: colourOf(m), "stroke-width": 1.3, opacity: 0.8,
      points: m.curves[choice.curve].map((v, i) => (v === null ? null : `${x(m.curves.tokens[i]).toFixed(1)},${y(clip(v)).toFixed(1)}`)).filter(Boolean).join(" ") });
    line.append(drawn("title", {}, `${named(m)}: ${spelled(m.curves[choice.curve].at(-1))}`));
    svg.append(line);
  }
  return element("figure", {}, element("figcaption", {}, title), svg);
}

// -- the page ------------------------------------------------------------------------------------------------------

const search = element("input", { type: "search", placeholder: "filter: layer=12 l1, failed, ...", "aria-label": "filter members" });
search.addEventListener("input", () => { asked = search.value; draw(); });
const body = element("div");

function draw() {
  const members = chosen();
  const numbers = AXES.map(([name]) => name).filter(numeric);
  const wrong = MEMBERS.filter((m) => m.error);
  body.replaceChildren(...[
    table(members),
    section("Figures",
      element("p", { class: "pickers" }, picker("colour", [...KEYS, ...(KEYS.length ? [] : ["state"])], colourBy, (v) => { colourBy = v; }),
        METRICS.length ? picker("metric against layer", METRICS.filter(numeric), choice.layerMetric, (v) => { choice.layerMetric = v; }) : null,
        CURVES.length ? picker("curve", CURVES, choice.curve, (v) => { choice.curve = v; }) : null),
      element("p", { class: "legend" }, groups().map((group, n) => element("span", { style: `border-color:${COLOURS[n % COLOURS.length]}` }, group))),
      element("div", { class: "grid" },
        dots("Explained variance against L0", members, axis(L0), axis(EV), "L0", frontier),
        dots(`${brief(choice.layerMetric)} against layer`, members, layerOf, axis(choice.layerMetric), "layer", means),
        curves(members))),
    exclusives(members),
    wrong.length ? section("What failed, and why", element("ul", {}, wrong.map((m) => element("li", {}, element("b", {}, named(m)), `: ${m.state}, ${m.error} `, m.log ? element("a", { href: m.log }, "log") : null)))) : null,
    section("Any two", element("p", { class: "pickers" }, picker("x", numbers, choice.x, (v) => { choice.x = v; }), picker("y", numbers, choice.y, (v) => { choice.y = v; })),
      element("div", { class: "grid" }, dots(`${brief(choice.y)} against ${brief(choice.x)}`, members, axis(choice.x), axis(choice.y), brief(choice.x), () => []))),
  ].filter(Boolean));
}

const count = (state) => MEMBERS.filter((m) => m.state === state).length;
const states = [...new Set(MEMBERS.map((m) => m.state))].map((state) => `${count(state)} ${state}`).join(", ");
document.getElementById("page").replaceChildren(
  element("header", {}, element("h1", {}, `${MEMBERS.length} runs side by side: `, [...new Set(MEMBERS.map((m) => m.study.model_pair).filter(Boolean))].join(", ") || DATA.folder),
    element("p", { class: "soft" }, `${states}, as of ${DATA.asked}. Hover a number for its 95 % interval, click a heading to sort.`)),
  search, body);
draw();
document.body.dataset.drawn = performance.now().toFixed(0);
