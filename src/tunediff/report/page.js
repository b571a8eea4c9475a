// The payload of one run -> its page.

const FOUND = new Map(DATA.findings.map((finding) => [finding.name, finding]));
const KIND_WORDS = { base_only: "base-only", shared: "shared", tuned_only: "tuned-only", other: "in between" };
const ROLES = ["base", "tuned", "difference"].filter((role) => FOUND.has(`fidelity/explained_variance/${role}`));

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
    card("Dead fraction", [["fidelity/dead_fraction", "of all latents"]]),
    card("Alive latents by decoder norm", [["geometry/count/base_only", "base-only", "base"], ["geometry/count/shared", "shared"],
      ["geometry/count/tuned_only", "tuned-only", "tuned"], ["geometry/count/other", "in between"]]));
}

function labels() {
  const names = [...new Set(DATA.findings.filter((f) => f.name.startsWith("label_alignment/")).map((f) => f.name.split("/")[1]))];
  return names.map((label) => {
    const at = (part) => FOUND.get(`label_alignment/${label}/${part}`);
    const best = at("auroc"), latent = at("latent")?.value;
    const row = DATA.latents?.latent.indexOf(latent);
    const relative = DATA.latents?.relative_decoder_norm?.[row];
    const nature = relative === undefined ? "" :
      `, which is ${KIND_WORDS[DATA.latents.kind[row]]} (relative decoder norm ${spelled(relative)}${DATA.latents.kind[row] === "other" ? (relative > 0.5 ? ", leaning to tuned" : ", leaning to base") : ""})`;
    const line = (word, finding, main) => !finding ? [] : [element("span", { title: finding.meaning }, word),
      element("span", { class: "track" }, element("b", { class: main ? "main" : "", style: `display:block;width:${100 * finding.value}%` })),
      element("span", {}, spelled(finding.value))];
    return section(`Which latent tells “${label.replaceAll("_", " ")}”`,
      element("p", {}, "Best of all latents: ", element("a", { href: `#latent-${latent}` }, `latent ${latent}`), nature,
        `. AUROC ${spelled(best.value)} (${interval(best)}), chosen on one half of the documents and tested on the other.`),
      element("div", { class: "meter" }, line(`latent ${latent}`, best, true), line("best token rule", at("token_rule")),
        line("shuffled labels", at("null_mean")), line("shuffled, 95 %", at("null_p95"))),
      element("p", { class: "soft" }, `0.5 is chance. ${at("token_rule")?.meaning ?? ""}.`));
  });
}

function segmentTable() {
  const segments = ["", "prompt", "prefix", "thinking", "answer", "text"];
  const metrics = [["explained_variance", "explained variance"], ["ce_clean", "CE clean"], ["ce_spliced", "CE spliced"], ["ce_recovered", "CE recovered"],
    ["ce_recovered_from_mean", "… from mean"], ["kl_spliced", "KL spliced"], ["kl_recovered", "KL recovered"]];
  const rows = ROLES.flatMap((role) => segments.map((segment) => [role, segment, segment ? `${role}/${segment}` : role]))
    .filter(([, , place]) => FOUND.has(`fidelity/explained_variance/${place}`));
  if (!rows.length) return section("Fidelity", element("p", {}, "The evaluation “fidelity” was not run."));
  return section("Fidelity by model and segment",
    element("p", { class: "soft" }, "The reconstruction of the pair is written back into each model alone; cross-entropy in nats a token. Hover a heading for its definition, a number for its interval."),
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
  return element("figure", {}, element("figcaption", {}, `${title}: ${last}`), svg);
}

const TERMS = { l1: "L1 term", tanh: "Tanh term", pre_activation: "Pre-activation term", difference: "Difference term", auxk: "AuxK term" };
const SCHEDULED = { learning_rate: "Learning rate", l1: "Factor of the sparsity coefficient", k: "k", aux: "Factor of AuxK", tied_penalty: "Penalty of tied latents against the others" };

function curves() {
  if (!DATA.training) return section("Training", element("p", {}, "There is no record of the training."));
  const ink = "var(--ink)";
  return section("Training",
    element("p", { class: "soft" }, "On training batches, in normalised units, with batch-wise selection where the dictionary has it."),
    element("div", { class: "grid" },
      curve("Reconstruction loss", [["loss/reconstruction", "", ink]]),
      curve("Explained variance", [["explained_variance/base", "base", "var(--base)"], ["explained_variance/tuned", "tuned", "var(--tuned)"], ["explained_variance/difference", "difference", ink]]),
      curve("L0", [["l0", "", ink]]),
      curve("Dead fraction", [["dead_fraction", "", ink]]),
      Object.entries(TERMS).map(([term, title]) => curve(title, [[`loss/${term}`, "", ink]])),
      curve("Threshold", [["threshold", "", ink]])),
    element("p", { class: "soft" }, "What was scheduled, over the whole run:"),
    element("div", { class: "grid", id: "schedules" },
      Object.keys(DATA.training).filter((name) => name.startsWith("schedule/")).map((name) => curve(SCHEDULED[name.slice(9)] ?? name.slice(9), [[name, "", ink]], true))));
}

function histogram(title, values, [low, high], colour, marks = []) {
  const bins = 40, counts = new Array(bins).fill(0);
  for (const v of values) counts[Math.min(bins - 1, Math.max(0, Math.floor(((v - low) / (high - low)) * bins)))] += 1;
  const { svg, x, y } = frame(title, [low, high], [0, Math.max(1, ...counts)], "");
  counts.forEach((count, bin) => {
    const a = low + (bin / bins) * (high - low), b = low + ((bin + 1) / bins) * (high - low);
    const bar = drawn("rect", { x: x(a) + 0.5, width: x(b) - x(a) - 1, y: y(count), height: y(0) - y(count), fill: colour((a + b) / 2) });
    bar.append(drawn("title", {}, `${count} latents from ${a.toFixed(3)} to ${b.toFixed(3)}`));
    svg.append(bar);
  });
  for (const [at, word] of marks) {
    svg.append(drawn("line", { class: "mark", x1: x(at), x2: x(at), y1: TOP, y2: HIGH - BOTTOM }));
    svg.append(drawn("text", { x: x(at) + 4, y: TOP + 8 }, word));
  }
  return element("figure", {}, element("figcaption", {}, title), svg);
}

function geometry() {
  if (!DATA.latents?.relative_decoder_norm)
    return section("Geometry", element("p", {}, "The evaluation “geometry” was not run, or the dictionary reads one model only."));
  const alive = DATA.latents.firing_rate.map((rate) => rate > 0);
  const of = (column) => DATA.latents[column].filter((v, i) => alive[i] && v !== null);
  const random = valueOf("geometry/decoder_cosine/random_pairs_mean");
  const cosines = of("decoder_cosine");
  return section("Whose latents they are",
    element("p", { class: "soft" }, "Relative decoder norm: |tuned| / (|base| + |tuned|), so 0 is base-only, 0.5 shared, 1 tuned-only. Alive latents only. A decoder norm says where a latent writes in the dictionary, not that the model lacks it."),
    element("div", { class: "grid" },
      histogram(`Relative decoder norm of ${of("relative_decoder_norm").length} alive latents`, of("relative_decoder_norm"), [0, 1],
        (v) => (v < 0.3 ? "var(--base)" : v > 0.7 ? "var(--tuned)" : "var(--shared)")),
      cosines.length ? histogram("Cosine of the base and tuned decoder rows", cosines, [-1, 1], () => "var(--shared)",
        random === undefined || random === null ? [] : [[random, "random pairs"]]) : null));
}

// -- latents -------------------------------------------------------------------------------------------------------

function latentTable() {
  if (!DATA.latents) return section("Latents", element("p", {}, "The evaluation “geometry” was not run: there is no table of latents."));
  const labelColumns = Object.keys(DATA.latents).filter((name) => name.startsWith("auroc/"));
  const segmentColumns = Object.keys(DATA.latents).filter((name) => name.startsWith("firing_rate/"));
  const columns = [["latent", "latent"], ["relative_decoder_norm", "relative decoder norm"], ["kind", "kind"],
    ...labelColumns.map((name) => [name, `AUROC ${name.split("/")[1].replaceAll("_", " ")}`]), ["decoder_cosine", "cosine"],
    ["firing_rate", "firing rate"], ...segmentColumns.map((name) => [name, name.split("/")[1]]), ["max_activation", "largest"]].filter(([name]) => DATA.latents[name]);
  const index = new Map(DATA.latents.latent.map((latent, i) => [latent, i]));
  const shown = DATA.shown.map((latent) => index.get(latent));
  const words = new Map(shown.map((i) => [i, (DATA.examples?.[DATA.latents.latent[i]] ?? []).map((e) => e.tokens.join("")).join(" ").toLowerCase()]));
  let sortBy = ["relative_decoder_norm", "firing_rate", ...labelColumns, "latent"].find((name) => name in DATA.latents), falling = true, asked = "";
  const body = element("tbody"), head = element("tr");

  function cell(name, i) {
    const value = DATA.latents[name][i];
    if (name === "relative_decoder_norm") return element("td", {}, element("span", { class: "bar" }, element("i", { style: `left:${value * 90 - 1}px` })), spelled(value));
    return element("td", {}, name === "kind" ? KIND_WORDS[value] : name === "latent" ? String(value) : spelled(value));
  }

  function fill() {
    const order = shown.filter((i) => !asked || String(DATA.latents.latent[i]) === asked || words.get(i).includes(asked))
      .sort((a, b) => {
        const [p, q] = [DATA.latents[sortBy][a], DATA.latents[sortBy][b]];
        return (falling ? -1 : 1) * (typeof p === "string" ? p.localeCompare(q) : (p ?? -Infinity) - (q ?? -Infinity));
      });
    head.replaceChildren(...columns.map(([name, word]) => element("th", name === sortBy ? { "aria-sort": falling ? "descending" : "ascending" } : {},
      element("button", { type: "button", onclick: () => { falling = name === sortBy ? !falling : true; sortBy = name; fill(); } }, word))));
    body.replaceChildren(...order.map((i) => {
      const latent = DATA.latents.latent[i];
      const row = element("tr", { class: "latent", id: `latent-${latent}`, tabindex: 0, onclick: () => toggle(row, latent) }, columns.map(([name]) => cell(name, i)));
      row.addEventListener("keydown", (event) => { if (event.key === "Enter") toggle(row, latent); });
      return row;
    }));
    if (!order.length) body.append(element("tr", {}, element("td", { colspan: columns.length }, "No latent on this page matches.")));
  }

  function toggle(row, latent) {
    if (row.classList.toggle("open")) row.after(element("tr", { class: "examples" }, element("td", { colspan: columns.length }, examplesOf(latent))));
    else row.nextSibling.remove();
  }

  function open() {
    const row = document.getElementById(location.hash.slice(1));
    if (row?.classList.contains("latent") && !row.classList.contains("open")) { row.click(); row.scrollIntoView({ block: "center" }); }
  }

  const search = element("input", { type: "search", placeholder: "latent number, or a word in its examples", "aria-label": "search latents" });
  search.addEventListener("input", () => { asked = search.value.trim().toLowerCase(); fill(); });
  fill();
  addEventListener("hashchange", open);
  setTimeout(open);
  return section("Latents",
    element("p", { class: "soft" }, `${shown.length} of ${DATA.latents.latent.length} latents: the most base-only and the most tuned-only, the best for each label, the most frequent. All are in tables/latents.parquet. Click a row for its strongest held-out examples; click a heading to sort.`),
    element("p", { class: "legend" }, ["prompt", "prefix", "thinking", "answer", "text"].map((segment) => element("span", { class: `s-${segment}` }, segment))),
    search, element("div", { class: "wide" }, element("table", { id: "latents" }, element("thead", {}, head), body)));
}

function examplesOf(latent) {
  const examples = DATA.examples?.[latent];
  if (!DATA.examples) return "The evaluation “examples” was not run.";
  if (!examples) return "No example: it fired on none of the held-out tokens read for examples.";
  const top = Math.max(...examples.map((example) => example.activation));
  return examples.map((example) => element("div", { class: "example", title: `document ${example.document}` },
    example.tokens.map((token, i) => {
      const value = example.activations[i], heat = Math.min(1, value / top);
      return element("span", { class: `s-${example.segments[i]}${i === example.position ? " peak" : ""}`, title: value > 0 ? spelled(value) : null,
        style: heat > 0 ? `background:rgba(var(--heat),${(0.12 + 0.6 * heat).toFixed(2)})` : null }, token.replaceAll("\n", "↵\n"));
    })));
}

// -- the rest ------------------------------------------------------------------------------------------------------

function everything() {
  const body = element("tbody");
  const fill = (asked) => body.replaceChildren(...DATA.findings.filter((f) => (f.name + f.meaning).toLowerCase().includes(asked))
    .map((f) => element("tr", {}, element("td", { class: "mono" }, f.name), element("td", {}, spelled(f.value)), element("td", {}, interval(f)), element("td", { class: "words soft" }, f.meaning))));
  const search = element("input", { type: "search", placeholder: "name or definition", "aria-label": "search findings" });
  search.addEventListener("input", () => fill(search.value.trim().toLowerCase()));
  fill("");
  return section(`All ${DATA.findings.length} findings`, search, element("div", { class: "wide" }, element("table", { id: "findings" },
    element("thead", {}, element("tr", {}, ["name", "value", "95 % interval", "meaning"].map((word) => element("th", {}, word)))), body)));
}

function study() {
  return section("The study",
    element("dl", { class: "study" }, Object.entries(DATA.study).flatMap(([name, value]) => [element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, Array.isArray(value) ? value.join(", ") : String(value))])),
    element("p", {}, "The same numbers again:"),
    element("pre", {}, `python train.py --config-path ${"<path to>"}/${DATA.folder} --config-name config`));
}

document.getElementById("page").replaceChildren(...[
  element("header", {}, element("h1", {}, "What fine-tuning changed: ", DATA.study.model_pair ?? ""),
    element("div", { class: "soft" }, `${DATA.study.dictionary}, ${DATA.study.latents?.toLocaleString("en-US")} latents on ${DATA.study.hookpoint}, layer ${DATA.study.layer}, ${DATA.study.tokens?.toLocaleString("en-US")} tokens · study `,
      element("code", {}, DATA.identity))),
  headline(), ...labels(),
  DATA.notes.length ? section("Notes", element("ul", {}, DATA.notes.map((note) => element("li", {}, note)))) : null,
  segmentTable(), geometry(), latentTable(), curves(), everything(), study(),
].filter(Boolean));
