// The payload of one run -> its page.

const FOUND = new Map(DATA.findings.map((finding) => [finding.name, finding]));
const ROLES = ["base", "tuned", "difference"].filter((role) => FOUND.has(`fidelity/explained_variance/${role}`));

const interval = (finding) => between(finding?.low, finding?.high, finding?.value);
const over = (finding) => (interval(finding) && finding.over ? `interval over ${finding.over}` : "");
const defined = (word, name) => element("abbr", { title: FOUND.get(name)?.meaning ?? "" }, word);

// -- headline ------------------------------------------------------------------------------------------------------

// the second parts of the names that begin so
const partsOf = (first) => distinct([...FOUND.keys()].filter((name) => name.startsWith(`${first}/`)).map((name) => name.split("/")[1]));
const UNITS = ["adapters", ["neurons", "MLP neurons"], "latents"];

// title, name of the findings, and what stands for its star, with the word below the number; what a run lacks is left out
const CARDS = [
  ["Explained variance", "fidelity/explained_variance/*", ROLES],
  ["CE recovered", "fidelity/ce_recovered/*", ROLES],
  ["KL recovered", "fidelity/kl_recovered/*", ROLES],
  ["Excess CE", "fidelity/excess_ce/*", ROLES],
  ["L0, active latents a token", "fidelity/l0/*", ["mean", ["p10", "10 %"], ["p90", "90 %"]]],
  // of a transcoder adapter: how near it brings the hybrid to the tuned model, and at what sparsity
  ["KL recovered by the adapter", "replacement/*", [["kl_recovered", "of the hybrid's KL"]]],
  ["KL from the tuned model", "replacement/kl/*", ["adapter", "hybrid"]],
  ["Residual stream, squared error", "replacement/nmse/*", ["adapter", "hybrid"]],
  ...partsOf("adapter_recovery").map((task) => [`Accuracy recovered, ${task}`, `adapter_recovery/${task}/accuracy/*`, [["recovered_of_hybrid", "of the hybrid's gap"]]]),
  ...partsOf("trait").filter((task) => FOUND.has(`trait/${task}/tuned/score`)).flatMap((task) => [
    [`Trait, ${wordOf(task)}`, `trait/${task}/*/score`, ["base", "tuned"]], [`Accuracy, ${wordOf(task)}`, `trait/${task}/*/accuracy`, ["base", "tuned"]]]),
  ["L0 a layer", "replacement/*", [["l0", "active latents a token"]]],
  ["Never fired", "replacement/*", [["dead_fraction", "of all latents"]]],
  ["Dead fraction", "fidelity/*", [["dead_fraction", "of all latents"]]],
  ["Alive latents by decoder norm", "geometry/count/*", ["base_only", "shared", "tuned_only", ["other", "in between"]]],
  ["Largest distance of the models", "layer_divergence/l2/*", [["largest", "L2"], ["largest_layer", "at layer"]]],
  ["Smallest cosine of the models", "layer_divergence/cosine/*", [["smallest", "cosine"], ["smallest_layer", "at layer"]]],
  ["Bits a byte of responses", "tokenizers/bits_per_byte/*/shared", ["base", "tuned"]],
  ["Share of units that tell a label", "unit_comparison/*/telling", UNITS],
  ["Share judged monosemantic", "unit_comparison/*/judged/monosemantic", UNITS],
  ["Foreign to one of the models", "tokens/*", [["foreign", "of the tokens of the text"]]],
  ["Exclusive after latent scaling", "latent_scaling/count/*", ["base_only", "tuned_only"]],
  // the same dictionary on controls, and from another seed
  ["The same on controls, tuned-only", "latent_scaling/control/*", [["equal/tuned_only", "equal models: none is"], ["noise/tuned_only", "noise of that size: the noise is"]]],
  ["Planted directions that it names", "latent_scaling/*", [["power", "of the directions"]]],
  ["Found by a twin from another seed", "twin/*", [["matched/all", "of the latents"], ["matched_untrained", "among latents that learned nothing"]]],
];

function card([title, path, stars]) {
  const all = stars.map((star) => (typeof star === "string" ? [star, star.replace("_", "-")] : star));
  const present = all.map(([name, word]) => [FOUND.get(path.replace("*", name)), name, word]).filter(([finding]) => finding);
  return present.length ? element("div", { class: "card" }, element("h3", {}, defined(title, present[0][0].name)),
    element("div", { class: "pair" }, present.map(([finding, name, word]) => element("div", { class: name.replace("_only", "") },
      element("div", { class: "number" }, spelled(finding.value)), element("small", { title: over(finding) }, [word, interval(finding)].filter(Boolean).join(" · ")))))) : null;
}

// what stands beside the best latent of a label; the first five are columns, the others marks of the strip alone
const BESIDE = [["label_alignment/within_documents", "within documents"], ["label_alignment/null_p95", "95 % by chance"],
  ["label_alignment/bag_of_words", "words"], ["label_alignment/untrained_dictionary", "untrained dictionary"],
  ["probing/random_directions", "best random direction"], ["label_alignment/position", "place"],
  ["label_alignment/untrained_model", "untrained models"], ["probing/neurons", "best coordinate"],
  ["probing/difference_pca", "best principal direction of tuned - base"], ["probing/mean_difference", "difference of means"]];

// one line a label: where its best latent lies between chance and perfect, and what lies beside it
function labels(columns) {
  const names = partsOf("label_alignment").filter((label) => FOUND.has(`label_alignment/${label}/auroc`));
  if (!names.length) return null;
  const index = placesIn(columns), at = (label, path) => FOUND.get(path.replace("/", `/${label}/`));
  const spelledOut = BESIDE.slice(0, 5).filter(([path]) => names.some((label) => at(label, path)));
  const rows = names.map((label) => {
    const of = (part) => at(label, `label_alignment/${part}`), best = of("auroc"), latent = of("latent")?.value, i = index.get(latent);
    const plainly = (found) => element("td", { title: found?.meaning ?? "" }, found ? spelled(found.value) : "");
    return element("tr", {}, element("td", {}, wordOf(label)), element("td", {}, linkTo(latent)),
      element("td", { class: i === undefined ? "words" : `words ${tintOf(columns, i)}` }, i === undefined ? "" : natureOf(columns, i)),
      element("td", {}, i === undefined ? "" : spelled(columns.relative_decoder_norm?.[i])),
      element("td", { title: best.meaning }, spelled(best.value), " ", element("small", { class: "within", title: over(best) }, interval(best))),
      element("td", {}, strip(best, BESIDE.map(([path, word]) => [at(label, path), word]).filter(([found]) => found))),
      spelledOut.map(([path]) => plainly(at(label, path))),
      element("td", {}, spelled(of("average_precision")?.value)), element("td", {}, spelled(of("share")?.value)));
  });
  const heads = ["label", "latent", "kind", "relative norm", "AUROC", "0.5 to 1", ...spelledOut.map(([, word]) => word), "average precision", "share"];
  return section("Which latents tell what",
    soft("The best latent of all, chosen on one half of the questions and tested on the other; 0.5 is chance, 1 is perfect. Beside it the same latent within documents, and what labels that are shifted or taken from like documents, the words before, an untrained dictionary, and directions without one reach by the same choice: a latent says something only where it stands clear of them. Hover the marks for their names; probing stands where it was asked about the label."),
    wideTable(heads.map((word) => headOf(word, word === "kind")), rows, { id: "labels" }));
}

function strip(best, beside) {
  const wide = 170, x = (v) => 4 + Math.max(0, (v - 0.5) / 0.5) * (wide - 8);
  const svg = drawn("svg", { viewBox: `0 0 ${wide} 18`, class: "strip", role: "img", "aria-label": `AUROC ${spelled(best.value)}` });
  svg.append(drawn("line", { class: "axis", x1: x(0.5), x2: x(1), y1: 9, y2: 9 }));
  for (const [found, word] of beside)
    svg.append(drawn("line", { class: "beside", x1: x(found.value), x2: x(found.value), y1: 4, y2: 14, title: `${word}: ${spelled(found.value)}` }));
  if (best.low !== null) svg.append(drawn("line", { class: "range", x1: x(best.low), x2: x(best.high), y1: 9, y2: 9 }));
  svg.append(drawn("circle", { class: "best", cx: x(best.value), cy: 9, r: 4, title: `best latent: ${spelled(best.value)}` }));
  return svg;
}

const METRICS = [["explained_variance", "explained variance"], ["ce_clean", "CE clean"], ["ce_spliced", "CE spliced"], ["ce_recovered", "CE recovered"],
  ["ce_recovered_from_mean", "… from mean"], ["kl_spliced", "KL spliced"], ["kl_recovered", "KL recovered"]];

function segmentTable() {
  const places = ROLES.flatMap((role) => ["", ...SEGMENT_NAMES].map((segment) => [role, segment, segment ? `${role}/${segment}` : role]))
    .filter(([, , place]) => FOUND.has(`fidelity/explained_variance/${place}`));
  if (!places.length) return section("Fidelity", element("p", {}, "The evaluation “fidelity” was not run."));
  const heads = METRICS.map(([metric, word]) => headOf(defined(word, `fidelity/${metric}/${places[0][2]}`)));
  const rows = places.map(([role, segment, place]) => element("tr", {}, element("td", { class: role }, role), element("td", {}, segment || "all"),
    METRICS.map(([metric]) => FOUND.get(`fidelity/${metric}/${place}`)).map((finding) => element("td", { title: [interval(finding), over(finding)].filter(Boolean).join(", ") }, spelled(finding?.value)))));
  return section("Fidelity by model and segment",
    soft("The reconstruction is written back into each model alone; cross-entropy in nats a token. Hover a heading for its definition, a number for its interval."),
    wideTable([headOf("model"), headOf("segment"), ...heads], rows));
}

// -- charts --------------------------------------------------------------------------------------------------------

// title and series [column, word, colour] of each; what was not recorded is left out
const LEARNED = [
  ["Reconstruction loss", ["loss/reconstruction"]],
  ["Explained variance", ["explained_variance/base", "base", "var(--base)"], ["explained_variance/tuned", "tuned", "var(--tuned)"], ["explained_variance/difference", "difference"]],
  ["L0", ["l0"]], ["Dead by the count of AuxK", ["dead_fraction"]],
  ["L1 term", ["loss/l1"]], ["Tanh term", ["loss/tanh"]], ["Pre-activation term", ["loss/pre_activation"]], ["Difference term", ["loss/difference"]], ["Delta term", ["loss/delta"]], ["AuxK term", ["loss/auxk"]],
  ["Threshold", ["threshold"], ["threshold_shared", "shared"]],
];
// a transcoder adapter learns from what the models write, not from activations
const DISTILLED = [
  ["KL(tuned || adapted)", ["kl", "training"], ["held_out_loss", "held out", "var(--adapter)"]],
  ["KL, cut at a layer", ["kl_adapter_first", "adapter below", "var(--adapter)"], ["kl_tuned_first", "adapter above", "var(--tuned)"]],
  ["Squared error of the residual stream", ["nmse"]], ["L0, active latents a token and layer", ["l0"]],
  ["Sparsity penalty", ["penalty"]], ["Norm of the gradient", ["grad_norm"]],
];
// a fine-tune learns a text
const IMITATED = [
  ["Loss, nats a learned token", ["loss", "training"], ["held_out_loss", "held out", "var(--tuned)"]], ["Norm of the gradient", ["grad_norm"]],
  // of one that a direction is watched in
  ["Descent along the direction, nats a unit", ["gradient_along"]], ["Share of tokens that it raises", ["amplifying"]],
];
const SCHEDULED = { learning_rate: "Learning rate", l1: "Factor of the sparsity coefficient", k: "k", k_shared: "k of shared latents", delta: "Factor of the delta term", auxk: "Factor of AuxK", tied_penalty: "Penalty of tied latents against the others" };

function curves() {
  if (!DATA.training) return section("Training", element("p", {}, "There is no record of the training."));
  const scheduled = Object.keys(DATA.training).filter((name) => name.startsWith("schedule/") || name === "learning_rate");
  const titleOf = (name) => SCHEDULED[name.replace("schedule/", "")] ?? name.replace("schedule/", "");
  const [drawn, said] = DATA.training.kl ? [DISTILLED, "On training batches, KL in nats a token, each term before its weight; held out: KL(tuned || adapted) on text that is not learned."]
    : DATA.training.loss ? [IMITATED, "The fine-tune: on training batches, and on problems that are not learned."]
    : [LEARNED, "On training batches, in normalised units, with batch-wise selection where the dictionary has it."];
  return section("Training", soft(said),
    element("div", { class: "grid" }, drawn.map(([title, ...series]) => curve(title, series))),
    scheduled.length ? soft("What was scheduled, over the whole run:") : null,
    element("div", { class: "grid", id: "schedules" }, scheduled.map((name) => curve(titleOf(name), [[name]], true))));
}

function geometry(columns) {
  const title = "Whose latents they are";
  if (!columns?.relative_decoder_norm) return section(title, element("p", {}, "The evaluation “geometry” was not run, or the dictionary reads one model only."));
  const some = aliveIn(columns), random = FOUND.get("geometry/decoder_cosine/random_pairs_mean")?.value;
  const pick = (column, test = () => true) => some.filter(test).map((i) => columns[column]?.[i]).filter((v) => !absent(v));
  const norms = (confirmed) => pick("relative_decoder_norm", (i) => columns.confirmed[i] === confirmed), cosines = pick("decoder_cosine");
  const sides = (v) => (v < 0.3 ? "var(--base)" : v > 0.7 ? "var(--tuned)" : "var(--shared)");
  const kinds = columns.confirmed ? [["latents that look exclusive and are confirmed", sides, norms(true)],
    ["latents that look exclusive, not confirmed", "var(--unsure)", norms(false)], ["other latents", "var(--shared)", norms(null)]]
    : [["latents", sides, pick("relative_decoder_norm")]];
  return section(title,
    soft("Relative decoder norm: |tuned| / (|base| + |tuned|), so 0 is base-only, 0.5 shared, 1 tuned-only. Alive latents only. A decoder norm says where a latent writes in the dictionary, not that the model lacks it: latent scaling asks whether the other model's error or its other latents still hold the direction."),
    element("div", { class: "grid" },
      histogram(`Relative decoder norm of ${many(some.length)} alive latents`, kinds, [0, 1]),
      cosines.length ? histogram("Cosine of the base and tuned decoder rows", [["latents", "var(--shared)", cosines]], [-1, 1], absent(random) ? [] : [[random, "random pairs"]]) : null),
    columns.confirmed ? legendOf([["tuned-only, confirmed", "var(--tuned)"], ["base-only, confirmed", "var(--base)"],
      ["looks exclusive, not confirmed", "var(--unsure)"], ["shared or in between", "var(--shared)"]]) : null);
}

// -- the rest ------------------------------------------------------------------------------------------------------

function everything() {
  const most = 200, rest = soft(), table = tableOf(["name", "value", "interval", "meaning"].map((word) => headOf(word, word === "meaning")), [], { id: "findings" });
  const fill = (asked) => {
    const found = DATA.findings.filter((f) => (f.name + f.meaning).toLowerCase().includes(asked));
    rest.textContent = found.length > most ? `${found.length - most} more: search for them.` : "";
    table.tBodies[0].replaceChildren(...found.slice(0, most).map((f) => element("tr", {}, element("td", { class: "mono" }, f.name),
      element("td", {}, spelled(f.value)), element("td", { title: over(f) }, interval(f), interval(f) && f.over ? element("small", { class: "soft" }, ` over ${f.over}`) : null), element("td", { class: "words soft" }, f.meaning))));
  };
  const search = element("input", { type: "search", placeholder: "name or definition", "aria-label": "search findings", oninput: () => fill(search.value.trim().toLowerCase()) });
  fill("");
  return section(`All ${DATA.findings.length} findings`, search, element("div", { class: "wide" }, table), rest);
}

function study() {
  const words = (value) => (Array.isArray(value) ? value.join(", ") : String(value));
  return section("The study",
    definitions("study", Object.entries(DATA.study).map(([name, value]) => [wordOf(name), words(value)])),
    element("p", {}, "The same numbers again:"),
    element("pre", {}, `python ${DATA.study.recipe ? "finetune" : "train"}.py --config-path <path to>/${/^[\w.-]+$/.test(DATA.folder) ? DATA.folder : `'${DATA.folder.replaceAll("'", "'\\''")}'`} --config-name config`));
}

function opening() {
  const { dictionary, latents, hookpoint, layer, tokens, evaluation_tokens: heldOut } = DATA.study;
  const trained = `${dictionary}, ${many(latents ?? 0)} latents on ${hookpoint}, ${layer === "all" ? "all layers" : `layer ${layer}`}${tokens ? `, trained on ${many(tokens)} tokens` : ""} · `;
  const measured = heldOut && dictionary && DATA.findings.length ? `measured on a budget of ${many(heldOut)} held-out tokens · ` : "";
  return element("header", {}, element("h1", {}, "What fine-tuning changed: ", DATA.study.model_pair ?? ""),
    element("div", { class: "soft" }, dictionary ? trained : "", measured, "study ", element("code", {}, DATA.identity ?? "")));
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

async function show() {
  const columns = await unpacked("latents"), units = await unpacked("unit-latents"), page = document.getElementById("page");
  const learned = DATA.study.dictionary !== undefined || columns, beside = /^adapter\b/.test(DATA.study.streams ?? ""); // a transcoder adapter rebuilds no stream of either model
  const readable = columns || units ? explorers({ ...(columns ? { latent: columns } : {}), ...(units ? { unit: units } : {}) }) : null;
  const behaves = [...sectionsOf(DATA.behaviour?.conditions ?? []), outputs(DATA.behaviour?.outputs), ...sectionsOf(await unpacked("figures") ?? []),
    DATA.graphs ? attributionGraphs(columns, await unpacked("graph-influence")) : null].filter(Boolean);
  page.replaceChildren(...[
    opening(), element("div", { class: "cards" }, CARDS.map(card)), claims(DATA.claims && rowsOf(DATA.claims)), labels(columns),
    DATA.notes.length ? section("Notes", element("ul", {}, DATA.notes.map((note) => element("li", {}, note)))) : null,
    ...behaves, learned && !beside ? geometry(columns) : null,
    learned && !columns ? section("Latents", element("p", {}, "The evaluation “geometry” was not run: there is no table of latents.")) : null,
    readable, learned && !beside ? segmentTable() : null, learned || DATA.training?.loss ? curves() : null, everything(), study(),
  ].filter(Boolean));
  if (behaves.length) {
    page.querySelector("header").after(contents([...page.querySelectorAll(":scope > section")]));
    if (location.hash.startsWith("#to-")) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  }
  document.body.dataset.drawn = performance.now().toFixed(0);
}

show();
