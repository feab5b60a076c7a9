// The table of numbers: built when first seen, drawn a screenful at a time, filtered, sorted, saved as CSV.

const COLUMNS = ["model", "dataset", "layer", "depth", "module", "metric", "value", "low", "high", "n", "state"];
const NUMERIC = new Set(["layer", "depth", "value", "low", "high", "n"]);
const CHUNK = 80;

function allRows() {
  return DATA.series.flatMap((s) =>
    s.layer.map((layer, i) => ({
      model: s.model, dataset: s.dataset, layer, depth: (layer + 1) / L, module: s.module, metric: s.metric,
      value: s.value[i], low: each(s.low, i), high: each(s.high, i), n: each(s.n, i),
      state: each(s.state, i) ?? "measured",
    })),
  );
}

function compare(column, way) {
  return (a, b) => {
    const [p, q] = [a[column], b[column]];
    if (p === null || q === null) return (p === null) - (q === null); // what is missing comes last either way
    return way * (NUMERIC.has(column) ? p - q : p < q ? -1 : p > q ? 1 : 0);
  };
}

function csv(rows) {
  const cell = (v) => (v === null ? "" : /[",\n\r]/.test(String(v)) ? `"${String(v).replace(/"/g, '""')}"` : String(v));
  return [COLUMNS, ...rows.map((row) => COLUMNS.map((column) => row[column]))].map((line) => line.map(cell).join(",")).join("\n") + "\n";
}

function buildTable(box, filters) {
  const rows = allRows();
  const columns = COLUMNS.filter((c) => c !== "dataset" || new Set(rows.map((r) => r.dataset).filter(Boolean)).size > 1);
  const wanted = {};
  const state = { column: null, way: 1, rows, shown: 0 };
  const table = html(box, "table");
  const head = html(html(table, "thead"), "tr");
  const body = html(table, "tbody");
  const count = html(null, "span", { class: "count", role: "status" });

  const more = () => {
    for (const row of state.rows.slice(state.shown, state.shown + CHUNK)) {
      const line = html(body, "tr");
      for (const c of columns) html(line, "td", NUMERIC.has(c) ? { class: "number" } : {}, NUMERIC.has(c) && c !== "layer" ? number(row[c], c === "depth" ? 3 : 7) : String(row[c]));
    }
    state.shown = Math.min(state.rows.length, state.shown + CHUNK);
  };
  const refresh = () => {
    state.rows = rows.filter((row) => Object.entries(wanted).every(([column, value]) => !value || row[column] === value));
    if (state.column) state.rows.sort(compare(state.column, state.way));
    body.replaceChildren();
    state.shown = 0;
    more();
    box.scrollTop = 0;
    count.textContent = `${state.rows.length.toLocaleString("en")} rows`;
  };
  const sort = (column) => {
    state.way = state.column === column ? -state.way : 1;
    state.column = column;
    for (const th of head.children) th.setAttribute("aria-sort", th.dataset.column !== column ? "none" : state.way > 0 ? "ascending" : "descending");
    refresh();
  };
  for (const column of columns) {
    const th = html(head, "th", { scope: "col", "aria-sort": "none", "data-column": column, class: NUMERIC.has(column) ? "number" : "" });
    html(th, "button", { type: "button" }, column).addEventListener("click", () => sort(column));
  }
  for (const column of ["metric", "model", "module", "state"]) {
    const label = html(filters, "label", {}, column);
    const select = html(label, "select");
    html(select, "option", { value: "" }, "all");
    for (const value of [...new Set(rows.map((r) => r[column]))].sort()) html(select, "option", { value }, value);
    select.addEventListener("change", () => { wanted[column] = select.value; refresh(); });
  }
  filters.append(count);
  html(filters, "button", { type: "button", "data-csv": "" }, "Download CSV").addEventListener("click", () => save(new Blob([csv(state.rows)], { type: "text/csv" }), "layers.csv"));
  box.addEventListener("scroll", () => { if (box.scrollTop + box.clientHeight > box.scrollHeight - 400 && state.shown < state.rows.length) more(); });
  refresh();
}
