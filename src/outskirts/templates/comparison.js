"use strict";
(() => {
  const all = (query, from = document) => [...from.querySelectorAll(query)];
  const one = (query, from = document) => from.querySelector(query);
  const { forest, heat } = JSON.parse(one("#data").textContent);
  const minus = (text) => text.replace("-", "\u2212");
  const pct = (v) => (100 * v).toFixed(1);
  const signed = (v) => (v === null ? "\u2013" : Math.abs(v) < 0.0005 ? "0.0" : minus((v > 0 ? "+" : "") + pct(v)));
  all(".controls").forEach((box) => (box.hidden = false));

  /* Sorting: each body by itself, so that published rows never mix with ours; what has no value comes last. */
  const sort = (th, direction) => {
    const table = th.closest("table"), column = th.cellIndex, sign = direction === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column]?.dataset.v;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
    };
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", direction);
    for (const body of table.tBodies) body.append(...[...body.rows].sort(order));
  };
  all(".sortable th button").forEach((button) =>
    button.addEventListener("click", () => {
      const th = button.closest("th"), now = th.getAttribute("aria-sort"), first = th.dataset.first;
      sort(th, now === first ? (first === "ascending" ? "descending" : "ascending") : first);
    }));

  /* The main table: one metric at a time, sorted by the same place; rows by score. */
  const main = one(".main");
  all("input[name=metric]").forEach((input) =>
    input.addEventListener("change", () => {
      const sorted = one("th[aria-sort]", main);
      main.dataset.metric = input.value;
      if (sorted.dataset.place) {
        const th = one(`th.m${input.value}[data-place="${sorted.dataset.place}"]`, main);
        sort(th, th.dataset.first);
      }
      mark();
    }));
  const rows = all("tr[data-score]", main), count = one(".count"), beaten = one("#hidden-best");
  /* Bold is the best of the rows that are shown; where a hidden one is better, that is said in words. */
  const mark = () => {
    all("thead th.m", main).forEach((th) => {
      const sign = th.dataset.first === "descending" ? 1 : -1, value = (row) => sign * row.cells[th.cellIndex].dataset.v;
      const fair = rows.filter((row) => row.cells[th.cellIndex].classList.contains("fair"));
      const top = Math.max(...fair.filter((row) => !row.hidden).map(value));
      fair.forEach((row) => row.cells[th.cellIndex].classList.toggle("best", !row.hidden && value(row) === top));
      if (!th.matches(`.m${main.dataset.metric}[data-place="mean-all"]`)) return;
      const better = fair.filter((row) => row.hidden && value(row) > top).sort((a, b) => value(b) - value(a));
      beaten.hidden = !better.length;
      if (better.length) {
        const first = better[0], n = better.length, name = one("small", th).textContent;
        beaten.textContent = `Not shown, but better than every row here (${name}, all sets): ${first.dataset.who}, ` +
          `${pct(sign * value(first))}${n > 1 ? `, and ${n - 1} more row${n > 2 ? "s" : ""}` : ""}.`;
      }
    });
  };
  const show = (wanted) => {
    const shown = (row) => wanted === "*" || row.dataset.score === wanted ||
      (wanted === "~" && ("plain" in row.dataset || row.dataset.score === main.dataset.headline));
    rows.forEach((row) => (row.hidden = !shown(row)));
    mark();
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };
  const choose = (name, change) => one(`[data-choose="${name}"]`)?.addEventListener("change", change);
  const chosen = (name) => one(`[data-choose="${name}"]`)?.value;
  choose("rows", () => show(chosen("rows")));
  show(chosen("rows") ?? "*");

  /* Paired differences: the numbers of another score or metric in the rows that are there. */
  const tones = ["up", "flat", "down"], glyphs = ["\u25b2", "\u25cf", "\u25bc"];
  const drawForest = () => {
    const key = `${chosen("forest-score")}|${chosen("forest-metric")}`;
    const grid = forest.cells[key], [lo, hi] = forest.reach[key] ?? [-0.01, 0.01];
    const x = (v) => Math.min(100, Math.max(0, (100 * (v - lo)) / (hi - lo)));
    one("#forest-mark").hidden = !forest.transductive.includes(chosen("forest-score"));
    all(".forest .lo").forEach((e) => (e.textContent = signed(lo)));
    all(".forest .hi").forEach((e) => (e.textContent = signed(hi)));
    all(".forest tr[data-pair]").forEach((row) =>
      [0, 1, 2].forEach((place) => {
        const c = grid?.[row.dataset.pair][place], said = row.cells[1 + 2 * place], svg = one("svg", row.cells[2 + 2 * place]);
        const tone = c ? tones[c[3]] : "flat", span = c && c[1] !== null;
        said.className = c ? `diff ${tone} edge` : "none edge";
        said.replaceChildren(c ? "" : "\u2013");
        if (c) {
          const mark = document.createElement("i"), range = document.createElement("small");
          mark.textContent = glyphs[c[3]];
          mark.setAttribute("aria-hidden", "true");
          range.textContent = `${signed(c[1])} to ${signed(c[2])}`;
          said.append(mark, ` ${signed(c[0])}`, range);
        }
        const path = (cls, d) => {
          const p = document.createElementNS(svg.namespaceURI, "path");
          p.setAttribute("class", cls);
          p.setAttribute("d", d);
          return p;
        };
        svg.replaceChildren(path("zero", `M${x(0)} 0V100`));
        if (span) svg.append(path(`whisker ${tone}`, `M${x(c[1])} 50H${x(c[2])}`));
        if (c) svg.append(path(`dot ${tone}`, `M${x(c[0])} 50h.01`));
        svg.setAttribute("aria-label", c ? `${signed(c[0])} points, ${signed(c[1])} to ${signed(c[2])}` : "");
      }));
  };
  choose("forest-score", drawForest);
  choose("forest-metric", drawForest);

  /* AUROC by test set, of another score. */
  choose("heat-score", () => {
    const score = chosen("heat-score"), table = one("#heat"), mark = heat.transductive.includes(score);
    one("#heat-mark").hidden = !mark;
    all("tr[data-entry]", table).forEach((row) =>
      heat.cells[score][row.dataset.entry].forEach((c, i) => {
        const td = row.cells[i + 1];
        const why = typeof c === "string" ? c : "";
        if (why) c = null;
        td.className = !c ? "none" : c[0] < 0.5 ? "below" : "";
        td.textContent = c ? pct(c[0]) : why.startsWith("missing") ? "missing" : why ? "excluded" : "\u2013";
        td.title = c && c[1] !== null ? `${pct(c[1])}\u2013${pct(c[2])}` : why;
        td.style.setProperty("--h", c ? (2 * c[0] - 1) ** 2 : 0);
        if (c) td.dataset.v = c[0];
        else delete td.dataset.v;
        if (c && mark) td.append(Object.assign(document.createElement("sup"), { textContent: "\u2020" }));
      }));
    const sorted = one("th[aria-sort]", table);
    if (sorted) sort(sorted, sorted.getAttribute("aria-sort"));
  });

  /* ROC curves: the corner that matters, and the chosen curves alone. */
  choose("roc", () => {
    const [width, height] = chosen("roc").split(" ");
    all("svg.roc").forEach((svg) => svg.setAttribute("viewBox", `0 0 ${width} ${height}`));
    all("#rocs .far").forEach((e) => (e.textContent = width));
  });
  all("#roc-key button").forEach((button) =>
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      all(`#rocs [data-entry="${button.dataset.entry}"]`).forEach((curve) => curve.classList.toggle("on", on));
      one("#rocs").classList.toggle("some", !!one('#roc-key [aria-pressed="true"]'));
    }));
})();
