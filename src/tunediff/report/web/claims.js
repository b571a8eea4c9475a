// What was published of this -> a row a claim, with its verdict and what it stands on.

const VERDICTS = ["reproduced", "contradicted", "underpowered", "not applicable"];

// the effect as a dot with its interval, on an axis that holds it, nought and what is asked
function effectOf(row) {
  if (absent(row.effect)) return null;
  const wide = 150, [low, high] = extent([row.effect, row.low, row.high, row.expected, row.asked_low, row.asked_high, 0].filter(known), 0.06);
  const x = (v) => 4 + ((v - low) / (high - low)) * (wide - 8), svg = drawn("svg", { viewBox: `0 0 ${wide} 18`, class: "strip", role: "img", "aria-label": `effect ${spelled(row.effect)}` });
  const from = row.asked_low ?? low, to = row.asked_high ?? high;
  svg.append(drawn("rect", { class: "asked", x: x(from), y: 2, width: Math.max(1, x(to) - x(from)), height: 14, title: "where the claim says the effect lies" }));
  svg.append(drawn("line", { class: "axis", x1: x(0), x2: x(0), y1: 2, y2: 16 }));
  if (known(row.expected)) svg.append(drawn("line", { class: "beside", x1: x(row.expected), x2: x(row.expected), y1: 2, y2: 16, title: `as published: ${spelled(row.expected)}` }));
  if (known(row.low)) svg.append(drawn("line", { class: "range", x1: x(row.low), x2: x(row.high), y1: 9, y2: 9 }));
  svg.append(drawn("circle", { class: "best", cx: x(row.effect), cy: 9, r: 4 }));
  return svg;
}

function claims(rows) {
  if (!rows?.length) return null;
  const counted = VERDICTS.map((verdict) => [verdict, rows.filter((row) => row.verdict === verdict).length]).filter(([, count]) => count);
  const several = rows.some((row) => row.of);
  const shown = rows.map((row) => element("tr", {},
    several ? element("td", { class: "words" }, row.of) : null,
    element("td", { class: "words" }, row.says, element("small", { class: "soft" }, ` ${row.source}${row.trust === "text" ? "" : `, ${wordOf(row.trust)}`}`)),
    element("td", { class: "words" }, row.published || "–"),
    element("td", {}, spelled(row.effect), " ", element("small", { class: "within", title: row.over ? `interval over ${row.over}` : null }, between(row.low, row.high, row.effect))),
    element("td", {}, effectOf(row)),
    element("td", { class: `words verdict ${row.verdict.replaceAll(" ", "-")}` }, row.verdict),
    element("td", { class: "words soft" }, row.why, row.control ? element("div", {}, `Controls: ${row.control}`) : null, row.learnt ? element("p", {}, row.learnt) : null)));
  const heads = [...(several ? ["of"] : []), "claim", "published", "found here", "", "verdict", "why"];
  return section("What was published, and what is found here",
    soft(`${counted.map(([verdict, count]) => `${count} ${verdict}`).join(", ")}. Each claim was written down before anything was measured. Its whole interval lies where the claim says (reproduced, the shaded stretch), lies elsewhere (contradicted), or reaches into both (underpowered); where a control fails, or the models or the budget are others, it is not applicable.`),
    wideTable(heads.map((word) => headOf(word, true)), shown, { id: "claims" }));
}
