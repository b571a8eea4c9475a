// What transcoder adapters do in place of the tuned MLPs: partial replacements, layers, and sets of their latents.

const WITH = { adapter: "adapter", hybrid: "hybrid, without adapter" };
const FIRST = { adapter_first: ["adapted layers first", "layers from the adapted model"], tuned_first: ["tuned layers first", "layers from the tuned model"] };
const colourOfRole = (role) => `var(--${role})`;

// -- MLPs replaced from below and from above ---------------------------------------------------------------------------

function replaced({ replacement, nmse, layers }) {
  if (!replacement && !nmse && !layers) return null;
  const rows = replacement ? rowsOf(replacement).sort((a, b) => a.cutoff - b.cutoff) : [];
  const plots = [...Object.keys(FIRST).flatMap((direction) => (rows.some((row) => row.direction === direction) ? [divergence(direction, rows.filter((row) => row.direction === direction), Object.keys(replacement))] : [])),
    ...(replacement && present(replacement, "lm_loss") ? [losses(rows, replacement)] : []), ...(nmse ? [errors(nmse)] : []), ...(layers ? byLayer(layers) : [])].filter(Boolean);
  return section("Replacing MLPs layer by layer",
    element("p", { class: "soft" }, "The model is cut at a layer: on one side of the cut the MLPs are those of base with the adapter beside them (hybrid: with nothing beside them), on the other the tuned ones. KL is that of the next token, KL(tuned || cut), in nats a token. Bands are 95 % intervals; where all layers are tuned the KL is 0, which a logarithmic axis does not show."),
    legendOf([...Object.entries(WITH).map(([role, word]) => [word, colourOfRole(role)]), ...(replacement && present(replacement, "lm_loss") ? [["dashed: tuned layers first", "var(--soft)", true]] : [])]),
    element("div", { class: "grid" }, plots));
}

// a line for the adapter and one for the hybrid; `floor` keeps the ends of intervals on a logarithmic axis
const linesOf = (rows, name, { floor = (v) => v, ...more } = {}) => Object.keys(WITH).filter((role) => rows.some((row) => row.with === role)).map((role) => {
  const mine = rows.filter((row) => row.with === role), ranged = mine.some((row) => typeof row[`${name}_low`] === "number");
  return { word: role, colour: colourOfRole(role), xs: mine.map((row) => row.cutoff), values: mine.map((row) => row[name]),
    ...(ranged ? { lows: mine.map((row) => floor(row[`${name}_low`])), highs: mine.map((row) => floor(row[`${name}_high`])) } : {}), ...more };
});

function divergence(direction, rows, names) {
  const above = rows.map((row) => row.kl).filter((v) => v > 0), least = Math.min(...above), logarithmic = above.length > 1 && Math.max(...above) > 8 * least;
  const lines = linesOf(logarithmic ? rows.filter((row) => row.kl > 0) : rows, "kl", logarithmic ? { floor: (v) => Math.max(v, least / 2) } : {}), [title, word] = FIRST[direction];
  return bands(`KL, ${title}${logarithmic ? "; logarithmic" : ""}`, lines, word, { place: (cutoff) => `${cutoff} ${word}`, rows: () => [names, rows.map((row) => names.map((name) => row[name]))],
    ...(logarithmic ? { asY: Math.log10, spellY: unlog, atY: logTicks } : {}) });
}

function losses(rows, columns) {
  const lines = Object.keys(FIRST).flatMap((direction) => linesOf(rows.filter((row) => row.direction === direction), "lm_loss", { dashed: direction === "tuned_first" })).map((line) => ({ ...line, lows: null, highs: null })); // four bands would hide each other
  return bands("Loss of the next token, nats", lines, "layers before the cut", { place: (cutoff) => `cut after ${cutoff} layers`, rows: whole(columns) });
}

function errors(columns) {
  const lines = Object.keys(WITH).filter((role) => columns[role]).map((role) => ({ word: role, colour: colourOfRole(role), xs: columns.point, values: columns[role] }));
  return bands("Residual stream, squared error", lines, "after so many layers", { place: (point) => `after ${point} layers`, rows: whole(columns) });
}

const OF_A_LAYER = { l0: "L0, active latents a token", decoder_norm: "Median norm of decoder rows", dead_fraction: "Latents that never fired, share" };
const byLayer = (columns) => Object.entries(OF_A_LAYER).filter(([name]) => columns[name]?.some(Boolean)).map(([name, title]) =>
  bands(title, [{ word: title, colour: colourOfRole("adapter"), xs: columns.layer, values: columns[name] }], "layer", { place: (layer) => `layer ${layer}`, rows: whole(columns) }));

// -- recovery beside the hybrid ----------------------------------------------------------------------------------------------

const FOUR = { base: "base", hybrid: "hybrid: tuned model, base MLPs", adapter: "adapter", tuned: "tuned" };
const OF_WHAT = { recovered_of_hybrid: "share recovered, from the hybrid", recovered_of_base: "share recovered, from base" };

function fourModels(columns) {
  const rows = rowsOf(columns), measures = distinct(columns.measure), shares = Object.keys(OF_WHAT).filter((name) => columns[name]);
  const of = (task, who) => Object.fromEntries(measures.map((measure) => [measure, rows.find((row) => row.task === task && row.measure === measure)?.[who] ?? null]));
  const models = (task) => whiskers(`Four models on ${task}`, Object.entries(FOUR).map(([who, label]) => ({ of: of(task, who), label, control: false, first: false, ruled: who === "tuned", colour: colourOfRole(who) })),
    measures.map((measure) => ({ name: measure, word: wordOf(measure) })), { bar: true, table: () => [["model", ...measures], Object.keys(FOUR).map((who) => [who, ...measures.map((measure) => of(task, who)[measure])])] });
  return [element("p", { class: "soft" }, "The hybrid is the tuned model with the MLPs of base; the adapter stands beside those. A share is (adapter - hybrid) / (tuned - hybrid), or the same from base: 1 is the tuned model. Ranges are 95 % intervals; a dash stands where nothing was there to recover."),
    ...distinct(columns.task).map(models),
    tabled("Share of what fine-tuning changed, by the adapter", ["share of", "task", ...Object.keys(FOUR), ...shares.map((name) => OF_WHAT[name])], rows.map((row) => element("tr", {},
      element("td", {}, wordOf(row.measure)), element("td", {}, row.task), Object.keys(FOUR).map((who) => element("td", {}, spelled(row[who]))), shares.map((name) => element("td", {}, spelled(row[name]), rangeOf(row, name))))), whole(columns))];
}

// -- sets of latents -----------------------------------------------------------------------------------------------------

const SET_MEASURES = [["hesitation_rate", "hesitations per 1,000 tokens"], ["hesitating", "share that hesitates"], ["length", "tokens a response"], ["accuracy", "accuracy"]]
  .map(([name, word]) => ({ name, word }));
// what is asked, the model it is compared with and the one that lies beyond, and how sets are called in it
const ASKED = {
  necessity: { title: "Are they needed? Latents taken out of the adapted model", from: "adapter", to: "hybrid", chosen: "without the", random: "without" },
  sufficiency: { title: "Are they enough? Latents given alone to the hybrid", from: "hybrid", to: "adapter", chosen: "hybrid with the", random: "hybrid with", empty: "hybrid with the biases alone" },
  negation: { title: "Does the tuned model lose it? Latents negated beside its MLPs", from: "tuned", to: null, chosen: "less the", random: "less" },
};
const MODELS = { adapter: "adapted model", hybrid: "hybrid, no adapter", tuned: "tuned model" };

function latentSets(columns) {
  if (!columns) return null;
  const rows = rowsOf(columns), tasks = distinct(columns.task), names = Object.keys(columns), order = ["chosen", "random", "empty"];
  const named = ({ set, size, draw }, words) => MODELS[set] ?? (words[set] ?? wordOf(set)) + (set === "chosen" ? ` ${spelled(size)} chosen` : set === "random" ? ` ${spelled(size)} at random, draw ${draw + 1}` : "");
  const block = (task, asked) => {
    const mine = rows.filter((row) => row.task === task), words = ASKED[asked], sets = mine.filter((row) => row.asked === asked).sort((a, b) => order.indexOf(a.set) - order.indexOf(b.set) || a.size - b.size || a.draw - b.draw);
    const model = (role) => mine.filter((row) => row.set === role), shown = [...model(words.from), ...sets, ...model(words.to)];
    const lines = shown.map((row, n) => ({ of: { ...row, ...around(row) }, label: named(row, words), control: order.indexOf(row.set) > 0, first: row.set === "chosen" || (n > 0 && row.set in MODELS), ruled: n === 0 && SET_MEASURES.every(({ name }) => typeof row[`${name}_change`] !== "number"), colour: colourOfRole(row.set in MODELS ? row.set : "prefix") }));
    return whiskers(`${words.title}${tasks.length > 1 ? `, ${task}` : ""}`, lines, SET_MEASURES.filter((measure) => present(columns, measure.name)), { bar: true, table: () => [names, shown.map((row) => names.map((name) => row[name]))] });
  };
  return section("Latent sets: needed, enough, negated",
    element("p", { class: "soft" }, `The same problems${tasks.length === 1 ? ` of ${tasks[0]}` : ""} to the adapted model without some latents, to the hybrid with those alone, and to the tuned model with what they write negated and scaled. The dashed line continues the model that a row is compared with; paler and indented: controls, as many latents or more drawn at random, without which a change says little. Whiskers are 95 % intervals of the change.`),
    ...tasks.flatMap((task) => Object.keys(ASKED).filter((asked) => columns.asked.includes(asked)).map((asked) => block(task, asked))));
}

// the interval of a change, laid around the value that it leads to
function around(row) {
  const ends = SET_MEASURES.flatMap(({ name }) => ["low", "high"].map((end) => [name, end, row[`${name}_change_${end}`], row[`${name}_change`]]));
  return Object.fromEntries(ends.filter(([, , at, change]) => typeof at === "number" && typeof change === "number").map(([name, end, at, change]) => [`${name}_${end}`, row[name] - change + at]));
}

const transcoders = (found) => [replaced(found), latentSets(found.sets)];
