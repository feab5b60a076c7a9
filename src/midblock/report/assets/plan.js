// The plan: a bar for each trained block, and below it block by projection, filled where it is trained.

const ROW = 16;

const amount = (value) => (value >= 1e6 ? `${number(value / 1e6, 3)} M` : value >= 1e4 ? `${number(value / 1e3, 3)} K` : number(value));

// Ranks, or millions of parameters; room above the bars for their numbers.
function planLevels(top, bottom) {
  const highest = Math.max(1, ...DATA.plan.bars.map((bar) => bar.value));
  const y = verticalScale({ low: 0, high: 1.25 * highest, log: false }, top, bottom);
  y.ticks = y.ticks.map(({ value }) => ({ value, label: amount(value) }));
  return y;
}

// Neighbours of the same height share one number above them.
function nameBars(group, bars, x, y) {
  const runs = [];
  for (const bar of bars) {
    const last = runs.at(-1);
    if (last && last.value === bar.value && last.to + 1 === bar.layer) last.to = bar.layer;
    else runs.push({ from: bar.layer, to: bar.layer, value: bar.value });
  }
  for (const run of runs) {
    const text = amount(run.value);
    if (textWidth(text, 12) > (run.to - run.from + 1) * x.step + 6) continue;
    draw(group, "text", { class: "share", x: (x(run.from) + x(run.to)) / 2, y: y(run.value) - 5, "text-anchor": "middle" }, text);
  }
}

function drawPlanBars(svg, x, top, bottom) {
  const { bars, title, unit } = DATA.plan;
  const y = planLevels(top, bottom);
  frame(svg, x, y, title, unit, false);
  const group = draw(svg, "g", { class: "marks" });
  const wide = Math.min(x.step * 0.86, WIDEST);
  for (const bar of bars)
    draw(group, "rect", { class: "m1 bar", x: x(bar.layer) - wide / 2, y: y(bar.value), width: wide, height: Math.max(1.5, bottom - y(bar.value)), rx: Math.min(2, wide / 4) });
  nameBars(group, bars, x, y);
}

function drawPlanRows(svg, x, top) {
  const { rows, cells } = DATA.plan;
  const group = draw(svg, "g", { class: "axis" });
  const gap = Math.min(2, x.step * 0.14);
  rows.forEach((label, row) => {
    const y = top + row * ROW;
    draw(group, "text", { x: x.left - 7, y: y + ROW / 2 + 4, "text-anchor": "end" }, label);
    const trained = new Set(cells.filter((cell) => cell.row === row).map((cell) => cell.layer));
    const inside = [...trained].some((layer) => layer >= 0 && layer < L);
    const layers = new Set([...trained, ...(inside ? Array(L).keys() : [])]);
    for (const layer of layers)
      draw(svg, "rect", { class: trained.has(layer) ? "m1 cell trained" : "frozen", x: x(layer) - x.step / 2 + gap / 2, y: y + 1, width: x.step - gap, height: ROW - 2, rx: 1.5 });
  });
  return top + rows.length * ROW;
}

function drawPlan(box, spec) {
  const { rows, cells } = DATA.plan;
  const width = Math.max(260, box.clientWidth);
  const left = Math.ceil(Math.max(...[...rows, ...planLevels(0, 96).ticks.map((tick) => tick.label)].map((text) => textWidth(text)))) + 12;
  const x = depthScale(left, width - (width < 700 ? 11 : 2));
  const svg = draw(null, "svg", { width, role: "group", "aria-label": spec.title });
  draw(svg, "title", {}, spec.title);
  draw(svg, "desc", {}, spec.caption);
  drawPlanBars(svg, x, 28, 124);
  const bottom = drawPlanRows(svg, x, 132) + 5;
  const has = (layer) => cells.some((cell) => cell.layer === layer);
  const ends = { first: has(-1), last: has(L) ? "head" : null };
  depthAxis(svg, x, bottom, ends, true);
  svg.setAttribute("height", bottom + 40);
  svg.setAttribute("viewBox", `0 0 ${width} ${bottom + 40}`);
  const layers = [...(ends.first ? [-1] : []), ...Array(L).keys(), ...(ends.last ? [L] : [])];
  cursor(svg, [], x, 6, bottom, layers, {
    label: "Depth",
    title: (layer) => layerName(layer, true) + (has(layer) ? "" : " · frozen"),
    rows: (layer) => cells.filter((cell) => cell.layer === layer).map((cell) => ({ hue: 1, name: cell.role, value: cell.said })),
  });
  box.replaceChildren(svg);
}
