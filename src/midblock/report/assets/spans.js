// Swapped blocks: a panel for each host, a span for each swap over its blocks, lines where nothing is swapped.

const SPAN_LOOK = { base_head: "m0", tuned_head: "m1" };
const [VALUE, LOW, HIGH, CHANGE] = [0, 1, 2, 3]; // places in an estimate; the change's bounds follow it

// Blocks and, where it is swapped too, the embedding; no place for the norm, which belongs to the head.
function blockScale(left, right, first) {
  const step = (right - left) / (L - first);
  return Object.assign((layer) => left + (layer - first + 0.5) * step, { step, left, right });
}

function spanChoice(spec, box) {
  const measure = (box.dataset.mode ??= spec.modes[0]);
  const changes = spec.data.cells.some((cell) => (cell[measure]?.[CHANGE] ?? null) !== null);
  const view = changes ? (box.dataset.view ??= "value") : "value";
  return { measure, changes, view, at: view === "change" ? CHANGE : VALUE };
}

function spanButtons(box, spec, choice) {
  const tools = box.parentElement.querySelector(".tools");
  let group = tools.querySelector("[data-views]");
  if (!group) {
    group = html(null, "div", { class: "modes", role: "group", "aria-label": "Shown as", "data-views": "" });
    for (const [view, name] of [["value", "Value"], ["change", "Change to host"]])
      html(group, "button", { type: "button", "data-view": view }, name).addEventListener("click", () => { box.dataset.view = view; drawSpans(box, spec); });
    tools.insertBefore(group, tools.querySelector("[data-save]"));
  }
  for (const button of group.children) {
    button.setAttribute("aria-pressed", button.dataset.view === choice.view);
    button.disabled = button.dataset.view === "change" && !choice.changes;
    button.style.opacity = button.disabled ? 0.45 : "";
  }
}

// One host: its spans, and the lines of host and donor; what is missing is left out.
function readHost(spec, host, { measure, at }) {
  const spans = spec.data.cells.filter((cell) => cell.host === host.name && (cell[measure]?.[at] ?? null) !== null)
    .map((cell) => ({ ...cell, all: cell[measure], v: cell[measure][at], lo: cell[measure][at + LOW], hi: cell[measure][at + HIGH] }));
  const level = (body, head) => spec.data.references.find((r) => r.host === body && r.head === head)?.[measure]?.[VALUE] ?? null;
  const lines = [];
  for (const head of new Set(spans.map((span) => span.head))) {
    const [own, other] = [level(host.name, head), level(host.donor, head)];
    if (at === VALUE && own !== null) lines.push({ head, body: host.name, own: true, v: own });
    if (at === VALUE && other !== null) lines.push({ head, body: host.donor, own: false, v: other });
    if (at === CHANGE && own !== null && other !== null) lines.push({ head, body: host.donor, own: false, v: other - own });
  }
  return { host, spans, lines };
}

// Values share one scale; changes, which point down in one panel and up in the other, share its length.
function spanDomains(reads, at) {
  const ends = reads.map((r) => {
    const all = [...r.spans.flatMap((s) => [s.v, s.lo, s.hi]), ...r.lines.map((line) => line.v), at === CHANGE ? 0 : null].filter((v) => v !== null);
    return { low: Math.min(...all), high: Math.max(...all) };
  });
  const [lowest, highest] = [Math.min(...ends.map((e) => e.low)), Math.max(...ends.map((e) => e.high))];
  if (at === VALUE && lowest > 0 && highest / lowest > 30) return ends.map(() => ({ low: lowest / 1.15, high: highest * 1.15, log: true }));
  const shown = at === VALUE ? ends.map(() => ({ low: lowest, high: highest })) : ends;
  const span = Math.max(...shown.map((e) => e.high - e.low)) || Math.abs(highest) * 0.1 || 1;
  return shown.map(({ low, high }) => {
    const missing = span - (high - low);
    const [least, most] = high > -low ? [low, high + missing] : [low - missing, high];
    const from = least - 0.07 * span;
    return { low: at === VALUE && low >= 0 ? Math.max(0, from) : from, high: most + 0.07 * span, log: false };
  });
}

function drawReferences(svg, read, x, y, at, room) {
  const group = draw(svg, "g", { class: "marks" });
  const labels = [];
  if (at === CHANGE) labels.push({ y: y(0), text: "host", look: null });
  if (at === CHANGE) draw(group, "line", { class: "base", x1: x.left, x2: x.right, y1: y(0), y2: y(0) });
  for (const { head, body, own, v } of read.lines) {
    draw(group, "line", { class: `${SPAN_LOOK[head]} thin${own ? "" : " again"} line`, x1: x.left, x2: x.right, y1: y(v), y2: y(v) });
    labels.push({ y: y(v), text: body, look: SPAN_LOOK[head] });
  }
  labels.sort((a, b) => a.y - b.y);
  // Names keep 11 pixels apart, pushed down and then back up from the panel's foot.
  labels.forEach((label, i) => (label.at = Math.max(label.y, i ? labels[i - 1].at + 11 : y.top)));
  labels.reduceRight((limit, label) => ((label.at = Math.min(label.at, limit)), label.at - 11), y.bottom + 4);
  for (const label of labels) {
    const text = draw(group, "text", { class: label.look, x: x.right + 6, y: label.at + 3.5 }, shortened(label.text, room - 6));
    text.style.fill = label.look ? "var(--c)" : "var(--soft)";
    if (text.textContent !== label.text) draw(text, "title", {}, label.text);
  }
}

function drawSpanMarks(svg, read, x, y) {
  const group = draw(svg, "g", { class: "marks" });
  const edges = ({ drawn: [from, to] }) => {
    const gap = Math.min(3, x.step * 0.16);
    const left = x(from) - x.step / 2 + gap / 2;
    return { x: left, width: Math.max(2, x(to) + x.step / 2 - gap / 2 - left) };
  };
  for (const span of read.spans) {
    if (span.lo === null || span.hi === null) continue;
    const [top, foot] = [y(span.hi), y(span.lo)];
    draw(group, "rect", { class: `${SPAN_LOOK[span.head]} band`, ...edges(span), y: top, height: Math.max(0.5, foot - top), rx: 2 });
  }
  for (const head of ["base_head", "tuned_head"]) // the thinner one on top, so that both show where they meet
    for (const span of read.spans.filter((s) => s.head === head)) {
      const thick = head === "base_head" ? 4.5 : 2;
      draw(group, "rect", { class: `${SPAN_LOOK[head]} bar`, ...edges(span), y: y(span.v) - thick / 2, height: thick, rx: thick / 2 });
    }
}

const blocksName = ([first, last]) => {
  const blocks = last < 0 ? "" : Math.max(0, first) === last ? `block ${last}` : `blocks ${Math.max(0, first)}–${last}`;
  const whole = [first < 0 ? "embedding" : "", blocks].filter(Boolean).join(" and ");
  return whole[0].toUpperCase() + whole.slice(1);
};

// Places along the axis at which something was swapped, as the cursor steps through them.
function placesOf(reads) {
  const places = new Map();
  for (const span of reads.flatMap((read) => read.spans)) places.set(span.drawn.join(), { drawn: span.drawn, blocks: span.blocks });
  return [...places.values()].sort((a, b) => a.drawn[0] + a.drawn[1] - b.drawn[0] - b.drawn[1]);
}

function spanRows(spec, reads, place, measure) {
  const rows = [];
  for (const read of reads) {
    const spans = read.spans.filter((span) => span.drawn.join() === place.drawn.join());
    if (spans.length) rows.push({ head: read.host.title });
    for (const span of spans) {
      const [value, low, high, change, least, most] = span.all;
      const about = { hue: SPAN_LOOK[span.head].slice(1), name: spec.data.heads[span.head] ?? span.head };
      rows.push({ ...about, value: number(value) + interval(low, high) });
      if (change !== null) rows.push({ ...about, look: "swatch", name: "change to host", value: (change > 0 ? "+" : "") + number(change) + interval(least, most) });
    }
  }
  return rows;
}

function spanLegend(spec, reads, view) {
  const heads = ["base_head", "tuned_head"].filter((head) => reads.some((read) => read.spans.some((span) => span.head === head)));
  const entries = heads.map((head) => ({ kind: "bar", look: SPAN_LOOK[head], name: spec.data.heads[head] }));
  if (reads.some((read) => read.spans.some((span) => span.lo !== null))) entries.push({ kind: "band", look: "m0", name: "95 % interval" });
  const some = (own) => reads.some((read) => read.lines.some((line) => line.own === own));
  if (some(true)) entries.push({ kind: "line", look: "m0 thin", name: "host, nothing swapped" });
  if (some(false)) entries.push({ kind: "line", look: "m0 thin again", name: view === "change" ? "donor minus host" : "donor itself" });
  return entries;
}

function drawSpans(box, spec) {
  const choice = spanChoice(spec, box);
  const { measure, view, at } = choice;
  spanButtons(box, spec, choice);
  const about = spec.data.measures.find((m) => m.key === measure);
  const reads = spec.data.hosts.map((host) => readHost(spec, host, choice)).filter((read) => read.spans.length);
  const width = Math.max(260, box.clientWidth);
  const domains = spanDomains(reads, at);
  const height = 190;
  const ticks = domains.flatMap((domain) => verticalScale(domain, 0, height).ticks.map((tick) => textWidth(tick.label)));
  const names = reads.flatMap((read) => read.lines.map((line) => line.body)).concat(view === "change" ? ["host"] : []);
  const room = names.length ? Math.min(width < 700 ? 52 : 110, Math.ceil(Math.max(...names.map((name) => textWidth(name)))) + 8) : 4;
  const first = spec.data.cells.some((cell) => cell.blocks[0] < 0) ? -1 : 0;
  const x = blockScale(Math.ceil(Math.max(...ticks)) + 12, width - room, first);
  const svg = draw(null, "svg", { width, role: "group", "aria-label": spec.title });
  draw(svg, "title", {}, `${spec.title}: ${about.title}`);
  draw(svg, "desc", {}, spec.caption);
  let top = drawLegend(svg, spanLegend(spec, reads, view), width, 0) + 6;
  const start = top;
  const unit = [view === "change" ? "change to host" : "", about.unit, domains[0].log ? "log" : ""].filter(Boolean).join(", ");
  reads.forEach((read, i) => {
    const y = verticalScale(domains[i], top + 26, top + 26 + height);
    const lastPanel = i === reads.length - 1;
    frame(svg, x, y, shortened(read.host.title, 0.92 * (width - textWidth(unit) - 12)), unit, false);
    drawReferences(svg, read, x, y, at, room);
    drawSpanMarks(svg, read, x, y);
    depthAxis(svg, x, y.bottom, { first: first < 0, last: null }, lastPanel);
    top = y.bottom + (lastPanel ? 40 : 20);
  });
  svg.setAttribute("height", top);
  svg.setAttribute("viewBox", `0 0 ${width} ${top}`);
  const places = placesOf(reads);
  const middle = (i) => (x(places[i].drawn[0]) + x(places[i].drawn[1])) / 2;
  const nearest = (px) => places.reduce((best, _, i) => (Math.abs(middle(i) - px) < Math.abs(middle(best) - px) ? i : best), 0);
  const inside = (px) => places.findIndex(({ drawn: [from, to] }) => Math.abs(px - (x(from) + x(to)) / 2) <= (x(to) - x(from) + x.step) / 2);
  const invert = (px) => (inside(px) < 0 ? nearest(px) : inside(px));
  cursor(svg, [], Object.assign(middle, { left: x.left, right: x.right, invert }), start, top - 40, places.map((_, i) => i), {
    label: "Swapped blocks",
    title: (i) => `${blocksName(places[i].blocks)} swapped · ${about.title}`,
    rows: (i) => spanRows(spec, reads, places[i], measure),
  });
  box.replaceChildren(svg);
}
