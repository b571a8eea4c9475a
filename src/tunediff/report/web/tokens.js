// How tokens are shown, and what a search asks of them.

const SPELLED = "␣ is a space and ↵ a line break. A character of several tokens stands at the last of them, and ⟨🙂 1/3⟩ for the first of three; ⟨F0 9F⟩ is bytes by themselves. A search for Wait looks at all words of the strongest examples and at what a latent writes; one with ␣ or \\n, such as ␣Wait, at the tokens it fires on or writes.";

// a token in running text: line breaks and what takes no ink are named, but for the joiner of an emoji
const inRunning = (token) => token.replaceAll("\n", "↵").replaceAll("\t", "⇥")
  .replaceAll(/(?![ \u200d])[\p{Cc}\p{Cf}\p{Z}]/gu, (one) => `⟨U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
// and by itself, where the spaces at its ends are seen
const visible = (token) => inRunning(token).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
const chips = (tokens) => (tokens ?? []).map((token) => element("span", {}, visible(token)));

// the placeholders of a character's earlier tokens: spelling.py
const PLACEHOLDER = new RegExp(`(${DATA.placeholder})`, "u");
const inParts = (token) => token.split(PLACEHOLDER).map((part, n) => (n % 2 ? element("small", {}, part) : inRunning(part)));
const textOf = (token) => token.split(PLACEHOLDER).filter((_, n) => n % 2 === 0).join("");

// what is typed -> what is looked for in tokens; \nu and \neq are no line breaks
const asTyped = (typed) => typed.toLowerCase().replaceAll("␣", " ").replaceAll(/\\n(?![a-z])|[↵⏎]/g, "\n").replaceAll("⇥", "\t")
  .replaceAll(/⟨u\+([0-9a-f]{4,6})⟩/g, (_, number) => String.fromCodePoint(Number.parseInt(number, 16)));
// a space before the first word is one of the token's
const wordsIn = (typed) => typed.replaceAll('"', "").replace(/^ +(?=\S)/, "␣").split(/\s+/).filter(Boolean).map(asTyped);
