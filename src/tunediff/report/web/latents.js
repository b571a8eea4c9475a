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

const KIND_WORDS = { base_only: "base-only", shared: "shared", tuned_only: "tuned-only", other: "in between" };

// what a latent is, before and after latent scaling
function natureOf(columns, i) {
  const kind = columns.kind?.[i], sure = columns.confirmed?.[i];
  if (!kind) return "";
  if (kind === "other") return columns.relative_decoder_norm[i] > 0.5 ? "leans to tuned" : "leans to base";
  return KIND_WORDS[kind] + (sure === true ? ", confirmed" : sure === false ? ", not confirmed" : "");
}

// what a judge said of a latent; nothing for one that was not shown to it, or where its answer could not be read
const classOf = (columns, i) => [columns.class?.[i], columns.domain?.[i]].filter(Boolean).join(", ");
const mechanismOf = (columns, i) => columns.mechanism?.[i]?.replace("_", ", ") ?? "";

function colourOf(columns, i) {
  const kind = columns.kind?.[i];
  return kind === "tuned_only" ? "var(--tuned)" : kind === "base_only" ? "var(--base)" : "var(--shared)";
}

// columns of equal length -> one object a row; windows of examples are cut out of the whole
function rowsOf(columns) {
  if (!columns) return null;
  const cut = (some) => { const names = Object.keys(some); return some[names[0]].map((_, n) => Object.fromEntries(names.map((name) => [name, some[name][n]]))); };
  if (!columns.t) return cut(columns);
  const { t, a, s, length, ...plain } = columns;
  let from = 0;
  return cut(plain).map((row, n) => {
    const to = from + length[n], windowed = { ...row, t: t.slice(from, to), a: a.slice(from, to), s: s.slice(from, to) };
    from = to;
    return windowed;
  });
}

const alive = (columns, i) => !columns.firing_rate || columns.firing_rate[i] > 0;

const KINDS = [["", "all kinds"], ["tuned_only", "tuned-only"], ["tuned_only!", "tuned-only, confirmed"], ["base_only", "base-only"],
  ["base_only!", "base-only, confirmed"], ["shared", "shared"], ["other", "in between"]];

// what can be read so, under the noun that its addresses begin with
const READABLE = {
  latent: { title: "Latents", many: "alive latents", evaluation: "examples", named: (columns, i) => `Latent ${columns.latent[i]}` },
  unit: { title: "Adapter directions", many: "units that fire", evaluation: "polarity_examples",
    named: (columns, i) => `${columns.adapter[i]}${columns.direction.some(Boolean) ? ` ${columns.direction[i]}` : ""} ${columns.polarity[i]}` },
};

// a section for one of them at a time, columns by noun, with a picker where there are several
function explorers(found) {
  const nouns = Object.keys(found), asked = () => nouns.find((noun) => new RegExp(`^#${noun}\\b`).test(location.hash));
  let shown, node, leave;
  function show(noun) {
    leave?.abort();
    leave = new AbortController();
    const picks = nouns.map((other) => element("button", { type: "button", "aria-pressed": String(other === noun), onclick: () => { history.replaceState(null, "", `#${other}`); show(other); } }, READABLE[other].title));
    const made = explorer(found[noun], { noun, ...READABLE[noun], ...DATA.explored[noun] }, leave.signal, picks.length > 1 ? element("div", { class: "filters" }, picks) : null);
    if (node) made.id = node.id;
    node?.replaceWith(made);
    [shown, node] = [noun, made];
  }
  show(asked() ?? nouns[0]);
  addEventListener("hashchange", () => { if (asked() && asked() !== shown) show(asked()); });
  return node;
}

function explorer(columns, read, signal, picks) {
  const labels = Object.keys(columns).filter((name) => name.startsWith("auroc/")).map((name) => name.slice(6));
  const segments = Object.keys(columns).filter((name) => /^firing_rate\/[a-z]+$/.test(name)).map((name) => name.slice(12));
  const every = columns.latent.map((_, i) => i).filter((i) => alive(columns, i)), { noun } = read;
  const index = new Map(columns.latent.map((latent, i) => [latent, i]));
  const state = { ask: "", kind: "", segment: "", label: "", above: "", rate: "", sort: ["relative_decoder_norm", "max_written", "firing_rate", `auroc/${labels[0]}`, "latent"].find((name) => columns[name]), up: "" };
  let shown = every, chosen = null, words = null, points = null;

  const texts = ["adapter", "polarity", "kind", "fires_on", "most in", "class", "mechanism"];
  const heads = [["latent", noun, "4.2rem"], ["layer", "layer", "4rem"], ["adapter", "adapter", "8rem"], ["polarity", "sign", "4rem"], ["direction", "direction", "5.2rem"], ["relative_decoder_norm", "relative norm", "10.6rem"], ["kind", "kind", "13.2rem"], ["fires_on", "fires on", "9rem"], ["class", "sorted under", "11rem"], ["mechanism", "acts by", "8rem"],
    ["nu_error", "ν error", "4.6rem"], ["nu_reconstruction", "ν reconstr.", "5.6rem"], ["firing_rate", "firing rate", "5.6rem"],
    ["most in", "most in", "5.6rem"], ["decoder_cosine", "cosine", "4.6rem"], ["max_activation", "largest", "4.8rem"], ["max_written", "writes at most", "5.6rem"],
    ...labels.map((name) => [`auroc/${name}`, `AUROC ${wordOf(name)}`, "6.4rem"])].filter(([name]) => (name === "direction" ? columns.direction?.some(Boolean) : columns[name]) || (name === "most in" && segments.length > 1));

  // the segment on whose tokens it fires most often
  const mostIn = (i) => segments.reduce((best, name) => (columns[`firing_rate/${name}`][i] > columns[`firing_rate/${best}`][i] ? name : best));

  // -- which latents ------------------------------------------------------------------------------------------------

  function passes(i) {
    if (state.kind && columns.kind) {
      const [kind, sure] = [state.kind.replace("!", ""), state.kind.endsWith("!")];
      if (columns.kind[i] !== kind || (sure && columns.confirmed?.[i] !== true)) return false;
    }
    if (state.segment && mostIn(i) !== state.segment) return false;
    if (state.label && !(columns[`auroc/${state.label}`][i] >= Number(state.above || 0))) return false;
    return !(state.rate && columns.firing_rate?.[i] < Number(state.rate));
  }

  function matching() {
    const typed = state.ask.trim().toLowerCase(), asked = typed.replaceAll('"', "");
    if (!asked) return () => true;
    if (/^\d+$/.test(typed)) return (i) => columns.latent[i] === Number(typed); // in quotes it is a word
    if (!words) return () => true; // until the index is there; then the table is drawn again
    const wanted = asked.split(/\s+/).map((part) => new Set(words.words.flatMap((word, n) => (word.includes(part) ? [n] : []))));
    return (i) => wanted.every((some) => words.of[i].some((n) => some.has(n)));
  }

  function refresh({ keep = false } = {}) {
    const asked = matching(), name = state.sort, sign = state.up ? 1 : -1;
    const value = name === "kind" ? (i) => natureOf(columns, i) : name === "most in" ? mostIn : name === "fires_on" ? (i) => columns.fires_on[i].join(" ") : name === "class" ? (i) => classOf(columns, i) : name === "mechanism" ? (i) => mechanismOf(columns, i) : (i) => columns[name][i];
    shown = every.filter((i) => passes(i) && asked(i)).sort((a, b) => {
      const [p, q] = [value(a), value(b)];
      return typeof p === "string" ? sign * p.localeCompare(q) : sign * ((p ?? -Infinity) - (q ?? -Infinity)) || columns.latent[a] - columns.latent[b];
    });
    count.textContent = `${shown.length.toLocaleString("en-US")} of ${every.length.toLocaleString("en-US")} ${read.many}`;
    if (!keep) scroll.scrollTop = 0;
    fill();
    points?.draw();
  }

  // -- the table ----------------------------------------------------------------------------------------------------

  const ROW = 29, body = element("tbody"), head = element("tr");
  const table = element("table", { id: "latents", style: `width:max(100%, ${heads.reduce((sum, [, , wide]) => sum + parseFloat(wide), 0)}rem)` },
    element("colgroup", {}, heads.map(([, , wide]) => element("col", { style: `width:${wide}` }))), element("thead", {}, head), body);
  const scroll = element("div", { class: "rows", tabindex: -1 }, table), count = element("span", { class: "soft count" });

  function cell(name, i) {
    if (name === "fires_on") return element("td", { class: "words tokens" }, columns.fires_on[i].map((token) => element("span", {}, visible(token))));
    if (name === "most in") return element("td", { class: "words" }, mostIn(i));
    if (name === "adapter" || name === "polarity") return element("td", { class: "words" }, columns[name][i]);
    if (name === "class") return element("td", { class: "words", title: columns.reason[i] }, classOf(columns, i));
    if (name === "mechanism") return element("td", { class: "words" }, mechanismOf(columns, i));
    const value = columns[name][i];
    if (name === "latent") return element("td", {}, element("a", { href: `#${noun}-${value}`, tabindex: -1 }, String(value)));
    if (name === "relative_decoder_norm") return element("td", {}, element("span", { class: "bar" }, element("i", { style: `left:${value * 90 - 1}px` })), spelled(value));
    if (name === "kind") return element("td", { class: "words " + columns.kind[i].replace("_only", "") }, natureOf(columns, i));
    return element("td", {}, spelled(value));
  }

  function fill() {
    head.replaceChildren(...heads.map(([name, word]) => element("th", { class: texts.includes(name) ? "words" : null, "aria-sort": name !== state.sort ? null : state.up ? "ascending" : "descending" },
      element("button", { type: "button", onclick: () => { state.up = name === state.sort && !state.up ? "1" : ""; state.sort = name; refresh(); note(); } }, word))));
    const high = scroll.clientHeight || 420, first = Math.max(0, Math.floor(scroll.scrollTop / ROW) - 6), last = Math.min(shown.length, first + Math.ceil(high / ROW) + 12);
    const room = (rows) => element("tr", { class: "room", style: `height:${rows * ROW}px` });
    body.replaceChildren(room(first), ...shown.slice(first, last).map((i) => {
      const latent = columns.latent[i];
      return element("tr", { class: i === chosen ? "latent open" : "latent", id: `${noun}-${latent}`, onclick: () => go(i) }, heads.map(([name]) => cell(name, i)));
    }), room(shown.length - last));
    if (!shown.length) body.append(element("tr", {}, element("td", { colspan: heads.length, class: "words" }, `None of the ${read.many} matches.`)));
  }
  scroll.addEventListener("scroll", () => requestAnimationFrame(fill));

  // -- filters ------------------------------------------------------------------------------------------------------

  const inputs = {};
  const picker = (name, options, word) => (inputs[name] = element("select", { "aria-label": word }, options.map(([value, said]) => element("option", { value }, said))));
  const number = (name, word, step) => (inputs[name] = element("input", { type: "number", "aria-label": word, placeholder: word, min: 0, step }));
  inputs.ask = element("input", { type: "search", placeholder: "number, or words it fires on or writes   /", "aria-label": `search ${noun}s` });
  const controls = element("div", { class: "filters" }, inputs.ask,
    columns.kind ? picker("kind", KINDS.filter(([value]) => columns.confirmed || !value.endsWith("!")), "kind") : null,
    segments.length > 1 ? picker("segment", [["", "fires anywhere"], ...segments.map((name) => [name, `most often in ${name}`])], "segment") : null,
    labels.length ? picker("label", [["", "any label"], ...labels.map((name) => [name, `tells ${wordOf(name)}`])], "label") : null,
    labels.length ? number("above", "AUROC from", 0.01) : null,
    columns.firing_rate ? number("rate", "firing rate from", 0.001) : null,
    element("button", { type: "button", onclick: () => saveTable() }, "CSV"), count);
  for (const [name, input] of Object.entries(inputs))
    input.addEventListener(input.tagName === "SELECT" ? "change" : "input", async () => {
      state[name] = input.value;
      if (name === "label" && input.value && !state.above) inputs.above.value = state.above = "0.8";
      refresh();
      note();
      if (name === "ask" && !words && input.value.trim()) { words = await unpacked(`${read.prefix}words`); refresh(); }
    });

  function saveTable() {
    const names = Object.keys(columns);
    save(`${noun}s.csv`, "text/csv", csv(names, shown.map((i) => names.map((name) => columns[name][i]))));
  }

  // -- the address: #latent-7&kind=shared&sort=firing_rate -----------------------------------------------------------

  const plain = { ...state };
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
    const place = shown.indexOf(i);
    if (place >= 0 && (place * ROW < scroll.scrollTop || (place + 2) * ROW > scroll.scrollTop + scroll.clientHeight)) scroll.scrollTop = Math.max(0, place * ROW - 120);
    fill();
    const latent = columns.latent[i], chunk = await unpacked(`${read.prefix}details-${Math.floor(i / DATA.chunk)}`), vocabulary = await unpacked(`${read.prefix}vocabulary`);
    if (chosen !== i || signal.aborted) return;
    panel.replaceChildren(...latentPanel(columns, i, chunk?.[latent] ?? {}, vocabulary ?? [], { labels, read, close, step }).filter(Boolean));
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
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && chosen !== null) { close(); return; }
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName ?? "")) {
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
    points = scatter(`${some.length.toLocaleString("en-US")} alive latents`, some, {
      xs: [0, 1], ys: [low, 0], xWord: "relative decoder norm: 0 base-only, 1 tuned-only", yWord: "firing rate", spellY: (v) => (Number.isInteger(v) ? (v > -3 ? String(10 ** v) : `1e${v}`) : ""),
      bright: (point) => { if (of !== shown) [lit, of] = [new Set(shown), shown]; return lit.has(point.i); },
      onpick: (point) => go(point.i),
      words: (point) => `latent ${point.latent}: ${natureOf(columns, point.i)}, fires on ${spelled(100 * columns.firing_rate[point.i])} %`,
    });
  }

  const left = read.tables.includes("examples") ? "" : ` The evaluation “${read.evaluation}” was not run.`;
  const what = noun === "unit" ? " Positive and negative values of an adapter's direction, A x, are units of their own; “writes at most” is the norm that the largest adds to the output of its module." : "";
  const node = section(read.title, picks,
    element("p", { class: "soft" }, `Click a row${points ? " or a point" : ""} to read a ${noun}.${what}${left} Keys: / searches, Enter opens the first, j and k go on and back, Esc closes.`),
    points?.node, element("p", { class: "keys legend" }, ["tuned-only", "base-only", "shared or in between"].map((word, n) =>
      points ? element("span", { style: `border-color:var(--${["tuned", "base", "shared"][n]})` }, word) : null),
      points && columns.confirmed ? element("small", {}, "A ring: latent scaling does not confirm it.") : null),
    controls, scroll);
  document.body.append(panel);
  refresh();
  // once the page is laid out
  requestAnimationFrame(() => { fill(); obey(); });
  return node;
}

// -- what is shown of one latent -----------------------------------------------------------------------------------------

function latentPanel(columns, i, detail, vocabulary, { labels, read, close, step }) {
  const latent = columns.latent[i], number = (name) => columns[name]?.[i], shown = rowsOf(detail.examples);
  const rates = read.places.map((place) => detail.segments?.[`rate/${place}`]?.[0]);
  const button = (word, title, act) => element("button", { type: "button", title, onclick: act }, word);
  const facts = [["layer", number("layer")], ["relative decoder norm", number("relative_decoder_norm")], ["decoder cosine", number("decoder_cosine")], ["norm in base", number("norm_base")],
    ["norm in tuned", number("norm_tuned")], ["ν error", number("nu_error")], ["ν reconstruction", number("nu_reconstruction")], ["firing rate", number("firing_rate")],
    ["mean when active", number("mean_activation")], ["largest", number("max_activation")], ["writes at most", number("max_written")],
    ...labels.map((label) => [`AUROC ${wordOf(label)}`, number(`auroc/${label}`)])].filter(([, value]) => value !== undefined);
  const relative = number("relative_decoder_norm");
  return [
    element("header", {}, element("h2", {}, read.named(columns, i)), element("span", { class: `nature ${number("kind")?.replace("_only", "") ?? ""}` }, natureOf(columns, i)),
      element("nav", {}, button("‹", "previous (k)", () => step(-1)), button("›", "next (j)", () => step(1)),
        shown ? button("CSV", "save its examples", () => saveExamples(`${read.noun}-${latent}`, shown, vocabulary)) : null, button("×", "close (Esc)", close))),
    relative === undefined ? null : element("div", { class: "norms" }, element("span", { class: "base" }, "base"), element("span", { class: "bar long" }, element("i", { style: `left:calc(${100 * relative}% - 1px)` })), element("span", { class: "tuned" }, "tuned")),
    scalingWords(columns, i), sortedWords(columns, i),
    element("dl", { class: "facts" }, facts.map(([word, value]) => element("div", {}, element("dt", {}, word), element("dd", {}, spelled(value))))),
    detail.segments ? bars(`Firing rate of latent ${latent}, by place (thinking in tenths)`, read.places, rates, read.places.map((place) => `var(--${place.split("/")[0]})`), "firing_rate") : null,
    effects(rowsOf(detail.logit_effect)), neighbourLinks(rowsOf(detail.neighbours)), ...examples(shown, vocabulary, read),
  ];
}

function scalingWords(columns, i) {
  const error = columns.nu_error?.[i], restored = columns.nu_reconstruction?.[i];
  if (error === null || error === undefined) return null;
  const own = columns.relative_decoder_norm[i] >= 0.5 ? "tuned" : "base", other = own === "tuned" ? "base" : "tuned";
  const first = error >= 0.2 ? `what the dictionary leaves of ${other} still holds this direction (ν error ${spelled(error)})` : `nothing of it is left in ${other}'s error (ν error ${spelled(error)})`;
  const second = restored >= 0.5 ? `other latents write it into ${other} (ν reconstruction ${spelled(restored)})` : `no other latent writes it into ${other} (ν reconstruction ${spelled(restored)})`;
  return element("p", { class: "soft" }, `Latent scaling, taken as a latent of ${own}: ${first}; ${second}.`);
}

function sortedWords(columns, i) {
  const sorted = classOf(columns, i), acts = mechanismOf(columns, i), reason = columns.reason?.[i];
  return sorted ? element("p", { class: "soft" }, `A language model sorts it under ${sorted}${acts ? `, acting by ${acts}` : ""}${reason ? `: ${reason}` : "."}`) : null;
}

function effects(rows) {
  if (!rows?.length) return null;
  const roles = [...new Set(rows.map((row) => row.role))];
  const list = (role, sign) => element("div", { class: "tokens" }, rows.filter((row) => row.role === role && row.sign === sign)
    .map((row) => element("span", { title: `${row.effect > 0 ? "+" : ""}${spelled(row.effect)}` }, visible(row.token))));
  return element("div", {}, element("h3", {}, "What it writes"), element("div", { class: "effects" }, roles.map((role) => element("div", {}, element("h4", { class: role }, role),
    element("small", {}, "raises"), list(role, 1), element("small", {}, "lowers"), list(role, -1)))));
}

function neighbourLinks(rows) {
  if (!rows?.length) return null;
  return element("p", { class: "near" }, element("small", {}, "Nearest decoder rows: "), rows.flatMap((row, n) => [n ? ", " : "", element("a", { href: `#latent-${row.neighbour}` }, String(row.neighbour)), ` ${spelled(row.cosine)}`]));
}

const visible = (token) => token.replaceAll("\n", "↵").replace(/^ /, "␣");
const SEGMENT_NAMES = ["prompt", "prefix", "thinking", "answer", "text"];
const EXAMPLE_KINDS = { strongest: "Strongest", quantile: "Over its range", random: "Documents at random" };

function examples(rows, vocabulary, read) {
  if (!rows) return read.tables.includes("examples") ? [element("p", {}, "It fired on none of the held-out tokens read for examples.")] : [element("p", { class: "soft" }, `The evaluation “${read.evaluation}” was not run.`)];
  const top = Math.max(...rows.map((row) => row.largest));
  const kinds = [...new Set(rows.map((row) => row.kind ?? "strongest"))];
  return [element("p", { class: "legend" }, SEGMENT_NAMES.filter((name) => rows.some((row) => row.s.includes(read.segments.indexOf(name)))).map((name) => element("span", { class: `s-${name}` }, name))),
    ...kinds.flatMap((kind) => [element("h3", {}, EXAMPLE_KINDS[kind] ?? kind),
      ...rows.filter((row) => (row.kind ?? "strongest") === kind).map((row) => example(row, vocabulary, top, read.segments))])];
}

function example(row, vocabulary, top, segments) {
  const where = `document ${row.document}${row.place === undefined ? "" : `, token ${row.place}`}${row.quantile === null || row.quantile === undefined ? "" : `, stronger than ${spelled(100 * row.quantile)} % of the documents it fires in`}`;
  return element("div", { class: "example" }, element("small", { title: where }, row.quantile === null || row.quantile === undefined ? spelled(row.activation) : `${spelled(row.activation)} · ${Math.round(100 * row.quantile)} %`),
    element("div", { title: where }, row.t.map((token, n) => {
      const value = (row.a[n] / DATA.shares) * row.largest, heat = Math.min(1, Math.abs(value) / top);
      return element("span", { class: `s-${segments[row.s[n]]}${n === row.position && value !== 0 ? " peak" : ""}`, title: value !== 0 ? spelled(value) : null,
        style: heat > 0 ? `background:rgba(var(--heat),${(0.12 + 0.6 * heat).toFixed(2)})` : null }, vocabulary[token].replaceAll("\n", "↵"));
    })));
}

function saveExamples(name, rows, vocabulary) {
  const text = (row) => row.t.map((token) => vocabulary[token]).join("");
  save(`${name}.csv`, "text/csv", csv(["latent", "kind", "rank", "document", "place", "activation", "peak", "text"],
    rows.map((row) => [name.split("-")[1], row.kind, row.rank, row.document, row.place, row.activation, vocabulary[row.t[row.position]], text(row)])));
}
