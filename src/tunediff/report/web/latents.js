// The latents, or other units that are read as latents are: filters, a table that draws only the rows in sight, and the
// panel of one.

async function unpack(name) {
  const node = document.getElementById(`packed-${name}`);
  if (!node) return null;
  const packed = await fetch(`data:application/octet-stream;base64,${node.textContent}`);
  return JSON.parse(await new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).text());
}

const kept = new Map(); // what was unpacked, by name
const unpacked = (name) => (kept.has(name) ? kept.get(name) : kept.set(name, unpack(name)).get(name));

// what is kept of one unit beside its row of the table
const detailOf = async (columns, i, prefix) => (await unpacked(`${prefix}details-${Math.floor(i / DATA.chunk)}`))?.[columns.latent[i]] ?? {};

// what a latent is, before and after latent scaling
function natureOf(columns, i) {
  const kind = columns.kind?.[i], sure = columns.confirmed?.[i];
  if (!kind) return "";
  if (kind === "other") return columns.relative_decoder_norm[i] > 0.5 ? "leans to tuned" : "leans to base";
  return kind.replace("_", "-") + (sure === true ? ", confirmed" : sure === false ? ", not confirmed" : "");
}

// the class that gives it its colour
const tintOf = (columns, i) => columns.kind?.[i]?.replace("_only", "") ?? "";
const colourOf = (columns, i) => `var(--${["base", "tuned"].find((role) => role === tintOf(columns, i)) ?? "shared"})`;

// what a judge said of a latent; nothing for one that was not shown to it, or where its answer could not be read
const classOf = (columns, i) => [columns.class?.[i], columns.domain?.[i]].filter(Boolean).join(", ");
const mechanismOf = (columns, i) => columns.mechanism?.[i]?.replace("_", ", ") ?? "";

const linkTo = (latent) => element("a", { href: `#latent-${latent}` }, String(latent));

// number of a latent -> its row; none where there is no table
const placesIn = (columns) => new Map((columns?.latent ?? []).map((latent, i) => [latent, i]));
const aliveIn = (columns) => columns.latent.map((_, i) => i).filter((i) => !columns.firing_rate || columns.firing_rate[i] > 0);

const KINDS = [["", "all kinds"], ["tuned_only", "tuned-only"], ["tuned_only!", "tuned-only, confirmed"], ["base_only", "base-only"],
  ["base_only!", "base-only, confirmed"], ["shared", "shared"], ["other", "in between"]];

// what can be read so, under the noun that its addresses begin with
const READABLE = {
  latent: { title: "Latents", many: "alive latents", evaluation: "examples", about: "", named: (columns, i) => `Latent ${columns.latent[i]}` },
  unit: { title: "Adapter directions", many: "units that fire", evaluation: "polarity_examples",
    about: " Positive and negative values of an adapter's direction, A x, are units of their own; “writes at most” is the norm that the largest adds to the output of its module.",
    named: (columns, i) => `${columns.adapter[i]}${columns.direction.some(Boolean) ? ` ${columns.direction[i]}` : ""} ${columns.polarity[i]}` },
};

// a section for one of them at a time, columns by noun, with a picker where there are several
function explorers(found) {
  const nouns = Object.keys(found), asked = () => nouns.find((noun) => new RegExp(`^#${noun}\\b`).test(location.hash));
  let shown, node, leave;
  function show(noun) {
    leave?.abort();
    leave = new AbortController();
    const picks = nouns.map((other) => button(READABLE[other].title, () => { history.replaceState(null, "", `#${other}`); show(other); },
      { "aria-pressed": String(other === noun) }));
    const read = { noun, ...READABLE[noun], ...DATA.explored[noun] };
    const made = explorer(found[noun], read, leave.signal, picks.length > 1 ? element("div", { class: "filters" }, picks) : null);
    if (node) made.id = node.id;
    node?.replaceWith(made);
    [shown, node] = [noun, made];
  }
  show(asked() ?? nouns[0]);
  addEventListener("hashchange", () => { if (asked() && asked() !== shown) show(asked()); });
  return node;
}

function explorer(columns, read, signal, picks) {
  const { noun } = read, every = aliveIn(columns), index = placesIn(columns);
  const names = Object.keys(columns), ending = (pattern) => names.flatMap((name) => name.match(pattern)?.slice(1) ?? []);
  const labels = ending(/^auroc\/(.*)/), segments = ending(/^firing_rate\/([a-z]+)$/);
  const sorts = ["relative_decoder_norm", "max_written", "firing_rate", `auroc/${labels[0]}`, "latent"];
  const state = { ask: "", kind: "", segment: "", label: "", above: "", rate: "", sort: sorts.find((name) => columns[name]), up: "" };
  const plain = { ...state };
  let shown = every, chosen = null, words = null, points = null, legend = null;

  // the segment on whose tokens it fires most often
  const mostIn = (i) => segments.reduce((best, name) => (columns[`firing_rate/${name}`][i] > columns[`firing_rate/${best}`][i] ? name : best));

  // columns of words, with what they are sorted by
  const worded = {
    adapter: (i) => columns.adapter[i], polarity: (i) => columns.polarity[i], kind: (i) => natureOf(columns, i), "most in": mostIn,
    fires_on: (i) => columns.fires_on[i].join(" "), class: (i) => classOf(columns, i), mechanism: (i) => mechanismOf(columns, i),
  };
  const there = (name) => (name === "most in" ? segments.length > 1 : name === "direction" ? columns.direction?.some(Boolean) : columns[name]);
  const heads = [["latent", noun, 4.2], ["layer", "layer", 4], ["adapter", "adapter", 8], ["polarity", "sign", 4], ["direction", "direction", 5.2],
    ["relative_decoder_norm", "relative norm", 10.6], ["kind", "kind", 13.2], ["fires_on", "fires on", 9], ["class", "sorted under", 11], ["mechanism", "acts by", 8],
    ["nu_error", "ν error", 4.6], ["nu_reconstruction", "ν reconstr.", 5.6], ["firing_rate", "firing rate", 5.6], ["most in", "most in", 5.6],
    ["decoder_cosine", "cosine", 4.6], ["max_activation", "largest", 4.8], ["max_written", "writes at most", 5.6],
    ...labels.map((name) => [`auroc/${name}`, `AUROC ${wordOf(name)}`, 6.4])].filter(([name]) => there(name)).map(([name, word, wide]) => [name, word, worded[name], wide]);

  // -- which latents ------------------------------------------------------------------------------------------------

  function passes(i) {
    const [kind, sure] = [state.kind.replace("!", ""), state.kind.endsWith("!")];
    if (kind && columns.kind && (columns.kind[i] !== kind || (sure && columns.confirmed?.[i] !== true))) return false;
    if (state.segment && mostIn(i) !== state.segment) return false;
    if (state.label && !(columns[`auroc/${state.label}`][i] >= Number(state.above || 0))) return false;
    return !(state.rate && columns.firing_rate?.[i] < Number(state.rate));
  }

  function matching() {
    const typed = state.ask.trim(), asked = wordsIn(state.ask);
    if (/^\d+$/.test(typed)) return (i) => columns.latent[i] === Number(typed); // in quotes it is a word
    if (!asked.length || !words) return () => true; // until the index is there; then the table is drawn again
    const wanted = asked.map((part) => new Set(words.words.flatMap((word, n) => (word.includes(part) ? [n] : []))));
    return (i) => wanted.every((some) => words.of[i].some((n) => some.has(n)));
  }

  function refresh({ keep = false } = {}) {
    const asked = matching(), value = worded[state.sort] ?? ((i) => columns[state.sort][i]);
    shown = every.filter((i) => passes(i) && asked(i)).sort(ordering(value, !state.up));
    count.textContent = `${many(shown.length)} of ${many(every.length)} ${read.many}`;
    if (!keep) scroll.scrollTop = 0;
    fill();
    points?.draw();
  }

  // -- the table ----------------------------------------------------------------------------------------------------

  const ROW = 29, table = tableOf([], [], { id: "latents", style: `width:max(100%, ${heads.reduce((sum, [, , , wide]) => sum + wide, 0)}rem)` });
  table.prepend(element("colgroup", {}, heads.map(([, , , wide]) => element("col", { style: `width:${wide}rem` }))));
  const scroll = element("div", { class: "rows", tabindex: -1, onscroll: () => requestAnimationFrame(fill) }, table), count = element("span", { class: "soft count" });

  function cell(name, i) {
    const value = columns[name]?.[i];
    if (name === "fires_on") return element("td", { class: "words tokens" }, chips(value));
    if (name === "latent") return element("td", {}, element("a", { href: `#${noun}-${value}`, tabindex: -1 }, String(value)));
    if (name === "relative_decoder_norm") return element("td", {}, element("span", { class: "bar" }, element("i", { style: `left:${value * 90 - 1}px` })), spelled(value));
    if (!worded[name]) return element("td", {}, spelled(value));
    return element("td", { class: `words ${name === "kind" ? tintOf(columns, i) : ""}`, title: name === "class" ? columns.reason[i] : null }, worded[name](i));
  }

  function fill() {
    table.tHead.rows[0].replaceChildren(...sorters(heads, state.sort, !state.up, (name) => {
      [state.up, state.sort] = [name === state.sort && !state.up ? "1" : "", name];
      refresh();
      note();
    }));
    const high = scroll.clientHeight || 420, first = Math.max(0, Math.floor(scroll.scrollTop / ROW) - 6), last = Math.min(shown.length, first + Math.ceil(high / ROW) + 12);
    const room = (rows) => element("tr", { class: "room", style: `height:${rows * ROW}px` });
    const none = element("tr", {}, element("td", { colspan: heads.length, class: "words" }, `None of the ${read.many} matches.`));
    table.tBodies[0].replaceChildren(room(first), ...shown.slice(first, last).map((i) =>
      element("tr", { class: i === chosen ? "latent open" : "latent", id: `${noun}-${columns.latent[i]}`, onclick: () => go(i) }, heads.map(([name]) => cell(name, i)))),
    room(shown.length - last), ...(shown.length ? [] : [none]));
  }

  // -- filters ------------------------------------------------------------------------------------------------------

  const inputs = {};
  const picker = (name, options, word) => (inputs[name] = selector(word, options, () => heard(name)));
  const input = (name, attributes) => (inputs[name] = element("input", { ...attributes, oninput: () => heard(name) }));
  const number = (name, word, step) => input(name, { type: "number", "aria-label": word, placeholder: word, min: 0, step });
  const controls = element("div", { class: "filters" },
    input("ask", { type: "search", placeholder: "number, or words it fires on or writes   /", "aria-label": `search ${noun}s` }),
    columns.kind ? picker("kind", KINDS.filter(([value]) => columns.confirmed || !value.endsWith("!")), "kind") : null,
    segments.length > 1 ? picker("segment", [["", "fires anywhere"], ...segments.map((name) => [name, `most often in ${name}`])], "segment") : null,
    labels.length ? picker("label", [["", "any label"], ...labels.map((name) => [name, `tells ${wordOf(name)}`])], "label") : null,
    labels.length ? number("above", "AUROC from", 0.01) : null,
    columns.firing_rate ? number("rate", "firing rate from", 0.001) : null,
    button("CSV", () => save(`${noun}s.csv`, "text/csv", csv(names, shown.map((i) => names.map((name) => columns[name][i]))))), count);

  async function heard(name) {
    state[name] = inputs[name].value;
    if (name === "label" && state.label && !state.above) inputs.above.value = state.above = "0.8";
    refresh();
    note();
    if (name === "ask" && !words && state.ask.trim()) { words = await unpacked(`${read.prefix}words`); refresh(); }
  }

  // -- the address: #latent-7&kind=shared&sort=firing_rate -----------------------------------------------------------

  function note() {
    const parts = Object.entries(state).filter(([name, value]) => value !== plain[name]).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
    const whole = [...(chosen !== null ? [`${noun}-${columns.latent[chosen]}`] : picks && parts.length ? [noun] : []), ...parts].join("&");
    history.replaceState(null, "", whole ? `#${whole}` : location.pathname + location.search);
  }

  async function obey() {
    const parts = location.hash.slice(1).split("&").filter(Boolean), latent = parts[0]?.match(new RegExp(`^${noun}(?:-(\\d+))?$`));
    for (const part of parts.slice(latent ? 1 : 0)) {
      const [[name, value]] = new URLSearchParams(part);
      if (Object.hasOwn(plain, name) && !(name === "sort" && !heads.some(([head]) => head === value))) state[name] = value;
    }
    for (const [name, input] of Object.entries(inputs)) input.value = state[name];
    if (state.ask && !words) words = await unpacked(`${read.prefix}words`);
    refresh({ keep: true });
    if (latent?.[1] && index.has(Number(latent[1]))) await go(index.get(Number(latent[1])), { quietly: true });
  }

  // -- one latent ---------------------------------------------------------------------------------------------------

  const panel = element("aside", { id: "panel", hidden: "", "aria-label": noun, tabindex: -1 });

  async function go(i, { quietly = false } = {}) {
    chosen = i;
    note();
    const place = shown.indexOf(i) * ROW;
    if (place >= 0 && (place < scroll.scrollTop || place + 2 * ROW > scroll.scrollTop + scroll.clientHeight)) scroll.scrollTop = Math.max(0, place - 120);
    fill();
    const detail = await detailOf(columns, i, read.prefix), vocabulary = await unpacked(`${read.prefix}vocabulary`);
    if (chosen !== i || signal.aborted) return;
    panel.replaceChildren(...latentPanel(columns, i, detail, vocabulary ?? [], { labels, read, close, step }).filter(Boolean));
    panel.hidden = false;
    panel.scrollTop = 0;
    document.body.classList.add("reading");
    if (quietly) scroll.closest("section").scrollIntoView({ block: "start" });
  }

  function close() {
    chosen = null;
    panel.hidden = true;
    document.body.classList.remove("reading");
    note();
    fill();
  }

  function step(by) {
    const place = shown.indexOf(chosen), next = shown[place < 0 ? 0 : place + by];
    if (next !== undefined) go(next);
  }

  addEventListener("keydown", (event) => {
    if (elsewhere(event)) return;
    if (event.key === "Escape" && chosen !== null) { close(); return; }
    if (typing(event)) {
      if (event.key === "Enter" && event.target === inputs.ask && shown.length) go(shown[0]);
      return;
    }
    if (event.key === "/") { event.preventDefault(); inputs.ask.focus(); inputs.ask.scrollIntoView({ block: "center" }); }
    if (event.key === "j" || (event.key === "ArrowRight" && chosen !== null)) step(1);
    if (event.key === "k" || (event.key === "ArrowLeft" && chosen !== null)) step(-1);
  }, { signal });
  addEventListener("hashchange", obey, { signal });
  signal.addEventListener("abort", () => { panel.remove(); document.body.classList.remove("reading"); });

  // -- every latent as a point --------------------------------------------------------------------------------------

  if (columns.relative_decoder_norm && columns.firing_rate) {
    const some = every.map((i) => ({ i, latent: columns.latent[i], x: columns.relative_decoder_norm[i], y: Math.log10(columns.firing_rate[i]),
      colour: colourOf(columns, i), hollow: columns.confirmed?.[i] === false }));
    const low = Math.floor(Math.min(lowest(some.map((point) => point.y)), -1));
    let lit = null, of = null; // which points pass, worked out once a change of `shown`
    points = scatter(`${many(some.length)} alive latents`, some, {
      xs: [0, 1], ys: [low, 0], xWord: "relative decoder norm: 0 base-only, 1 tuned-only", yWord: "firing rate",
      spellY: (v) => (!Number.isInteger(v) ? "" : v > -3 ? String(10 ** v) : `1e${v}`),
      bright: (point) => { if (of !== shown) [lit, of] = [new Set(shown), shown]; return lit.has(point.i); },
      onpick: (point) => go(point.i),
      words: (point) => `latent ${point.latent}: ${natureOf(columns, point.i)}, fires on ${spelled(100 * columns.firing_rate[point.i])} %`,
    });
    legend = legendOf([["tuned-only", "var(--tuned)"], ["base-only", "var(--base)"], ["shared or in between", "var(--shared)"]]);
    if (columns.confirmed) legend.append(element("small", {}, "A ring: latent scaling does not confirm it."));
  }

  const node = section(read.title, picks,
    soft(`Click a row${points ? " or a point" : ""} to read a ${noun}.${read.about}${read.tables.includes("examples") ? "" : ` ${notRun(read)}`}`,
      " Keys: / searches, Enter opens the first, j and k go on and back, Esc closes."),
    columns.fires_on || read.tables.includes("logit_effect") ? soft(SPELLED) : null,
    points?.node, legend, controls, scroll);
  document.body.append(panel);
  refresh();
  // once the page is laid out
  requestAnimationFrame(() => { fill(); obey(); });
  return node;
}

// -- what is shown of one latent -----------------------------------------------------------------------------------------

const notRun = ({ evaluation }) => `The evaluation “${evaluation}” was not run.`;
const FACTS = ["layer", "relative_decoder_norm", "decoder_cosine", ["norm_base", "norm in base"], ["norm_tuned", "norm in tuned"], ["nu_error", "ν error"], ["nu_reconstruction", "ν reconstruction"],
  "firing_rate", ["mean_activation", "mean when active"], ["max_activation", "largest"], ["max_written", "writes at most"], ["twin_correlation", "best correlation in a twin"]];

function latentPanel(columns, i, detail, vocabulary, { labels, read, close, step }) {
  const latent = columns.latent[i], shown = detail.examples ? rowsOf(detail.examples) : null, relative = columns.relative_decoder_norm?.[i];
  const facts = [...FACTS.map((fact) => (typeof fact === "string" ? [fact, wordOf(fact)] : fact)), ...labels.map((label) => [`auroc/${label}`, `AUROC ${wordOf(label)}`])];
  return [
    element("header", {}, element("h2", {}, read.named(columns, i)), element("span", { class: `nature ${tintOf(columns, i)}` }, natureOf(columns, i)),
      element("nav", {}, button("‹", () => step(-1), { title: "previous (k)" }), button("›", () => step(1), { title: "next (j)" }),
        shown ? button("CSV", () => saveExamples(read.noun, latent, shown, vocabulary), { title: "save its examples" }) : null, button("×", close, { title: "close (Esc)" }))),
    relative === undefined ? null : element("div", { class: "norms" }, element("span", { class: "base" }, "base"),
      element("span", { class: "bar long" }, element("i", { style: `left:calc(${100 * relative}% - 1px)` })), element("span", { class: "tuned" }, "tuned")),
    scalingWords(columns, i), sortedWords(columns, i),
    element("dl", { class: "facts" }, facts.filter(([name]) => columns[name]).map(([name, word]) => element("div", {}, element("dt", {}, word), element("dd", {}, spelled(columns[name][i]))))),
    detail.segments ? places(latent, read.places, detail.segments) : null,
    effects(detail.logit_effect), neighbourLinks(detail.neighbours), ...examples(shown, vocabulary, read),
  ];
}

function places(latent, names, segments) {
  const rates = names.map((name) => segments[`rate/${name}`][0]);
  return bars(`Firing rate of latent ${latent}, by place (thinking in tenths)`, [0, names.length],
    names.map((name, n) => [[rates[n], `var(--${name.split("/")[0]})`, `${name}: ${spelled(rates[n])}`]]),
    { least: 1e-12, gap: 1.5, names: names.map((name) => name.split("/").at(-1)), spellX: () => "", wide: 720, high: 180,
      rows: () => [["place", "firing_rate"], names.map((name, n) => [name, rates[n]])] });
}

function scalingWords(columns, i) {
  const error = columns.nu_error?.[i], restored = columns.nu_reconstruction?.[i];
  if (absent(error)) return null;
  const [own, other] = columns.relative_decoder_norm[i] >= 0.5 ? ["tuned", "base"] : ["base", "tuned"];
  const first = error >= 0.2 ? `what the dictionary leaves of ${other} still holds this direction` : `nothing of it is left in ${other}'s error`;
  const second = restored >= 0.5 ? `other latents write it into ${other}` : `no other latent writes it into ${other}`;
  return soft(`Latent scaling, taken as a latent of ${own}: ${first} (ν error ${spelled(error)}); ${second} (ν reconstruction ${spelled(restored)}).`);
}

function sortedWords(columns, i) {
  const sorted = classOf(columns, i), acts = mechanismOf(columns, i), reason = columns.reason?.[i];
  return sorted ? soft(`A language model sorts it under ${sorted}${acts ? `, acting by ${acts}` : ""}${reason ? `: ${reason}` : "."}`) : null;
}

function effects(columns) {
  if (!columns) return null;
  const rows = rowsOf(columns), list = (role, sign) => element("div", { class: "tokens" }, rows.filter((row) => row.role === role && row.sign === sign)
    .map((row) => element("span", { title: signed(row.effect) }, visible(row.token))));
  return element("div", {}, element("h3", {}, "What it writes"), element("div", { class: "effects" }, distinct(columns.role).map((role) =>
    element("div", {}, element("h4", { class: role }, role), element("small", {}, "raises"), list(role, 1), element("small", {}, "lowers"), list(role, -1)))));
}

const neighbourLinks = (columns) => (columns ? element("p", { class: "near" }, element("small", {}, "Nearest decoder rows: "),
  columns.neighbour.flatMap((latent, n) => [n ? ", " : "", linkTo(latent), ` ${spelled(columns.cosine[n])}`])) : null);

const SEGMENT_NAMES = DATA.segment_names;
const EXAMPLE_KINDS = { strongest: "Strongest", quantile: "Over its range", random: "Documents at random" };

function examples(rows, vocabulary, read) {
  if (!rows) return [read.tables.includes("examples") ? element("p", {}, "It fired on none of the held-out tokens read for examples.") : soft(notRun(read))];
  const segments = SEGMENT_NAMES.filter((name) => rows.some((row) => row.s.includes(read.segments.indexOf(name))));
  return [legendOf(segments.map((name) => [name, `var(--${name})`]), "legend"),
    ...distinct(rows.map((row) => row.kind)).flatMap((kind) => [element("h3", {}, EXAMPLE_KINDS[kind] ?? kind),
      ...windows(rows.filter((row) => row.kind === kind), vocabulary, read.segments, highest(rows.map((row) => row.largest)))])];
}

// examples as they are read, shaded by their shares of `top`
const windows = (rows, vocabulary, segments, top) => rows.map((row) => {
  const quantile = absent(row.quantile) ? null : 100 * row.quantile;
  const title = `document ${row.document}${row.place === undefined ? "" : `, token ${row.place}`}${quantile === null ? "" : `, stronger than ${spelled(quantile)} % of the documents it fires in`}`;
  return element("div", { class: "example" }, element("small", { title }, spelled(row.activation) + (quantile === null ? "" : ` · ${Math.round(quantile)} %`)),
    element("div", { title }, row.t.map((token, n) => {
      const value = (row.a[n] / DATA.shares) * row.largest, heat = Math.min(1, Math.abs(value) / top);
      const shade = heat > 0 ? `;background:rgba(var(--heat),${(0.12 + 0.6 * heat).toFixed(2)})` : "";
      return element("span", { class: n === row.position && value !== 0 ? "peak" : null, title: value !== 0 ? spelled(value) : null,
        style: `border-color:var(--${segments[row.s[n]]})${shade}` }, inParts(vocabulary[token]));
    })));
});

function saveExamples(noun, latent, rows, vocabulary) {
  const whole = rows.map((row) => ({ ...row, latent, peak: vocabulary[row.t[row.position]], text: row.t.map((token) => textOf(vocabulary[token])).join("") }));
  save(`${noun}-${latent}.csv`, "text/csv", csv(...taken(whole, ["latent", "kind", "rank", "document", "place", "activation", "peak", "text"])()));
}
