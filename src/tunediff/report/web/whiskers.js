// Rows of dots or bars with whiskers, a panel a measure, as wide as there is room for.

// Rows are { label, colour, control, first, ruled, of }: `of` holds the numbers, `first` opens a group, and a line stands
// in every panel at a row that is ruled. Columns are { name, word, log }. Drawn as wide as there is room for.
function whiskers(title, rows, columns, { bar = false, table }) {
  const spread = columns.map(({ name, log }) => {
    const all = rows.flatMap(({ of }) => [of[name], of[`${name}_low`], of[`${name}_high`]]).filter((v) => !absent(v));
    const far = log && lowest(all) > 0 && highest(all) > 8 * lowest(all), by = shrinking(all), as = far ? Math.log10 : (v) => v / by;
    const lying = [...all.map(as), ...(bar && !far ? [0] : [])], [low, high] = extent(lying, 0.07);
    const spell = far ? unlog : (v) => short(v * by), positive = !far && lowest(lying) >= 0;
    return { as, spell, far, low: positive ? Math.max(0, low) : low, high };
  });

  // panels stand beside each other where each has room for its heading, else in two rows, else one below the other
  function draw(wide) {
    const stacked = wide < 640, label = stacked ? 0 : Math.min(310, 0.29 * wide), gap = 26, most = (stacked ? wide : label - 24) / 6.3;
    const step = stacked ? 38 : rows.some((row) => broken(row.label, most).length > 1) ? 30 : 25, head = 26, foot = 38;
    const across = stacked ? 1 : (wide - label) / columns.length > 175 ? columns.length : Math.ceil(columns.length / 2);
    const each = (wide - label - gap * (across - 1) - 12) / across, tall = head + rows.length * step + foot;
    const high = tall * Math.ceil(columns.length / across) - 12;
    const svg = drawn("svg", { viewBox: `0 0 ${Math.round(wide)} ${high}`, role: "img", "aria-label": title });
    const words = (row, x, y) => {
      const all = broken(row.label, most), lines = all.slice(0, stacked ? 1 : 2), indent = row.control ? 14 : 0;
      if (all.length > lines.length) lines[lines.length - 1] += " …"; // a dot says the whole
      const at = (n) => ({ class: row.control ? "name control" : "name", x: x + indent, y: y + 4 + (n - (lines.length - 1) / 2) * 12 });
      lines.forEach((line, n) => svg.append(drawn("text", at(n), line)));
    };
    columns.forEach(({ name, word }, c) => {
      const { as, spell, far, low, high: top } = spread[c], first = c % across === 0, left = label + (c % across) * (each + gap) + 6;
      const above = Math.floor(c / across) * tall, end = above + head + rows.length * step, right = left + each;
      const place = (at) => left + ((at - low) / (top - low)) * each, x = (v) => place(as(v)), start = far ? left : x(0);
      const y = (n) => above + head + (n + (stacked ? 0.72 : 0.5)) * step;
      svg.append(drawn("text", { class: "name", x: left, y: above + 12 }, far ? `${word}, logarithmic` : word));
      svg.append(drawn("line", { class: "axis", x1: left, x2: right, y1: end, y2: end }));
      const marks = far ? logTicks(low, top) : ticks(low, top, each < 150 ? 2 : 3), every = Math.ceil((marks.length * 36) / each);
      for (const at of marks.filter((_, n) => n % every === 0))
        svg.append(drawn("text", { x: place(at), y: end + 15, "text-anchor": "middle" }, spell(at)));
      rows.forEach((row, n) => {
        const from = above + head + n * step;
        if (row.first && n) svg.append(drawn("line", { class: "axis", x1: first && !stacked ? 0 : left, x2: right, y1: from, y2: from }));
        if (!row.ruled || row.of[name] === null) return;
        const at = { class: "mark", style: `stroke:${row.colour}`, x1: x(row.of[name]), x2: x(row.of[name]) };
        const rule = (y1, y2) => svg.append(drawn("line", { ...at, y1, y2 }));
        if (stacked) rows.forEach((_, n) => rule(y(n) - 7, y(n) + 7)); // names stand between
        else rule(above + head, end);
      });
      rows.forEach((row, n) => {
        const value = row.of[name], lows = row.of[`${name}_low`] ?? value, highs = row.of[`${name}_high`] ?? value;
        if (first) words(row, stacked ? left : 0, stacked ? y(n) - 15 : y(n));
        if (absent(value)) return;
        const within = highs > lows ? ` (${between(lows, highs, value)})` : "";
        const one = drawn("g", { opacity: row.control ? 0.5 : 1, title: `${row.label}: ${word} ${spelled(value)}${within}` });
        const { colour } = row, at = x(value), reach = { x: Math.min(start, at), width: Math.abs(at - start), y: y(n) - 6, height: 12 };
        if (bar) one.append(drawn("rect", { ...reach, fill: colour, opacity: 0.45 }));
        one.append(drawn("line", { x1: x(lows), x2: x(highs), y1: y(n), y2: y(n), stroke: colour, "stroke-width": 1.8 }));
        const fill = row.control ? "var(--paper)" : colour;
        if (!bar) one.append(drawn("circle", { cx: at, cy: y(n), r: 4, fill, stroke: colour, "stroke-width": 1.6 }));
        svg.append(one);
      });
    });
    return svg;
  }

  const holder = element("div", {}, draw(1100));
  onWidth(holder, (wide) => holder.replaceChildren(draw(wide)));
  return figure(title, holder, { rows: table, make: () => aside(draw(1100)), kind: "broad" });
}

// words in lines of at most `most` letters
const broken = (text, most) => text.match(new RegExp(`\\S.{0,${Math.floor(most) - 1}}(?=\\s|$)|\\S+`, "g")) ?? [""];
