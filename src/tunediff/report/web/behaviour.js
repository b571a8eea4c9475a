// What latents do when they are edited, and how well each model solves problems: conditions, curves, sinks.

const GATE_COLOURS = ["var(--thinking)", "var(--prefix)", "var(--answer)", "var(--tuned)", "var(--base)", "var(--shared)"];
const MEASURES = [{ name: "accuracy", word: "accuracy" }, { name: "hesitations", word: "hesitations per 1,000 tokens" }, { name: "tokens", word: "tokens a response", log: true },
  { name: "perplexity", word: "perplexity", log: true }];
const said = (word, text) => element("abbr", { title: text ?? "" }, word);
const present = (columns, name) => columns[name]?.some((v) => v !== null);
const LONG = 12; // rows of numbers beside a figure of the same, above which they stand folded
const distinct = (values) => [...new Set(values)];
const rangeOf = (row, name) => (row[`${name}_low`] === null || row[`${name}_low`] === undefined ? null : element("small", {}, `${spelled(row[`${name}_low`], row[name])} to ${spelled(row[`${name}_high`], row[name])}`));

// a table with its caption and its CSV
function tabled(title, heads, rows, taken) {
  return figure(title, element("div", { class: "wide" }, element("table", { class: "measured" },
    element("thead", {}, element("tr", {}, heads.map((head) => element("th", ["against", "verdict", "the base was asked"].includes(head) ? { class: "words" } : {}, head)))), element("tbody", {}, rows))), { make: null, rows: taken, kind: "broad" });
}

const whole = (columns, hidden = []) => () => { const names = Object.keys(columns).filter((name) => !hidden.includes(name)); return [names, columns[names[0]].map((_, n) => names.map((name) => columns[name][n]))]; };

// -- conditions ----------------------------------------------------------------------------------------------------

function conditions(blocks) {
  if (!blocks?.length) return null;
  return section("Behaviour, condition by condition",
    element("p", { class: "soft" }, "Whiskers and ranges are 95 % intervals. The dashed line continues the condition that others are compared with; rings, paler and indented, are controls of the condition above them. Perplexity is that of the responses under the model without edits. Difference and p, an exact McNemar test problem by problem, are against the condition that is named."),
    blocks.flatMap(conditionsOf));
}

function conditionsOf({ name, task, columns }) {
  const rows = rowsOf(columns), references = new Set(columns.compared.filter((key) => key !== null)), both = new Set(columns.role).size > 1;
  const titles = new Map(rows.map((row) => [row.key, row.title]));
  // a control stands below its condition, whose name it need not repeat
  const brief = (row) => { const above = `${titles.get(row.under)}: `; return row.title.startsWith(above) ? row.title.slice(above.length) : row.title; };
  const named = (row) => brief(row) + (columns.title.filter((title) => title === row.title).length > 1 ? ` · ${row.role}` : "");
  const drawnRows = rows.map((row) => ({ of: row, label: named(row), control: row.control, first: row.under === null, colour: `var(--${row.role})`, ruled: row.compared === null && references.has(row.key) }));
  const table = whole(columns, ["key", "compared", "under"]), title = `${wordOf(name)[0].toUpperCase()}${wordOf(name).slice(1)} on ${task}`;
  const signed = (value) => (value > 0 ? "+" : "") + spelled(value);
  // said of each condition only where they are compared with several
  const several = references.size > 1, only = !several && references.size ? `, differences against “${titles.get([...references][0]) ?? [...references][0]}”` : "";
  const heads = ["condition", "accuracy", "difference", ...(several ? ["against"] : []), "p", ...MEASURES.slice(1).map((measure) => measure.word)];
  const definitions = { finished: "share of responses that ended by themselves", closed: "share of responses that closed their thinking", repetition: "share of repeated text", touched: "share of responses in which the edit changed at least one token", change: "mean norm of what the edit changed, at the tokens where it did" };
  const facts = Object.keys(definitions).filter((fact) => present(columns, fact));
  heads.push(...facts);
  const cells = (row) => [element("td", { class: row.control ? "control" : "", title: row.edit ?? "" }, named(row)), 
    element("td", { title: `${spelled(row.correct)} of ${spelled(row.problems)} right` }, spelled(row.accuracy), rangeOf(row, "accuracy")), element("td", {}, row.difference === null ? "–" : signed(row.difference), row.difference === null ? null : rangeOf(row, "difference")), 
    several ? element("td", { class: "words" }, row.compared === null ? "" : titles.get(row.compared) ?? row.compared) : null, element("td", {}, spelled(row.p)),
    ...MEASURES.slice(1).map((measure) => element("td", {}, spelled(row[measure.name]), rangeOf(row, measure.name))),
    ...facts.map((fact) => element("td", {}, spelled(row[fact])))];
  const edited = rows.find((row) => row.edit && !row.control);
  return [element("h3", {}, title, both ? element("span", { class: "legend keys" }, ["base", "hybrid", "adapter", "tuned", "full"].filter((role) => columns.role.includes(role)).map((role) => element("span", { style: `border-color:var(--${role})` }, role))) : null),
    edited ? element("p", { class: "soft" }, `${named(edited)}: ${edited.edit}`) : null,
    whiskers(`${title}: ${spelled(Math.max(...columns.problems))} problems`, drawnRows, MEASURES.filter((measure) => present(columns, measure.name)), { table }),
    folded("The same in numbers", rows.length > LONG, tabled(`${title}, in numbers${only}`, heads.map((head) => (definitions[head] ? said(head, definitions[head]) : head)), rows.map((row) => element("tr", { class: row.control ? "control" : "" }, cells(row))), table))];
}

const folded = (title, away, content) => element("details", away ? {} : { open: "" }, element("summary", {}, title), content);

// -- accuracy against the budget of tokens ---------------------------------------------------------------------------

const SLOPES = { best_accuracy: "best accuracy", slope_per_1000_tokens: "slope, percentage points per 1,000 tokens", slope_per_doubling: "slope, percentage points per doubling of the budget",
  area: "area under the curve, as a share of the whole" };
const APART = "tuned_less_base";

function budgets(columns) {
  if (!columns) return null;
  const rows = rowsOf(columns);
  const curvesOf = (task) => {
    const mine = rows.filter((row) => row.task === task).sort((a, b) => a.tokens - b.tokens), roles = distinct(mine.map((row) => row.role));
    const lines = roles.map((role) => { const some = mine.filter((row) => row.role === role), of = (name) => some.map((row) => row[name]);
      return { word: role, colour: `var(--${role})`, xs: of("tokens"), values: of("accuracy"), lows: of("accuracy_low"), highs: of("accuracy_high") }; });
    const columnsOf = [...roles, APART].filter((role) => Object.keys(SLOPES).some((name) => FOUND.has(`benchmark/${task}/${role}/${name}`)));
    const names = Object.keys(SLOPES).filter((name) => columnsOf.some((role) => FOUND.has(`benchmark/${task}/${role}/${name}`)));
    const at = (name, role) => FOUND.get(`benchmark/${task}/${role}/${name}`);
    const taken = () => [["measure", ...columnsOf.flatMap((role) => [role, `${role}_low`, `${role}_high`])], names.map((name) => [SLOPES[name], ...columnsOf.flatMap((role) => ["value", "low", "high"].map((part) => at(name, role)?.[part]))])];
    return element("div", { class: "halves" },
      bands(`Accuracy on ${task} against the budget of tokens`, lines, "tokens allowed, doubling", { place: (tokens) => `${spelled(tokens)} tokens`, asX: Math.log2, spellX: (v) => spelled(Math.round(2 ** v)), atX: marks(mine.map((row) => row.tokens)),
        rows: whole(Object.fromEntries(Object.keys(columns).map((name) => [name, mine.map((row) => row[name])]))) }),
      names.length ? tabled(`Slopes on ${task}`, ["", ...columnsOf.map((role) => element("span", { class: role }, wordOf(role)))], names.map((name) => element("tr", {},
        element("td", { class: "words" }, said(SLOPES[name], columnsOf.map((role) => at(name, role)?.meaning).find(Boolean))), columnsOf.map((role) => element("td", {}, spelled(at(name, role)?.value), at(name, role) ? rangeOf(bounded(at(name, role)), "value") : null)))), taken) : null);
  };
  return section("Accuracy against thinking budget",
    element("p", { class: "soft" }, "Each model may write so many tokens and no more. Bands are 95 % intervals over problems."),
    legendOf(distinct(columns.role).map((role) => [role, `var(--${role})`])), distinct(columns.task).map(curvesOf));
}

const bounded = (finding) => ({ value: finding.value, value_low: finding.low, value_high: finding.high });
const legendOf = (entries) => element("p", { class: "legend keys" }, entries.map(([word, colour, dashed]) => element("span", { style: `border-color:${colour}${dashed ? ";border-bottom-style:dashed" : ""}` }, word)));

// marks of a logarithmic axis to base 2: budgets that were tried, six at most, from the largest down
function marks(budgets) {
  const tried = distinct(budgets).sort((a, b) => b - a), every = Math.ceil(tried.length / 6);
  return tried.filter((_, n) => n % every === 0).map(Math.log2);
}

// -- recovery ------------------------------------------------------------------------------------------------------

function recovered(columns, four) {
  if (!columns && !four) return null;
  return section("What the adapter recovers", four ? fourModels(four) : null, columns ? ofFull(columns) : null);
}

function ofFull(columns) {
  const rows = rowsOf(columns), who = ["base", "lora", "full"];
  const share = (row) => (row.recovered === null ? [said("–", `base and full are not told apart, or full is worse: ${spelled(row.gone)} of ${spelled(row.resamples)} resamples are without a gain`)] : [spelled(row.recovered), rangeOf(row, "recovered")]);
  return [element("p", { class: "soft" }, `(lora - base) / (full - base): 0 is the base, 1 the fully fine-tuned model${rows[0].full_model ? `, ${rows[0].full_model}` : ""}. It depends on how the base was asked. Ranges are 95 % intervals, by a bootstrap over problems; a dash stands where nothing was there to recover.`),
    tabled("Share of what full fine-tuning changed", ["share of", "task", ...who, "recovered", "the base was asked"], rows.map((row) => element("tr", {},
      element("td", {}, row.measure), element("td", {}, row.task), who.map((one) => element("td", {}, spelled(row[one]))), element("td", {}, share(row)), element("td", { class: "words" }, row.base_asked))), whole(columns))];
}

// -- steering ------------------------------------------------------------------------------------------------------

function steering(columns) {
  if (!columns) return null;
  const rows = rowsOf(columns).sort((a, b) => a.strength - b.strength), gates = distinct(columns.gate), sizes = columns.strength.filter((v) => v !== 0).map(Math.abs);
  const least = Math.min(...sizes), largest = Math.max(...sizes), below = rows.some((row) => row.strength < 0), plain = rows.find((row) => row.strength === 0);
  // logarithmic on either side of zero, which lies two thirds of a factor of ten before the smallest strength
  const asX = (v) => (v === 0 ? 0 : Math.sign(v) * (Math.log10(Math.abs(v) / least) + 0.66));
  const round = logTicks(Math.log10(least), Math.log10(largest)).map((at) => asX(Number((10 ** at).toPrecision(3))));
  const spellX = (at) => (at === 0 ? "0" : short(Number((Math.sign(at) * least * 10 ** (Math.abs(at) - 0.66)).toPrecision(3))));
  const groups = gates.flatMap((gate, g) => distinct(rows.filter((row) => row.gate === gate).map((row) => row.kind)).map((kind) => ({ gate, kind, colour: GATE_COLOURS[g % GATE_COLOURS.length], dashed: kind === "random_direction" })));
  const called = ({ gate, dashed }) => `${wordOf(gate)}${dashed ? ", random direction" : ""}`;
  const lines = (name, gate) => groups.filter((group) => !gate || group.gate === gate).map((group) => {
    const mine = rows.filter((row) => row.gate === group.gate && row.kind === group.kind && (below || row.strength !== 0)), of = (column) => mine.map((row) => row[column] ?? null), ranged = columns[`${name}_low`] && (gate || gates.length < 3);
    return { ...group, word: called(group), xs: of("strength"), values: of(name), lows: ranged ? of(`${name}_low`) : null, highs: ranged ? of(`${name}_high`) : null };
  });
  const unit = DATA.findings.some((finding) => finding.name.endsWith("/peak_strength") && finding.meaning.includes("residual_norm")) ? "strength, in mean norms of the stream" : "strength, in maxima of the latent";
  const taken = whole(columns), level = (name) => plain?.[name] ?? null, atX = [...(below ? round.map((at) => -at) : []), 0, ...round];
  const drawing = (title, name, more = {}) => (present(columns, name) ? bands(title, lines(name, choice.value), unit, { place: (v) => `strength ${spelled(v)}`, rows: taken, asX, spellX, atX, level: level(name), ...more }) : null);
  const logarithmic = { asY: Math.log10, spellY: unlog, atY: logTicks }, grid = element("div", { class: "grid" }), legend = element("div");
  const choice = element("select", { "aria-label": "gate" }, [["", gates.length < 3 ? "all gates" : "all gates, without bands"], ...gates.map((gate) => [gate, wordOf(gate)])].map(([value, word]) => element("option", { value }, word)));
  const draw = () => {
    legend.replaceChildren(legendOf(groups.filter((group) => !choice.value || group.gate === choice.value).map((group) => [called(group), group.colour, group.dashed])));
    grid.replaceChildren(...[drawing("Hesitations per 1,000 tokens", "behaviour"), drawing("Perplexity of the responses, logarithmic", "perplexity", logarithmic), drawing("Accuracy", "accuracy")].filter(Boolean));
  };
  choice.addEventListener("change", draw);
  draw();
  return section("Steering, from weak to strong",
    element("p", { class: "soft" }, "The axis of strengths is logarithmic and begins with 0, no edit, which the dashed level continues. Bands are 95 % intervals."),
    element("div", { class: "filters" }, element("label", { class: "soft" }, "gate ", choice)), legend, grid, verdicts(gates));
}

// one line a gate: what was found of it, and the note with the verdict
function verdicts(gates) {
  const named = (gate) => `steering_sweep/${gate}/`, notes = DATA.notes.filter((note) => DATA.noted_by?.[note]?.includes("steering")), about = (gate) => notes.filter((note) => note.startsWith(`steering_sweep, ${gate}: `));
  const measures = distinct(gates.flatMap((gate) => DATA.findings.filter((finding) => finding.name.startsWith(named(gate))).map((finding) => finding.name.slice(named(gate).length))));
  const others = notes.filter((note) => !gates.some((gate) => about(gate).includes(note))), at = (gate, measure) => FOUND.get(named(gate) + measure);
  const verdict = (gate) => about(gate).map((note) => note.slice(`steering_sweep, ${gate}: `.length)).join(" ");
  return [...others.map((note) => element("p", { class: "verdict" }, note.replace(/^steering_sweep: /, ""))),
    measures.length ? tabled("What the sweep found, gate by gate", ["gate", ...measures.map((measure) => said(wordOf(measure), gates.map((gate) => at(gate, measure)?.meaning).find(Boolean))), "verdict"],
      gates.map((gate) => element("tr", {}, element("td", {}, wordOf(gate)), measures.map((measure) => element("td", {}, spelled(at(gate, measure)?.value), at(gate, measure) ? rangeOf(bounded(at(gate, measure)), "value") : null)), element("td", { class: "words" }, verdict(gate)))),
      () => [["gate", ...measures.flatMap((measure) => [measure, `${measure}_low`, `${measure}_high`]), "verdict"], gates.map((gate) => [gate, ...measures.flatMap((measure) => ["value", "low", "high"].map((part) => at(gate, measure)?.[part])), verdict(gate)])]) : null];
}

// -- attention sinks -------------------------------------------------------------------------------------------------

const ATTENTION = { mass: "of all attention", relative: "times uniform attention", times: "times the attention on later sentences" };

function sinks(columns) {
  if (!columns) return null;
  const rows = rowsOf(columns), groups = distinct(columns.group), models = distinct(columns.model), grid = element("div", { class: "grid" }), said = element("p", { class: "readout", role: "status" });
  const choice = element("select", { "aria-label": "attention on" }, groups.map((group) => element("option", { value: group }, group)));
  choice.value = groups.includes("prefix") ? "prefix" : groups[0];
  const measure = element("select", { "aria-label": "measured as" }, Object.entries(ATTENTION).filter(([name]) => present(columns, name)).map(([name, word]) => element("option", { value: name }, name === "mass" ? "as a share" : `in ${word}`)));
  const layers = distinct(columns.layer).sort((a, b) => a - b), heads = distinct(columns.head).sort((a, b) => a - b);

  function draw() {
    const group = choice.value, name = measure.value, mine = rows.filter((row) => row.group === group), most = mine.reduce((sum, row) => Math.max(sum, row[name] ?? 0), 1e-12);
    const range = (row) => (row.mass_low === null || row.mass_low === undefined ? "" : ` (${spelled(row.mass_low, row.mass)} to ${spelled(row.mass_high, row.mass)})`), more = (row, name) => (row[name] === null || row[name] === undefined ? "" : `, ${spelled(row[name])} ${ATTENTION[name]}`);
    const words = (row) => `${row.model}, layer ${row.layer}, head ${row.head}: ${spelled(row.mass)}${range(row)} of its attention on ${group}${more(row, "relative")}${more(row, "times")}`;
    said.textContent = "Hover a head, or choose a grid and use the arrow keys, to read its number.";
    grid.replaceChildren(...models.map((model) => headGrid(`Attention on ${group}, ${model}`, mine.filter((row) => row.model === model), { layers, heads, name, most, words, say: (row) => (said.textContent = words(row)) })));
    scale.replaceChildren("0 ", element("i"), ` ${spelled(most)} ${ATTENTION[name]}`);
  }
  const scale = element("span", { class: "scale soft" });
  for (const one of [choice, measure]) one.addEventListener("change", draw);
  draw();
  return section("Attention sinks", element("p", { class: "soft" }, "How much of each head's attention goes to one part of the text, on average over what comes after the opening sentence; both models share the shades."),
    element("div", { class: "filters" }, element("label", { class: "soft" }, "attention on ", choice), measure, scale), grid, said);
}

function headGrid(title, rows, { layers, heads, name, most, words, say }) {
  const tall = Math.min(16, Math.max(7, 420 / layers.length)), high = TOP + BOTTOM + tall * layers.length;
  const { svg, x, y } = frame(title, [-0.5, heads.length - 0.5], [-0.5, layers.length - 0.5], "head", { high, spellX: (n) => heads[n] ?? "", spellY: (n) => layers[n] ?? "" });
  svg.append(drawn("text", { x: 0, y: 7 }, "layer"));
  const cells = new Map();
  let lit = null;
  const show = (row) => { cells.get(lit)?.classList.remove("lit"); lit = row; cells.get(row).classList.add("lit"); say(row); };
  for (const row of rows) {
    const h = heads.indexOf(row.head), l = layers.indexOf(row.layer);
    const cell = drawn("rect", { class: "cell", x: x(h - 0.5) + 0.5, y: y(l + 0.5) + 0.5, width: x(1) - x(0) - 1, height: y(0) - y(1) - 1, style: "fill:rgb(var(--heat))", "fill-opacity": (0.05 + (0.95 * (row[name] ?? 0)) / most).toFixed(3) });
    cell.append(drawn("title", {}, words(row)));
    cell.addEventListener("pointerenter", () => show(row));
    cells.set(row, cell);
    svg.append(cell);
  }
  svg.setAttribute("tabindex", 0);
  svg.addEventListener("focus", () => show(lit ?? rows[0]));
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    const next = by && rows.find((row) => heads.indexOf(row.head) === heads.indexOf(lit.head) + by[0] && layers.indexOf(row.layer) === layers.indexOf(lit.layer) + by[1]);
    if (by) { event.preventDefault(); event.stopPropagation(); }
    if (next) show(next);
  });
  const names = Object.keys(rows[0]);
  return figure(title, svg, { rows: () => [names, rows.map((row) => names.map((name) => row[name]))] });
}

// -- KL patching -----------------------------------------------------------------------------------------------------

function patched(columns) {
  if (!columns) return null;
  const rows = rowsOf(columns), measures = [{ name: "kl", word: "KL, nats a token" }, { name: "closed", word: "share of the gap closed" }].filter((measure) => present(columns, measure.name));
  const place = element("select", { "aria-label": "tokens of" }, distinct(columns.place).map((value) => element("option", { value }, wordOf(value)))), holder = element("div");
  const label = ({ condition, latents }) => wordOf(condition) + (latents ? `, ${latents.toLocaleString("en-US")} latent${latents > 1 ? "s" : ""}` : "");
  const draw = () => {
    const mine = rows.filter((row) => row.place === place.value), names = Object.keys(columns);
    holder.replaceChildren(whiskers(`KL of patched models, tokens of ${wordOf(place.value)}`, mine.map((row) => ({ of: row, label: label(row), control: /^random/.test(row.condition), first: false, ruled: false, colour: "var(--thinking)" })), measures,
      { bar: true, table: () => [names, mine.map((row) => names.map((name) => row[name]))] }));
  };
  place.addEventListener("change", draw);
  draw();
  return section("How near patched models come",
    element("p", { class: "soft" }, "KL(tuned || patched) of the next token on held-out text: base's vectors in place of tuned's, with a part of what the dictionary says of their difference added. Paler: as many latents drawn at random. Whiskers are 95 % intervals."),
    element("div", { class: "filters" }, element("label", { class: "soft" }, "tokens of ", place)), holder);
}

// -- adapters --------------------------------------------------------------------------------------------------------

const LOST = [{ name: "kl_full_ablated", word: "KL(full || ablated), nats", log: true }, { name: "kl_ablated_full", word: "KL(ablated || full), nats", log: true }, { name: "excess", word: "excess CE, nats a token" }, { name: "share", word: "share of the gain lost" }];
function adapters(columns) {
  if (!columns?.by.some((by) => by !== "whole")) return null;
  const rows = rowsOf(columns), kinds = distinct(columns.by).filter((by) => by !== "whole" && by !== "random"), measures = LOST.filter((measure) => present(columns, measure.name)), holder = element("div");
  const by = element("select", { "aria-label": "adapters by" }, kinds.map((kind) => element("option", { value: kind }, kind === "layer_type" ? "layer and type" : kind)));
  const mode = element("select", { "aria-label": "adapters that are" }, [["", "left out"], ...(columns.only.includes(true) ? [["only", "all that is left"]] : [])].map(([value, word]) => element("option", { value }, word)));
  const label = (row) => ({ random: `${row.group} random adapters, draw ${row.draw + 1}`, whole: "all, which leaves the base" }[row.by] ?? `${row.by === "layer" ? "layer " : ""}${row.group}, ${row.adapters} adapter${row.adapters > 1 ? "s" : ""}`);
  const draw = () => {
    const only = mode.value === "only", mine = rows.filter((row) => row.by === by.value && row.only === only), sizes = new Set(mine.map((row) => row.adapters)), names = Object.keys(columns);
    const shown = [...mine, ...rows.filter((row) => row.by === "random" && row.only === only && sizes.has(row.adapters)), ...rows.filter((row) => row.by === "whole" && row.adapters > 0)];
    holder.replaceChildren(whiskers(`Adapters by ${wordOf(by.value)}, ${only ? "alone" : "left out"}`, shown.map((row, n) => ({ of: row, label: label(row), control: row.by === "random", first: shown[n - 1]?.by !== row.by, ruled: false, colour: "var(--tuned)" })), measures,
      { table: () => [names, shown.map((row) => names.map((name) => row[name]))] }));
  };
  for (const one of [by, mode]) one.addEventListener("change", draw);
  draw();
  return section("What each adapter carries",
    element("p", { class: "soft" }, "The tuned model on held-out text without some of its adapters, or with those alone; full is the model with all of them. Rings: as many adapters drawn at random, without which a cost says little. In the last row all are left out. Whiskers are 95 % intervals; costs do not add up."),
    element("div", { class: "filters" }, element("label", { class: "soft" }, "adapters by ", by), element("label", { class: "soft" }, "that are ", mode)), holder);
}

// -- the sections, where their tables are ------------------------------------------------------------------------------

async function behaviour() {
  const found = DATA.behaviour;
  if (!found) return [];
  return [recovered(found.recovered, found.adapter_recovered), ...transcoders(found), conditions(found.conditions), outputs(found.outputs), budgets(found.scaling), steering(found.steering), patched(found.kl), adapters(found.adapters), found.sinks ? sinks(await unpacked("sinks")) : null].filter(Boolean);
}

// a line of links to every section of the page
function contents(sections) {
  const entries = sections.map((one) => {
    const title = one.querySelector("h2").textContent;
    one.id = `to-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
    return element("a", { href: `#${one.id}` }, title);
  });
  return element("nav", { class: "contents", "aria-label": "contents" }, entries);
}
