// Example outputs: one problem, the responses under two conditions, and what differs between them, marked by words.

const LARGEST = 16e6; // cells of the table that two texts are compared in: 4,000 by 4,000 words

// each word with the space before it
const wordsOf = (text) => text.match(/\s*\S+/g) ?? [];

// Two texts -> for each the runs [differs, text] it falls into; kept words are those of a longest common subsequence.
// `first` is the number of the first word that differs, none where none does; `whole` is false where the middle was too
// long to be compared and stands as differing.
function compared(left, right) {
  const a = wordsOf(left), b = wordsOf(right), numbers = new Map();
  const numbered = (words) => Int32Array.from(words, (word) => { const bare = word.trim(); if (!numbers.has(bare)) numbers.set(bare, numbers.size); return numbers.get(bare); });
  const p = numbered(a), q = numbered(b), kept = [new Uint8Array(a.length), new Uint8Array(b.length)];
  const keep = (i, j) => { kept[0][i] = 1; kept[1][j] = 1; };
  let from = 0, n = a.length, m = b.length;
  while (from < n && from < m && p[from] === q[from]) { keep(from, from); from += 1; }
  while (n > from && m > from && p[n - 1] === q[m - 1]) { n -= 1; m -= 1; keep(n, m); }
  const high = n - from, wide = m - from + 1, whole = (high + 1) * wide <= LARGEST;
  if (whole) {
    // longest[i * wide + j]: of what follows word i on the left and word j on the right
    const longest = new Uint16Array((high + 1) * wide);
    for (let i = high - 1; i >= 0; i -= 1)
      for (let j = wide - 2; j >= 0; j -= 1)
        longest[i * wide + j] = p[from + i] === q[from + j] ? longest[(i + 1) * wide + j + 1] + 1 : Math.max(longest[(i + 1) * wide + j], longest[i * wide + j + 1]);
    for (let i = 0, j = 0; i < high && j < wide - 1; ) {
      if (p[from + i] === q[from + j]) { keep(from + i, from + j); i += 1; j += 1; }
      else if (longest[(i + 1) * wide + j] >= longest[i * wide + j + 1]) i += 1;
      else j += 1;
    }
  }
  const runs = (words, kept, tail) => {
    const found = [];
    words.forEach((word, i) => {
      const differs = !kept[i];
      if (found.at(-1)?.[0] === differs) { found.at(-1)[1] += word; return; }
      const space = differs ? word.match(/^\s*/)[0] : ""; // the space before a mark is not marked
      if (space) { if (found.length) found.at(-1)[1] += space; else found.push([false, space]); }
      found.push([differs, word.slice(space.length)]);
    });
    return [...found, ...(tail ? [[false, tail]] : [])];
  };
  const same = n === from && m === from;
  return { left: runs(a, kept[0], left.match(/\s*$/)[0]), right: runs(b, kept[1], right.match(/\s*$/)[0]), first: same ? null : from + 1, whole };
}

const GRADES = { true: "right", false: "wrong" };
const gradeOf = (correct) => GRADES[correct] ?? "not graded";
const CHANGES = {
  all: ["all problems", () => true],
  lost: ["right to wrong", (before, after) => before === true && after === false],
  won: ["wrong to right", (before, after) => before === false && after === true],
};

function outputs(sets) {
  if (!sets?.length) return null;
  let at = 0, set, left, right, change, shown, place, asked = 0;
  const select = (word, act) => { const made = element("select", { "aria-label": word }); made.addEventListener("change", () => act(made.value)); return made; };
  const fill = (made, options, value) => { made.replaceChildren(...options.map(([key, word]) => element("option", { value: key }, word))); made.value = value; };
  const which = select("outputs of", (value) => { at = Number(value); open(); });
  const one = select("first condition", (value) => { left = value; choose(); }), other = select("second condition", (value) => { right = value; choose(); });
  const changed = select("changed", (value) => { change = value; choose(); }), problem = select("problem", (value) => { place = Number(value); read(); });
  const count = element("span", { class: "soft count" }), body = element("div", { id: "outputs" });
  const step = (by) => { if (shown.length) { place = (place + by + shown.length) % shown.length; read(); } };

  function open() {
    set = sets[at];
    const edited = set.conditions.find((some) => !some.control && some.compared !== null && set.correct[some.compared]);
    left = edited?.compared ?? set.conditions[0].key;
    right = (edited ?? set.conditions[1] ?? set.conditions[0]).key;
    change = "all";
    choose();
  }

  function choose() {
    const before = set.correct[left], after = set.correct[right], passing = (test) => set.problems.map((_, n) => n).filter((n) => set.text[left][n] !== null && set.text[right][n] !== null && test(before[n], after[n]));
    const options = set.conditions.map(({ key, title, role }) => [key, title + (role && !title.includes(role) && set.conditions.some((some) => some.role !== role) ? ` · ${role}` : "")]);
    fill(which, sets.map(({ name, task }, n) => [n, `${wordOf(name)}, ${task}`]), at);
    fill(one, options, left);
    fill(other, options, right);
    fill(changed, Object.entries(CHANGES).map(([name, [word, test]]) => [name, `${word} (${passing(test).length})`]), change);
    shown = passing(CHANGES[change][1]);
    place = 0;
    fill(problem, shown.map((n, k) => [k, `${set.problems[n]}: ${gradeOf(before[n])} → ${gradeOf(after[n])}${set.text[left][n] === set.text[right][n] ? ", same text" : ""}`]), 0);
    read();
  }

  async function read() {
    const mine = (asked += 1);
    count.textContent = shown.length ? `${place + 1} of ${shown.length}` : "";
    if (!shown.length) { body.replaceChildren(element("p", {}, "No problem changed this way.")); return; }
    problem.value = place;
    const found = await unpacked(`outputs-${at}-${shown[place]}`);
    if (mine !== asked) return; // another was chosen meanwhile
    const [before, after] = [found.of[left], found.of[right]], difference = compared(found.texts[before.text], found.texts[after.text]);
    body.replaceChildren(
      element("dl", { class: "asked" }, element("dt", {}, "question"), element("dd", {}, found.question), element("dt", {}, "gold answer"), element("dd", {}, String(found.gold ?? "–"))),
      element("p", { class: "soft", role: "status" }, difference.first === null ? "The two responses are the same, word for word." : `They differ first at word ${difference.first.toLocaleString("en-US")}.`,
        difference.whole ? "" : " What lies between their common beginning and their common end is too long to be compared word by word, and is marked as a whole."),
      element("div", { class: "responses" }, side(left, before, difference.left, "del"), side(right, after, difference.right, "ins")));
  }

  function side(key, facts, runs, tag) {
    const said = [facts.finished === false ? "cut off by the budget" : null, fact("tokens", facts.tokens), fact("hesitations", facts.hesitations), fact("perplexity", facts.nll === null ? null : Math.exp(facts.nll)),
      fact("repetition", facts.repetition), facts.touched ? `edited on ${spelled(facts.touched)} tokens` : null].filter(Boolean).join(" · ");
    return element("article", {},
      element("header", {}, element("h4", {}, set.conditions.find((some) => some.key === key).title), element("span", { class: `grade ${gradeOf(facts.correct)}` }, gradeOf(facts.correct))),
      element("p", { class: "read" }, "answer ", element("b", {}, facts.answer ?? "none found"), facts.rule ? element("small", {}, ` read by: ${facts.rule}`) : null),
      element("small", {}, said),
      element("div", { class: "response", tabindex: 0 }, runs.map(([differs, text]) => (differs ? element(tag, {}, text) : text))));
  }

  const fact = (word, value) => (value === null || value === undefined ? null : `${word} ${spelled(value)}`);
  const button = (word, title, act) => element("button", { type: "button", title, onclick: act }, word);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName ?? "")) return;
    if (event.key === "n") step(1);
    if (event.key === "p") step(-1);
  });
  const left_out = sets.filter((some) => some.left_out).map((some) => `${some.left_out.toLocaleString("en-US")} more problems of ${some.task} (${wordOf(some.name)})`);
  open();
  return section("Example outputs",
    element("p", { class: "soft" }, "The same problem under two conditions. Words that only one of the responses has are marked: ", element("del", {}, "dashed, the first alone"), ", ", element("ins", {}, "underlined, the second alone"), ". Keys: n and p go on and back."),
    left_out.length ? element("p", { class: "soft" }, `Problems on which conditions disagree come first; ${left_out.join(", ")} stand in the tables of the run only.`) : null,
    element("div", { class: "filters" }, sets.length > 1 ? which : null, one, element("span", { class: "soft" }, "against"), other, changed, problem, button("‹", "previous (p)", () => step(-1)), button("›", "next (n)", () => step(1)), count),
    body);
}
