// What a panel shows: its curves and references found in the data, and the range of its axis.

const SUFFIX = { null: ".null", floor: ".precision_floor", split: ".split_floor", random: ".random", seeds: ".seeds" };
const drawnIn = (spec, model) => !spec.models.length || spec.models.includes(model);
// One curve's points; NaN stays as null so that it becomes a gap.
function pointsOf(series, distance) {
  return series.layer.map((layer, i) => {
    const point = { layer, v: series.value[i], lo: each(series.low, i), hi: each(series.high, i), n: each(series.n, i), state: each(series.state, i) ?? "measured" };
    if (!distance) return point;
    const flip = (v) => (v === null ? null : 1 - v);
    return { ...point, v: flip(point.v), lo: flip(point.hi), hi: flip(point.lo) };
  });
}

function readPanel(panel, mode, spec) {
  const distance = panel.distance || mode === "distance";
  const find = (metric) =>
    DATA.series
      .filter((s) => s.metric === metric && s.module === panel.module && !hidden.has(s.model) && drawnIn(spec, s.model))
      .sort((a, b) => DATA.models.indexOf(a.model) - DATA.models.indexOf(b.model))
      .map((s) => ({ model: s.model, hue: hue(s.model), dataset: s.dataset, points: pointsOf(s, distance) }));
  const about = DATA.metrics[panel.metric.split(".")[0]];
  const read = { panel, distance, about, lines: find(panel.metric), beside: panel.beside ? find(panel.beside) : [] };
  const datasets = new Set(read.lines.map((line) => line.dataset)).size;
  for (const line of read.lines) line.name = datasets > 1 ? `${line.model} · ${line.dataset}` : line.model;
  for (const [kind, suffix] of Object.entries(SUFFIX)) read[kind] = find(panel.metric + suffix);
  read.null = read.null.filter((line) => line.points.some((p) => p.v !== null));
  read.marks = panel.marks.filter((mark) => !hidden.has(mark.model));
  if (read.null.length > 1) read.null = [envelope(read.null)];
  read.title = panel.title || (distance ? "1 − " : "") + about.title;
  read.unit = panel.distance ? `1 − ${about.title}` : mode === "distance" ? "log scale" : about.unit;
  return read;
}

// Several models' nulls are one reference: the mean of the means, the outermost bounds.
function envelope(lines) {
  const at = new Map();
  for (const point of lines.flatMap((line) => line.points)) at.set(point.layer, [...(at.get(point.layer) ?? []), point]);
  const finite = (points, key) => points.map((p) => p[key]).filter((v) => v !== null);
  const points = [...at].sort(([a], [b]) => a - b).map(([layer, all]) => {
    const [v, lo, hi] = ["v", "lo", "hi"].map((key) => finite(all, key));
    return { layer, v: v.length ? v.reduce((a, b) => a + b) / v.length : null, lo: lo.length ? Math.min(...lo) : null, hi: hi.length ? Math.max(...hi) : null, n: all[0].n };
  });
  return { ...lines[0], points };
}

function domainOf(read, mode) {
  const { panel, about, distance } = read;
  const all = [];
  const take = (lines, keys) => lines.forEach((l) => l.points.forEach((p) => keys.forEach((k) => p[k] !== null && all.push(p[k]))));
  take(read.lines, ["v", "lo", "hi"]);
  take(read.floor, ["v"]);
  take(read.beside, ["v"]);
  take(read.random, ["v", "lo", "hi"]);
  take(read.seeds, ["lo", "hi"]);
  if (panel.zero) all.push(0);
  if (mode !== "zoom") take(read.null, ["v", "lo", "hi"]);
  if (mode === "full") all.push(1);
  const positive = all.filter((v) => v > 0);
  const values = all.length ? all : [0, 1];
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const centre = read.lines.flatMap((l) => l.points.map((p) => p.v)).filter((v) => v !== null);
  const wide = low > 0 && Math.max(...centre) / Math.min(...centre) > 150 && about.bounds[1] === null;
  const asked = panel.log && low > 0 && high > low;
  if ((mode === "distance" && positive.length) || (wide && panel.mark === "line") || asked)
    return { low: Math.min(...positive) / 1.25, high: Math.max(...positive) * 1.25, log: true };
  if (panel.mark === "bars" || (low >= 0 && low < 0.4 * high && (distance || about.bounds[0] === 0))) low = Math.min(0, low);
  if (high === low) [low, high] = [low - (Math.abs(low) * 0.05 || 0.5), high + (Math.abs(high) * 0.05 || 0.5)];
  const pad = 0.07 * (high - low);
  const [least, most] = distance ? [0, null] : about.bounds;
  const under = low === 0 ? 0 : low - pad;
  return { low: least !== null && low >= least ? Math.max(under, least) : under, high: most !== null && high <= most ? Math.min(high + pad, most) : high + pad, log: false };
}
