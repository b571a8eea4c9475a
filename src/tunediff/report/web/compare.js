// The payload of several runs -> their comparison: one row a member, figures that follow the filter.

const MEMBERS = DATA.members;
const KEYS = Object.keys(MEMBERS[0]?.keys ?? {});
const COLOURS = ["#2166ac", "#d9730d", "#1b9e77", "#7c5cc4", "#c2447f", "#8c6d1f", "#3a9fb5", "#6b7075", "#e0a100", "#16406b", "#7bb662", "#b03a2e", "#a58bd8", "#1d5c4a"];
const EV = "fidelity/explained_variance/pooled", L0 = "fidelity/l0/mean";
const METRICS = distinct(MEMBERS.flatMap((m) => Object.keys(m.metrics)));
const HEADLINE = Object.entries(DATA.headline).filter(([name]) => METRICS.includes(name));
const FINE_TUNES = MEMBERS.every((m) => m.study.recipe); // which have neither layer nor dictionary
const CURVES = distinct(MEMBERS.flatMap((m) => Object.keys(m.curves))).filter((name) => name !== "tokens");

const metric = (m, name) => m.metrics[name]?.[0] ?? null;
const within = ([, low, high, over]) => [between(low, high), over ? `over ${over}` : ""].filter(Boolean).join(" ");
const words = (value) => (absent(value) ? "–" : Array.isArray(value) ? value.join(", ") : String(value));
const brief = (name) => wordOf(name.replace(/^(fidelity|geometry)\//, "")).replaceAll("/", " ");
const named = (m) => KEYS.map((key) => `${key}=${words(m.keys[key])}`).join(" ") || m.identity;
// a layer as the models count it, also where a relative depth was asked for
function layerOf(m) {
  const found = /\.(\d+)(?:,|$)/.exec(m.study.streams ?? "");
  return found ? Number(found[1]) : typeof m.keys.layer === "number" ? m.keys.layer : null;
}
const AXES = new Map([["layer", layerOf], ...KEYS.filter((key) => key !== "layer").map((key) => [key, (m) => m.keys[key]]), ...METRICS.map((name) => [name, (m) => metric(m, name)])]);
const numeric = (name) => {
  const values = MEMBERS.map(AXES.get(name)).filter((value) => !absent(value));
  return values.length > 0 && values.every((value) => typeof value === "number");
};

const PAIRS = distinct(MEMBERS.map((m) => m.study.model_pair).filter(Boolean)), LAYERS = distinct(MEMBERS.map((m) => m.study.layer).filter((layer) => !absent(layer)));

let asked = "", sortBy = KEYS[0] ?? "state", falling = false;
// what the figures show, by what a picker calls it
const choice = {
  colour: KEYS.find((key) => key.startsWith("dictionary")) ?? KEYS.find((key) => key !== "layer" && key !== "seed") ?? KEYS[0] ?? "state",
  "metric against layer": METRICS.includes(EV) ? EV : METRICS[0], curve: CURVES.includes("explained_variance/pooled") ? "explained_variance/pooled" : CURVES[0] ?? "", x: METRICS.includes(L0) ? L0 : HEADLINE[0]?.[0], y: METRICS.includes(EV) ? EV : HEADLINE[1]?.[0],
};

const groupOf = (m) => words(choice.colour === "layer" ? layerOf(m) : m.keys[choice.colour] ?? m.study.dictionary);
const groups = () => distinct(MEMBERS.map(groupOf));
const colourOf = (group) => COLOURS[groups().indexOf(group) % COLOURS.length];

function chosen() {
  const terms = asked.toLowerCase().split(/\s+/).filter(Boolean);
  const textOf = (m) => [named(m), m.state, m.identity, m.error, m.study.model_pair].join(" ").toLowerCase();
  return MEMBERS.filter((m) => terms.every((term) => textOf(m).includes(term)));
}

function choosing(word, options) {
  const select = selector(word, options.map((name) => [name, name]), (value) => { choice[word] = value; draw(); });
  select.value = choice[word];
  return options.length ? element("label", {}, `${word} `, select) : null;
}

// -- the table -----------------------------------------------------------------------------------------------------

function table(members) {
  const counted = ({ state, step, steps }) => (["finished", "failed"].includes(state) || absent(step) ? state : `${state} ${many(step)}/${many(steps ?? step)}`);
  // name, heading, value, and the value as it is shown
  const columns = [...KEYS.map((key) => [key, key, (m) => m.keys[key], (m) => words(m.keys[key])]), ...(PAIRS.length > 1 ? [["models", "models", (m) => m.study.model_pair, (m) => words(m.study.model_pair)]] : []), ["state", "state", (m) => m.state, counted],
    ["page", "page", (m) => m.identity, (m) => (m.page ? element("a", { href: m.page }, m.identity) : m.identity)],
    ...HEADLINE.map(([name, word]) => [name, word, (m) => metric(m, name), (m) => spelled(metric(m, name))])];
  const order = [...members].sort(ordering(columns.find(([name]) => name === sortBy)[2], falling));
  const heads = columns.map(([name, word, value]) => [name, word, members.some((m) => typeof value(m) === "string")]);
  const rows = order.map((m) => element("tr", { class: m.error ? "wrong" : "" }, columns.map(([name, , value, shown], n) =>
    element("td", { class: typeof value(m) === "string" ? "words" : null, title: within(m.metrics[name] ?? []) },
      n === 0 ? element("i", { class: "dot", style: `background:${colourOf(groupOf(m))}` }) : null, shown(m)))));
  return wideTable(sorters(heads, sortBy, falling, (name) => { [falling, sortBy] = [name === sortBy && !falling, name]; draw(); }),
    rows.length ? rows : element("tr", {}, element("td", { colspan: columns.length }, "No member matches.")), { id: "members" });
}

// -- figures -------------------------------------------------------------------------------------------------------

// a dot a member, and for each colour a line through those that `joined` keeps of its [x, y]
function dots(title, members, x, y, xWord, joined) {
  const found = members.map((m) => ({ group: groupOf(m), member: named(m), at: x(m), value: y(m) })).filter(({ at, value }) => known(at) && known(value));
  if (!found.length) return empty(title, "No finished member has both.");
  const lines = groups().flatMap((word) => {
    const mine = found.filter(({ group }) => group === word).sort((a, b) => a.at - b.at), line = { word, colour: colourOf(word) };
    const said = (one) => `${one.member}\n${xWord} ${spelled(one.at)}, ${title.split(" against")[0]} ${spelled(one.value)}`;
    return [{ ...line, points: joined(mine), dots: false }, { ...line, points: mine.map((one) => ({ ...one, said: said(one) })), joined: false }];
  });
  return plot(title, lines, { xWord, xLog: found.every(({ at }) => at > 0), tried: false, rows: taken(found, ["member", "group", "at", "value"]) });
}

// the best of what costs no more
const frontier = (points) => points.filter(({ value }, i) => points.slice(0, i).every((other) => other.value < value));
const means = (points) => distinct(points.map(({ at }) => at)).map((at) => {
  const here = points.filter((point) => point.at === at).map(({ value }) => value);
  return { at, value: here.reduce((sum, v) => sum + v, 0) / here.length };
});

function exclusives(members) {
  const roles = ["base", "tuned"], count = (m, role) => metric(m, `geometry/count/${role}_only`);
  const counted = members.filter((m) => roles.every((role) => count(m, role) !== null));
  if (!counted.length) return null;
  const largest = highest([1, ...counted.flatMap((m) => roles.map((role) => count(m, role)))]);
  const bar = (role, size) => element("b", { title: `${size} ${role}-only`, style: `background:var(--${role});width:${(100 * size) / largest}%` });
  const shown = element("div", { class: "bars" }, counted.flatMap((m) => [element("span", { title: m.identity }, named(m)),
    element("span", {}, roles.map((role) => bar(role, count(m, role)))), element("span", {}, roles.map((role) => count(m, role)).join(" / "))]));
  const rows = taken(counted.map((m) => ({ member: named(m), base_only: count(m, "base"), tuned_only: count(m, "tuned") })));
  return figure("Exclusive latents: base-only (blue) and tuned-only (orange)", shown, { make: null, kind: "broad", rows });
}

function curves(members) {
  const title = `${brief(choice.curve)} over tokens, on training batches`;
  const lines = members.filter((m) => m.curves[choice.curve]?.length > 1).map((m) => ({ word: named(m), colour: colourOf(groupOf(m)),
    points: m.curves[choice.curve].map((value, n) => ({ member: named(m), at: m.curves.tokens[n], value })) }));
  return plot(title, lines, { xWord: "tokens", dots: false, settles: true, rows: taken(lines.flatMap(({ points }) => points)) }) ?? empty(title, "No member has this curve.");
}

// -- the page ------------------------------------------------------------------------------------------------------

const search = element("input", { type: "search", placeholder: "filter: layer=12 l1, failed, ...", "aria-label": "filter members", oninput: () => { asked = search.value; draw(); } });
const body = element("div");

function draw() {
  const members = chosen(), numbers = [...AXES.keys()].filter(numeric), wrong = MEMBERS.filter((m) => m.error);
  const against = (title, x, y, xWord, joined) => dots(`${title} against ${xWord}`, members, AXES.get(x) ?? (() => null), AXES.get(y) ?? (() => null), xWord, joined);
  body.replaceChildren(...[
    table(members), claims(DATA.claims),
    section("Figures",
      element("p", { class: "pickers" }, choosing("colour", KEYS.length ? KEYS : ["state"]), FINE_TUNES ? null : choosing("metric against layer", METRICS.filter(numeric)), choosing("curve", CURVES)),
      legendOf(groups().map((group) => [group, colourOf(group)]), "legend"),
      element("div", { class: "grid" },
        ...(FINE_TUNES ? [] : [against("Explained variance", L0, EV, "L0", frontier),
          against(brief(choice["metric against layer"] ?? ""), "layer", choice["metric against layer"], "layer", means)]),
        curves(members))),
    exclusives(members),
    wrong.length ? section("What failed, and why", element("ul", {}, wrong.map((m) =>
      element("li", {}, element("b", {}, named(m)), `: ${m.state}, ${m.error} `, m.log ? element("a", { href: m.log }, "log") : null)))) : null,
    section("Any two", element("p", { class: "pickers" }, choosing("x", numbers), choosing("y", numbers)),
      element("div", { class: "grid" }, against(brief(choice.y), choice.x, choice.y, brief(choice.x), () => []))),
  ].filter(Boolean));
}

const states = distinct(MEMBERS.map((m) => m.state)).map((state) => `${MEMBERS.filter((m) => m.state === state).length} ${state}`).join(", ");
document.getElementById("page").replaceChildren(
  element("header", {}, element("h1", {}, `${MEMBERS.length} runs side by side: `, PAIRS.join(", ") || DATA.folder),
    soft(KEYS.includes("layer") || LAYERS.length !== 1 ? "" : LAYERS[0] === "all" ? "All layers. " : `Layer ${LAYERS[0]}. `, `${states}, as of ${DATA.asked}. Hover a number for its 95 % interval, click a heading to sort.`)),
  search, body);
draw();
document.body.dataset.drawn = performance.now().toFixed(0);
