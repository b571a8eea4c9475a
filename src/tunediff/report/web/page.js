// The payload of one run -> its page.

const FOUND = new Map(DATA.findings.map((finding) => [finding.name, finding]));
const ROLES = ["base", "tuned", "difference"].filter((role) => FOUND.has(`fidelity/explained_variance/${role}`));

const KINDS_OF_UNITS = [["adapters", "adapters"], ["neurons", "MLP neurons"], ["latents", "latents"]];

const valueOf = (name) => (FOUND.has(name) ? FOUND.get(name).value : undefined);
const interval = (finding) => (finding && finding.low !== null ? `${spelled(finding.low, finding.value)} to ${spelled(finding.high, finding.value)}` : "");
const defined = (word, name) => element("abbr", { title: FOUND.get(name)?.meaning ?? "" }, word);

// -- headline ------------------------------------------------------------------------------------------------------

function card(title, entries) {
  const present = entries.filter(([name]) => FOUND.has(name));
  if (!present.length) return null;
  return element("div", { class: "card" },
    element("h3", {}, defined(title, present[0][0])),
    element("div", { class: "pair" }, present.map(([name, word, style]) =>
      element("div", { class: style ?? "" }, element("div", { class: "number" }, spelled(valueOf(name))),
        element("small", {}, [word, interval(FOUND.get(name))].filter(Boolean).join(" · "))))));
}

function headline() {
  const both = (metric) => ROLES.map((role) => [`fidelity/${metric}/${role}`, role, role]);
  return element("div", { class: "cards" },
    card("Explained variance", both("explained_variance")),
    card("CE recovered", both("ce_recovered")),
    card("KL recovered", both("kl_recovered")),
    card("Excess CE", both("excess_ce")),
    card("L0, active latents a token", [["fidelity/l0/mean", "mean"], ["fidelity/l0/p10", "10 %"], ["fidelity/l0/p90", "90 %"]]),
    ...adapterCards(),
    card("Dead fraction", [["fidelity/dead_fraction", "of all latents"]]),
    card("Alive latents by decoder norm", [["geometry/count/base_only", "base-only", "base"], ["geometry/count/shared", "shared"],
      ["geometry/count/tuned_only", "tuned-only", "tuned"], ["geometry/count/other", "in between"]]),
    card("Largest distance of the models", [["layer_divergence/l2/largest", "L2"], ["layer_divergence/l2/largest_layer", "at layer"]]),
    card("Smallest cosine of the models", [["layer_divergence/cosine/smallest", "cosine"], ["layer_divergence/cosine/smallest_layer", "at layer"]]),
    card("Bits a byte of responses", ["base", "tuned"].map((role) => [`tokenizers/bits_per_byte/${role}/shared`, role, role])),
    card("Share of units that tell a label", KINDS_OF_UNITS.map(([kind, word]) => [`unit_comparison/${kind}/telling`, word])),
    card("Share judged monosemantic", KINDS_OF_UNITS.map(([kind, word]) => [`unit_comparison/${kind}/judged/monosemantic`, word])),
    card("Exclusive after latent scaling", [["latent_scaling/count/base_only", "base-only", "base"], ["latent_scaling/count/tuned_only", "tuned-only", "tuned"]]));
}

// what is said first of a transcoder adapter: how near it brings the hybrid to the tuned model, and at what sparsity
function adapterCards() {
  const both = (measure) => ["adapter", "hybrid"].map((role) => [`replacement/${measure}/${role}`, role, role]), of = (name) => name.split("/")[1];
  return [card("KL recovered by the adapter", [["replacement/kl_recovered", "of the hybrid's KL"]]), card("KL from the tuned model", both("kl")), card("Residual stream, squared error", both("nmse")),
    ...[...FOUND.keys()].filter((name) => /^adapter_recovery\/[^/]+\/accuracy\/recovered_of_hybrid$/.test(name)).map((name) => card(`Accuracy recovered, ${of(name)}`, [[name, "of the hybrid's gap"]])),
    card("L0 a layer", [["replacement/l0", "active latents a token"]]), card("Never fired", [["replacement/dead_fraction", "of all latents"]])];
}

// one line a label: where its best latent lies between chance and perfect, and what lies beside it
function labels(columns) {
  const names = [...new Set(DATA.findings.filter((f) => f.name.startsWith("label_alignment/")).map((f) => f.name.split("/")[1]))];
  if (!names.length) return null;
  const index = new Map((columns?.latent ?? []).map((latent, i) => [latent, i]));
  const beside = [["null_p95", "95 % of shuffled labels", "label_alignment"], ["token_rule", "best token rule", "label_alignment"],
    ["random_directions", "best random direction", "probing"], ["neurons", "best coordinate", "probing"],
    ["difference_pca", "best principal direction of tuned - base", "probing"], ["mean_difference", "difference of means", "probing"]];
  // those that are columns as well; the others are marks of the strip
  const spelledOut = beside.slice(0, 3).filter(([part, , where]) => names.some((label) => FOUND.has(`${where}/${label}/${part}`)));
  const rows = names.map((label) => {
    const at = (part, where = "label_alignment") => FOUND.get(`${where}/${label}/${part}`);
    const best = at("auroc"), latent = at("latent")?.value, i = index.get(latent);
    return element("tr", {}, element("td", {}, wordOf(label)), element("td", {}, element("a", { href: `#latent-${latent}` }, String(latent))),
      element("td", { class: i === undefined ? "words" : `words ${columns.kind?.[i]?.replace("_only", "") ?? ""}` }, i === undefined ? "" : natureOf(columns, i)),
      element("td", {}, i === undefined ? "" : spelled(columns.relative_decoder_norm?.[i])),
      element("td", { title: best.meaning }, spelled(best.value), " ", element("small", { class: "within" }, interval(best))),
      element("td", {}, strip(best, beside.map(([part, word, where]) => [at(part, where), word]).filter(([found]) => found))),
      ...spelledOut.map(([part, , where]) => element("td", { title: at(part, where)?.meaning ?? "" }, at(part, where) ? spelled(at(part, where).value) : "")),
      element("td", {}, spelled(at("average_precision")?.value)), element("td", {}, spelled(at("share")?.value)));
  });
  return section("Which latents tell what",
    element("p", { class: "soft" }, "The best latent of all, chosen on one half of the documents and tested on the other; 0.5 is chance, 1 is perfect. Beside it what shuffled labels, the token itself, and directions without a dictionary reach by the same choice: a latent says something only where it stands clear of them. Hover the marks for their names; probing stands where it was asked about the label."),
    element("div", { class: "wide" }, element("table", { id: "labels" }, element("thead", {}, element("tr", {},
      ["label", "latent", "kind", "relative norm", "AUROC", "0.5 to 1", ...spelledOut.map(([, word]) => word), "average precision", "share"].map((word, n) => element("th", n === 2 ? { class: "words" } : {}, word)))), element("tbody", {}, rows))));
}

function strip(best, beside) {
  const wide = 170, x = (v) => 4 + Math.max(0, (v - 0.5) / 0.5) * (wide - 8);
  const svg = drawn("svg", { viewBox: `0 0 ${wide} 18`, class: "strip", role: "img", "aria-label": `AUROC ${spelled(best.value)}` });
  svg.append(drawn("line", { class: "axis", x1: x(0.5), x2: x(1), y1: 9, y2: 9 }));
  for (const [found, word] of beside) {
    const mark = drawn("line", { class: "beside", x1: x(found.value), x2: x(found.value), y1: 4, y2: 14 });
    mark.append(drawn("title", {}, `${word}: ${spelled(found.value)}`));
    svg.append(mark);
  }
  if (best.low !== null) svg.append(drawn("line", { class: "range", x1: x(best.low), x2: x(best.high), y1: 9, y2: 9 }));
  const dot = drawn("circle", { class: "best", cx: x(best.value), cy: 9, r: 4 });
  dot.append(drawn("title", {}, `best latent: ${spelled(best.value)}`));
  svg.append(dot);
  return svg;
}

function segmentTable() {
  const segments = ["", "prompt", "prefix", "thinking", "answer", "text"];
  const metrics = [["explained_variance", "explained variance"], ["ce_clean", "CE clean"], ["ce_spliced", "CE spliced"], ["ce_recovered", "CE recovered"],
    ["ce_recovered_from_mean", "… from mean"], ["kl_spliced", "KL spliced"], ["kl_recovered", "KL recovered"]];
  const rows = ROLES.flatMap((role) => segments.map((segment) => [role, segment, segment ? `${role}/${segment}` : role]))
    .filter(([, , place]) => FOUND.has(`fidelity/explained_variance/${place}`));
  if (!rows.length) return section("Fidelity", element("p", {}, "The evaluation “fidelity” was not run."));
  return section("Fidelity by model and segment",
    element("p", { class: "soft" }, "The reconstruction is written back into each model alone; cross-entropy in nats a token. Hover a heading for its definition, a number for its interval."),
    element("div", { class: "wide" }, element("table", {},
      element("thead", {}, element("tr", {}, element("th", {}, "model"), element("th", {}, "segment"),
        metrics.map(([metric, word]) => element("th", {}, defined(word, `fidelity/${metric}/${rows[0][2]}`))))),
      element("tbody", {}, rows.map(([role, segment, place]) => element("tr", {}, element("td", { class: role }, role),
        element("td", {}, segment || "all"), metrics.map(([metric]) => {
          const finding = FOUND.get(`fidelity/${metric}/${place}`);
          return element("td", { title: interval(finding) }, spelled(finding?.value));
        })))))));
}

// -- charts --------------------------------------------------------------------------------------------------------

const TERMS = { l1: "L1 term", tanh: "Tanh term", pre_activation: "Pre-activation term", difference: "Difference term", auxk: "AuxK term" };
const SCHEDULED = { learning_rate: "Learning rate", l1: "Factor of the sparsity coefficient", k: "k", auxk: "Factor of AuxK", tied_penalty: "Penalty of tied latents against the others" };

function curves() {
  if (!DATA.training) return section("Training", element("p", {}, "There is no record of the training."));
  const ink = "var(--ink)";
  if (DATA.training.kl) return distilled(ink);
  return section("Training",
    element("p", { class: "soft" }, "On training batches, in normalised units, with batch-wise selection where the dictionary has it."),
    element("div", { class: "grid" },
      curve("Reconstruction loss", [["loss/reconstruction", "", ink]]),
      curve("Explained variance", [["explained_variance/base", "base", "var(--base)"], ["explained_variance/tuned", "tuned", "var(--tuned)"], ["explained_variance/difference", "difference", ink]]),
      curve("L0", [["l0", "", ink]]),
      curve("Dead by the count of AuxK", [["dead_fraction", "", ink]]),
      Object.entries(TERMS).map(([term, title]) => curve(title, [[`loss/${term}`, "", ink]])),
      curve("Threshold", [["threshold", "", ink]])),
    element("p", { class: "soft" }, "What was scheduled, over the whole run:"),
    element("div", { class: "grid", id: "schedules" },
      Object.keys(DATA.training).filter((name) => name.startsWith("schedule/")).map((name) => curve(SCHEDULED[name.slice(9)] ?? name.slice(9), [[name, "", ink]], true))));
}

// a transcoder adapter learns from what the models write, not from activations
function distilled(ink) {
  return section("Training",
    element("p", { class: "soft" }, "On training batches, KL in nats a token, each term before its weight; held out: KL(tuned || adapted) on text that is not learned."),
    element("div", { class: "grid" },
      curve("KL(tuned || adapted)", [["kl", "training", ink], ["held_out_loss", "held out", "var(--adapter)"]]),
      curve("KL, cut at a layer", [["kl_adapter_first", "adapter below", "var(--adapter)"], ["kl_tuned_first", "adapter above", "var(--tuned)"]]),
      curve("Squared error of the residual stream", [["nmse", "", ink]]),
      curve("L0, active latents a token and layer", [["l0", "", ink]]),
      curve("Sparsity penalty", [["penalty", "", ink]]),
      curve("Norm of the gradient", [["grad_norm", "", ink]]),
      curve("Learning rate", [["learning_rate", "", ink]], true)));
}

function geometry(columns) {
  if (!columns?.relative_decoder_norm)
    return section("Whose latents they are", element("p", {}, "The evaluation “geometry” was not run, or the dictionary reads one model only."));
  const some = columns.latent.map((_, i) => i).filter((i) => alive(columns, i));
  const pick = (column, test) => some.filter(test).map((i) => columns[column][i]).filter((v) => v !== null);
  const random = valueOf("geometry/decoder_cosine/random_pairs_mean");
  const sides = (v) => (v < 0.3 ? "var(--base)" : v > 0.7 ? "var(--tuned)" : "var(--shared)");
  const kinds = columns.confirmed ? [["latents that look exclusive and are confirmed", sides, pick("relative_decoder_norm", (i) => columns.confirmed[i] === true)],
    ["latents that look exclusive, not confirmed", "var(--unsure)", pick("relative_decoder_norm", (i) => columns.confirmed[i] === false)],
    ["other latents", "var(--shared)", pick("relative_decoder_norm", (i) => columns.confirmed[i] === null)]]
    : [["latents", sides, pick("relative_decoder_norm", () => true)]];
  const cosines = columns.decoder_cosine ? pick("decoder_cosine", () => true) : [];
  return section("Whose latents they are",
    element("p", { class: "soft" }, "Relative decoder norm: |tuned| / (|base| + |tuned|), so 0 is base-only, 0.5 shared, 1 tuned-only. Alive latents only. A decoder norm says where a latent writes in the dictionary, not that the model lacks it: latent scaling asks whether the other model's error or its other latents still hold the direction."),
    element("div", { class: "grid" },
      histogram(`Relative decoder norm of ${some.length.toLocaleString("en-US")} alive latents`, kinds, [0, 1]),
      cosines.length ? histogram("Cosine of the base and tuned decoder rows", [["latents", "var(--shared)", cosines]], [-1, 1],
        random === undefined || random === null ? [] : [[random, "random pairs"]]) : null),
    columns.confirmed ? element("p", { class: "legend keys" }, [["tuned", "tuned-only, confirmed"], ["base", "base-only, confirmed"], ["unsure", "looks exclusive, not confirmed"], ["shared", "shared or in between"]]
      .map(([name, word]) => element("span", { style: `border-color:var(--${name})` }, word))) : null);
}

// -- the rest ------------------------------------------------------------------------------------------------------

function everything() {
  const body = element("tbody"), most = 200, rest = element("p", { class: "soft" });
  const fill = (asked) => {
    const found = DATA.findings.filter((f) => (f.name + f.meaning).toLowerCase().includes(asked));
    rest.textContent = found.length > most ? `${found.length - most} more: search for them.` : "";
    body.replaceChildren(...found.slice(0, most).map((f) => element("tr", {}, element("td", { class: "mono" }, f.name), element("td", {}, spelled(f.value)), element("td", {}, interval(f)), element("td", { class: "words soft" }, f.meaning))));
  };
  const search = element("input", { type: "search", placeholder: "name or definition", "aria-label": "search findings" });
  search.addEventListener("input", () => fill(search.value.trim().toLowerCase()));
  fill("");
  return section(`All ${DATA.findings.length} findings`, search, element("div", { class: "wide" }, element("table", { id: "findings" },
    element("thead", {}, element("tr", {}, ["name", "value", "interval", "meaning"].map((word) => element("th", word === "meaning" ? { class: "words" } : {}, word)))), body)), rest);
}

function study() {
  return section("The study",
    element("dl", { class: "study" }, Object.entries(DATA.study).flatMap(([name, value]) => [element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, Array.isArray(value) ? value.join(", ") : String(value))])),
    element("p", {}, "The same numbers again:"),
    element("pre", {}, `python train.py --config-path ${"<path to>"}/${DATA.folder} --config-name config`));
}

function opening() {
  const { dictionary, latents, hookpoint, layer, tokens } = DATA.study, many = (value) => value.toLocaleString("en-US");
  const parts = [dictionary ? `${dictionary}, ${many(latents)} latents on ${hookpoint}, ${layer === "all" ? "all layers" : `layer ${layer}`}` : null, dictionary && tokens ? `${many(tokens)} tokens` : null].filter(Boolean);
  return element("header", {}, element("h1", {}, "What fine-tuning changed: ", DATA.study.model_pair ?? ""),
    element("div", { class: "soft" }, parts.length ? `${parts.join(", ")} · study ` : "study ", element("code", {}, DATA.identity ?? "")));
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
  const columns = await unpacked("latents"), units = await unpacked("unit-latents"), dictionary = DATA.study.dictionary !== undefined || columns;
  const readable = columns || units ? explorers({ ...(columns ? { latent: columns } : {}), ...(units ? { unit: units } : {}) }) : null;
  const missing = columns ? null : section("Latents", element("p", {}, "The evaluation “geometry” was not run: there is no table of latents."));
  const traced = DATA.graphs ? [attributionGraphs(columns, DATA.graphs.influence ? await unpacked("graph-influence") : null)] : [];
  const behaves = [...sectionsOf(DATA.behaviour?.conditions ?? []), outputs(DATA.behaviour?.outputs), ...sectionsOf(await unpacked("figures") ?? []), ...traced].filter(Boolean), page = document.getElementById("page"), beside = /^adapter\b/.test(DATA.study.streams ?? ""); // a transcoder adapter rebuilds no stream of either model
  page.replaceChildren(...[
    opening(), headline(), labels(columns),
    DATA.notes.length ? section("Notes", element("ul", {}, DATA.notes.map((note) => element("li", {}, note)))) : null,
    ...behaves, ...(dictionary ? [beside ? null : geometry(columns), missing, readable, beside ? null : segmentTable(), curves()] : [readable]), everything(), study(),
  ].filter(Boolean));
  if (behaves.length) {
    page.querySelector("header").after(contents([...page.querySelectorAll(":scope > section")]));
    if (location.hash.startsWith("#to-")) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  }
  document.body.dataset.drawn = performance.now().toFixed(0);
}

show();
