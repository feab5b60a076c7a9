// The page's data, the two ways to make an element, and how numbers and layers are written.
// Text from the data reaches the page only as textContent or as an attribute's value.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const L = DATA.blocks;
const HUES = 6;
const hidden = new Set(); // names of models the reader switched off

function add(parent, node, attributes, text) {
  for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}
const html = (parent, tag, attributes = {}, text) => add(parent, document.createElement(tag), attributes, text);
const draw = (parent, tag, attributes = {}, text) => add(parent, document.createElementNS(SVG, tag), attributes, text);

const signed = (text) => text.replace(/-/g, "−");
function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-4 || size >= 1e6)) {
    const [mantissa, exponent] = value.toExponential(digits - 2).split("e");
    return signed(`${+mantissa}×10`) + superscript(+exponent);
  }
  return signed(String(+value.toPrecision(digits)));
}
const superscript = (n) => [...String(n)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("");
const interval = (low, high) => (low == null || high == null ? "" : ` [${number(low)}, ${number(high)}]`);
// Why a number says less than it seems to; "" where it was measured in full.
const doubt = (state) => (!state || state === "measured" ? "" : DATA.states?.[state] ?? state);
const each = (values, i) => (Array.isArray(values) ? values[i] : values) ?? null;

const hue = (model) => {
  const index = DATA.models.indexOf(model);
  return index < 1 ? 0 : ((index - 1) % HUES) + 1;
};
const repeats = (model) => Math.floor((DATA.models.indexOf(model) - 1) / HUES) > 0;

function layerName(layer, weights) {
  if (layer < 0) return "Embedding";
  return layer < L ? `Block ${layer}` : weights ? "Final norm and head" : "Final norm";
}

let canvas = null;
function textWidth(text, size = 11) {
  canvas ??= document.createElement("canvas").getContext("2d");
  canvas.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  return canvas.measureText(text).width;
}
function shortened(text, room, size = 11) {
  if (textWidth(text, size) <= room) return text;
  let end = text.length;
  while (end > 1 && textWidth(text.slice(0, end) + "…", size) > room) end -= 1;
  return text.slice(0, end) + "…";
}

const tip = document.getElementById("tip");
// rows: {head} or {hue, name, value}
function showTip(title, rows, x, y) {
  tip.replaceChildren();
  html(tip, "b", {}, title);
  for (const row of rows) {
    const line = html(tip, "div", { class: row.head ? "head" : "row" }, row.head);
    if (row.head) continue;
    html(line, "i", { class: row.look ?? "dot m" + row.hue });
    html(line, "span", {}, row.name);
    html(line, "em", {}, row.value);
  }
  tip.hidden = false;
  const room = document.documentElement.clientWidth;
  const left = x + 16 + tip.offsetWidth < room ? x + 16 : x - 16 - tip.offsetWidth;
  tip.style.left = Math.max(6, Math.min(left, room - tip.offsetWidth - 6)) + "px";
  tip.style.top = Math.max(6, Math.min(y + 16, innerHeight - tip.offsetHeight - 6)) + "px";
}
const hideTip = () => (tip.hidden = true);
const asText = (rows) => rows.map((row) => row.head ?? `${row.name}: ${row.value}`).join("; ");
