// The scripts of a page are one text in the browser: what stands at the top of one is known to the others.

import { readdirSync, readFileSync } from "node:fs";

const here = new URL(".", import.meta.url);
const scripts = readdirSync(here).filter((name) => name.endsWith(".js"));
const known = (name) => [...readFileSync(new URL(name, here), "utf8").matchAll(/^(?:async )?(?:function|const|let) (?:\{[^}]*\}|\w+)|(?<=^const .*, )\w+(?= = )/gm)]
  .map(([found]) => found.split(" ").at(-1));
const ofBrowsers = "document window location AbortController history addEventListener fetch Blob Response URL Image DecompressionStream ResizeObserver XMLSerializer";
const browser = `${ofBrowsers} URLSearchParams setTimeout clearTimeout requestAnimationFrame getComputedStyle matchMedia performance navigator devicePixelRatio innerHeight innerWidth`;
const readonly = (names) => Object.fromEntries(names.map((name) => [name, "readonly"]));

const rules = {
  "no-undef": "error", "no-unused-vars": ["error", { vars: "local" }], "no-redeclare": ["error", { builtinGlobals: false }],
  "no-shadow-restricted-names": "error", "no-dupe-keys": "error", "no-dupe-else-if": "error", "no-unreachable": "error", "no-self-compare": "error",
  "no-constant-condition": "error", "no-implied-eval": "error", "no-eval": "error", "no-var": "error", "prefer-const": ["error", { destructuring: "all" }],
  eqeqeq: "error", "no-cond-assign": "error", "use-isnan": "error", "valid-typeof": "error",
  // data reaches a document as text nodes and attributes only
  "no-restricted-properties": ["error", ...["innerHTML", "outerHTML", "insertAdjacentHTML", "write"].map((property) => ({ property }))],
};

export default scripts.map((name) => ({
  files: [name],
  languageOptions: { sourceType: "script", globals: readonly([...browser.split(" "), ...scripts.filter((other) => other !== name).flatMap(known)]) },
  rules: { ...rules, ...(["figures.js", "whiskers.js"].includes(name) ? { "max-len": ["error", 140] } : {}) },
}));
