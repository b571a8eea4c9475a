// Example outputs: one problem, the responses under two conditions, and what differs between them, marked by words.

const LARGEST = 16e6; // cells of the table that two texts are compared in: 4,000 by 4,000 words

// each word with the space before it
const wordsOf = (text) => text.match(/\s*\S+/g) ?? [];

// Two texts -> for each the runs [differs, text] it falls into; kept words are those of a longest common subsequence.
// `first` is the number of the first word that differs, none where none does; `whole` is false where the middle was too
// long to be compared and stands as differing.
function compared(left, right) {
  const a = wordsOf(left), b = wordsOf(right), numbers = new Map();
  const numbered = (words) => Int32Array.from(words, (word) => numbers.get(word.trim()) ?? numbers.set(word.trim(), numbers.size).get(word.trim()));
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
  const runs = (text, words, kept) => {
    const found = [], parts = words.flatMap((word, i) => {
      const space = word.match(/^\s*/)[0]; // it is marked between two words that are
      return kept[i] ? [[false, word]] : [[i > 0 && !kept[i - 1], space], [true, word.slice(space.length)]];
    });
    for (const [differs, part] of [...parts, [false, text.match(/\s*$/)[0]]])
      if (found.at(-1)?.[0] === differs) found.at(-1)[1] += part;
      else if (part) found.push([differs, part]);
    return found;
  };
  return { left: runs(left, a, kept[0]), right: runs(right, b, kept[1]), first: n === from && m === from ? null : from + 1, whole };
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
  let at = 0, set, shown, place, asked = 0;
  const asks = {}; // left, right, change: what was chosen
  const chooser = (key, word) => selector(word, [], (value) => { asks[key] = value; choose(); });
  const fill = (made, options, value) => { made.replaceChildren(...options.map(([key, word]) => element("option", { value: key }, word))); made.value = value; };
  const which = selector("outputs of", sets.map(({ name, task }, n) => [n, `${wordOf(name)}, ${task}`]), (value) => { at = Number(value); open(); });
  const one = chooser("left", "first condition"), other = chooser("right", "second condition"), changed = chooser("change", "changed");
  const problem = selector("problem", [], (value) => { place = Number(value); read(); });
  const count = element("span", { class: "soft count" }), body = element("div", { id: "outputs" });
  const step = (by) => { if (shown.length) { place = (place + by + shown.length) % shown.length; read(); } };

  function open() {
    set = sets[at];
    const edited = set.conditions.find((some) => !some.control && some.compared !== null && set.correct[some.compared]);
    Object.assign(asks, { left: edited?.compared ?? set.conditions[0].key, right: (edited ?? set.conditions[1] ?? set.conditions[0]).key, change: "all" });
    choose();
  }

  function choose() {
    const { left, right, change } = asks, before = set.correct[left], after = set.correct[right], texts = [set.text[left], set.text[right]];
    const answered = set.problems.map((_, n) => n).filter((n) => texts.every((some) => some[n] !== null));
    const passing = ([, test]) => answered.filter((n) => test(before[n], after[n]));
    const several = new Set(set.conditions.map(({ role }) => role)).size > 1;
    const options = set.conditions.map(({ key, title, role }) => [key, several && role && !title.includes(role) ? `${title} · ${role}` : title]);
    fill(one, options, left);
    fill(other, options, right);
    fill(changed, Object.entries(CHANGES).map(([name, way]) => [name, `${way[0]} (${passing(way).length})`]), change);
    shown = passing(CHANGES[change]);
    place = 0;
    const same = (n) => (texts[0][n] === texts[1][n] ? ", same text" : "");
    fill(problem, shown.map((n, k) => [k, `${set.problems[n]}: ${gradeOf(before[n])} → ${gradeOf(after[n])}${same(n)}`]), 0);
    read();
  }

  async function read() {
    const mine = (asked += 1);
    count.textContent = shown.length ? `${place + 1} of ${shown.length}` : "";
    if (!shown.length) { body.replaceChildren(element("p", {}, "No problem changed this way.")); return; }
    problem.value = place;
    const found = await unpacked(`outputs-${at}-${shown[place]}`);
    if (mine !== asked) return; // another was chosen meanwhile
    const [before, after] = [asks.left, asks.right].map((key) => ({ key, ...found.of[key] })), difference = compared(found.texts[before.text], found.texts[after.text]);
    body.replaceChildren(
      definitions("asked", [["question", found.question], ["gold answer", String(found.gold ?? "–")]]),
      element("p", { class: "soft", role: "status" }, difference.first === null ? "The two responses are the same, word for word." : `They differ first at word ${many(difference.first)}.`,
        difference.whole ? "" : " What lies between their common beginning and their common end is too long to be compared word by word, and is marked as a whole."),
      element("div", { class: "responses" }, side(before, difference.left, "del"), side(after, difference.right, "ins")));
  }

  function side({ key, answer, rule, correct, finished, nll, touched, ...facts }, runs, tag) {
    const told = Object.entries({ tokens: facts.tokens, hesitations: facts.hesitations, perplexity: absent(nll) ? null : Math.exp(nll), repetition: facts.repetition });
    const said = [finished === false ? "cut off by the budget" : null, ...told.map(([word, value]) => (absent(value) ? null : `${word} ${spelled(value)}`)),
      touched ? `edited on ${spelled(touched)} tokens` : null].filter(Boolean).join(" · ");
    return element("article", {},
      element("header", {}, element("h4", {}, set.conditions.find((some) => some.key === key).title), element("span", { class: `grade ${gradeOf(correct)}` }, gradeOf(correct))),
      element("p", { class: "read" }, "answer ", element("b", {}, answer ?? "none found"), rule ? element("small", {}, ` read by: ${rule}`) : null),
      element("small", {}, said),
      element("div", { class: "response", tabindex: 0 }, runs.map(([differs, text]) => (differs ? element(tag, {}, text) : text))));
  }

  addEventListener("keydown", (event) => {
    const by = { n: 1, p: -1 }[event.key];
    if (by && !elsewhere(event) && !typing(event)) step(by);
  });
  const leftOut = sets.filter((some) => some.left_out).map((some) => `${many(some.left_out)} more problems of ${some.task} (${wordOf(some.name)})`);
  open();
  return section("Example outputs",
    soft("The same problem under two conditions. Words that only one of the responses has are marked: ", element("del", {}, "dashed, the first alone"), ", ", element("ins", {}, "underlined, the second alone"), ". Keys: n and p go on and back."),
    leftOut.length ? soft(`Problems on which conditions disagree come first; ${leftOut.join(", ")} stand in the tables of the run only.`) : null,
    element("div", { class: "filters" }, sets.length > 1 ? which : null, one, element("span", { class: "soft" }, "against"), other, changed, problem,
      button("‹", () => step(-1), { title: "previous (p)" }), button("›", () => step(1), { title: "next (n)" }), count),
    body);
}
