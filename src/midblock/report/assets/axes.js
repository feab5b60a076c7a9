// Scales, ticks and the frame around a panel: depth on x, one metric on y.

function ticksLinear(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / power === 2.5 ? 1 : 0));
  const write = decimals > 4 || high >= 1e5 ? (v) => number(Math.abs(v) < step / 1e3 ? 0 : v, 3) : (v) => signed(v.toFixed(decimals));
  return ticks.map((value) => ({ value, label: write(value) }));
}

function ticksLog(low, high) {
  const decades = Math.log10(high / low);
  const steps = decades > 2.2 ? [1] : decades > 1 ? [1, 3] : [1, 2, 5];
  const every = Math.ceil(decades / 6);
  const ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const step of e % every ? [] : steps) ticks.push(step * 10 ** e);
  const inside = ticks.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  return inside.map((value) => ({ value, label: number(value, 2) }));
}

// domain: {low, high, log}; returns a function value → y with the domain and ticks on it
function verticalScale({ low, high, log }, top, bottom) {
  const at = log ? Math.log : (v) => v;
  const span = at(high) - at(low);
  const scale = (value) => {
    if (value === null || (log && value <= 0)) return null;
    const share = (at(value) - at(low)) / span;
    return bottom - Math.max(-0.02, Math.min(1.02, share)) * (bottom - top);
  };
  const ticks = log ? ticksLog(low, high) : ticksLinear(low, high, Math.max(2, (bottom - top) / 38));
  return Object.assign(scale, { low, high, log, ticks, top, bottom });
}

// layers -1 … L, half a layer of air on either side
function depthScale(left, right) {
  const step = (right - left) / (L + 2);
  const scale = (layer) => left + (layer + 1.5) * step;
  return Object.assign(scale, { step, left, right, invert: (x) => Math.round((x - left) / step - 1.5) });
}

function depthTicks(x, ends) {
  const every = [1, 2, 5, 10, 20, 50].find((n) => n * x.step >= 24) ?? 100;
  const ticks = [];
  for (let layer = 0; layer < L; layer += every) ticks.push({ layer, label: String(layer) });
  if (ends.first) ticks.unshift({ layer: -1, label: "emb" });
  if (ends.last) {
    while (ticks.length && x(L) - x(ticks.at(-1).layer) < 25) ticks.pop();
    ticks.push({ layer: L, label: ends.last });
  }
  return ticks.filter((tick, i) => tick.layer || !i || x(0) - x(-1) >= 24);
}

function frame(svg, x, y, title, unit, alone) {
  const group = draw(svg, "g", { class: "axis" });
  for (const tick of y.ticks) {
    const at = y(tick.value);
    draw(group, "line", { class: "rule", x1: x.left, x2: x.right, y1: at, y2: at });
    draw(group, "text", { x: x.left - 7, y: at + 3.5, "text-anchor": "end" }, tick.label);
  }
  const label = draw(group, "text", { class: "y-title", x: 0, y: y.top - (y.strip ?? 0) - 11 });
  draw(label, "tspan", alone ? {} : { class: "strong" }, title);
  if (unit) draw(label, "tspan", { dx: 6 }, alone ? `(${unit})` : unit);
}

function depthAxis(svg, x, bottom, ends, labelled) {
  const group = draw(svg, "g", { class: "axis" });
  draw(group, "line", { class: "base", x1: x.left, x2: x.right, y1: bottom, y2: bottom });
  for (const tick of depthTicks(x, ends)) {
    draw(group, "line", { class: "base", x1: x(tick.layer), x2: x(tick.layer), y1: bottom, y2: bottom + 4 });
    if (labelled) draw(group, "text", { x: x(tick.layer), y: bottom + 16, "text-anchor": "middle" }, tick.label);
  }
  const text = x.right - x.left > 420 ? "← embedding · decoder block · output →" : "decoder block (embedding → output)";
  if (labelled) draw(group, "text", { x: (x.left + x.right) / 2, y: bottom + 33, "text-anchor": "middle" }, text);
}

// One shaded column through all panels, and the thirds' names above it.
function thirds(svg, x, top, bottom) {
  const edges = [-0.5, L / 3 - 0.5, (2 * L) / 3 - 0.5, L - 0.5].map(x);
  svg.prepend(draw(null, "rect", { class: "third", x: edges[1], y: top, width: edges[2] - edges[1], height: bottom - top }));
  ["lower", "middle", "upper"].forEach((name, i) => {
    const text = edges[3] - edges[0] > 420 ? `${name} third` : name;
    draw(svg, "text", { class: "third-name", x: (edges[i] + edges[i + 1]) / 2, y: top + 13, "text-anchor": "middle" }, text);
  });
}
