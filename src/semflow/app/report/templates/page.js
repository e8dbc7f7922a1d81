"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const entries = data.entries;
const CHUNK = 48; // cards that are added at once: only what is seen is built
const TOLERANCE = 1 + 1e-6; // p-values may be rounded to float32

const element = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const show = (value) => value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-4
  ? value.toExponential(2) : String(Number(value.toPrecision(4)));
const number = (count) => count.toLocaleString("en");
const percent = (part, whole) => whole ? `${Number((100 * part / whole).toFixed(1))} %` : "–";
/** A score with its trailing zeros, so that the scores of cards align. */
const fixed = (value) => show(value).includes("e") || value === 0 ? show(value) : value.toPrecision(4);
const simplified = (text) => text.normalize("NFKC").toLowerCase();
entries.forEach((entry, index) => { entry.index = index; entry.search = simplified(entry.name); });

// ---- threshold: on p-values if the detector is calibrated, otherwise on scores

const calibrated = data.rate !== null;
const steps = [...new Set(calibrated ? [0, data.rate, ...entries.map((entry) => entry.p ?? 1)]
  : [...entries.map((entry) => entry.score), Infinity])].sort((a, b) => a - b)
  .filter((value, index, all) => !calibrated || !index || value > all[index - 1] * TOLERANCE);
const home = calibrated ? steps.findIndex((step) => step * TOLERANCE >= data.rate) : steps.length - 1;
const slider = $("threshold");
slider.max = steps.length - 1;
slider.value = home;
let step = home;

/** Whether an entry is called anomalous; null without a threshold. At the model's threshold, as the model decided. */
const called = (entry) => {
  if (!calibrated) return step === home ? null : entry.score >= steps[step];
  return step === home && entry.called !== null ? entry.called : entry.p <= steps[step] * TOLERANCE;
};
/** "missed", "alarm", or "" if the decision is right or cannot be judged. */
const error = (entry) => {
  const found = called(entry);
  if (found === null || entry.label < 0) return "";
  return entry.label === 1 && !found ? "missed" : entry.label === 0 && found ? "alarm" : "";
};
const ERRORS = { missed: "missed", alarm: "false alarm" };

const limit = () => {
  if (!calibrated) return step === home ? "none: not calibrated" : `score from ${show(steps[step])}`;
  return (steps[step] ? `p up to ${show(steps[step])}` : "below all p-values") + (step === home ? " (the model’s)" : "");
};

// ---- order

const members = data.groups.map((_, group) => entries.filter((entry) => entry.group === group));
/** For the worst errors: whether the model decides wrongly, and the share of the other label on the wrong side. */
const measureErrors = () => members.forEach((group) => {
  const scores = [0, 1].map((label) =>
    group.filter((entry) => entry.label === label).map((entry) => entry.score).sort((a, b) => a - b));
  const count = (sorted, value, inclusive) => { // of the values below (or at) a value
    let low = 0, high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < value || (inclusive && sorted[middle] === value)) low = middle + 1; else high = middle;
    }
    return low;
  };
  for (const entry of group) {
    const others = scores[1 - entry.label] || [];
    const wrong = entry.label === 1 ? others.length - count(others, entry.score, false)
      : count(others, entry.score, true);
    entry.wrong = entry.label < 0 || !others.length ? -1 : wrong / others.length;
    entry.mistaken = entry.label >= 0 && entry.called !== null && entry.called !== Boolean(entry.label);
    entry.side = entry.label === 1 ? -entry.score : entry.score;
  }
});
measureErrors();
const names = new Intl.Collator(undefined, { numeric: true });
const byName = (a, b) => names.compare(a.name, b.name) || a.index - b.index;
const ORDERS = {
  worst: (a, b) => b.mistaken - a.mistaken || b.wrong - a.wrong || b.label - a.label || b.side - a.side,
  high: (a, b) => b.score - a.score,
  low: (a, b) => a.score - b.score,
  name: () => 0,
};
let ordered = [];
const sort = () => {
  const compare = ORDERS[$("order").value];
  ordered = [...entries].sort((a, b) => a.group - b.group || compare(a, b) || byName(a, b));
};

// ---- pictures and cards

const VIEWS = [...document.querySelectorAll("input[name=view]")];
const view = () => VIEWS.find((input) => input.checked).value;
const picture = (entry, kind) => {
  const image = element("img", {
    loading: entries.length > 200 ? "lazy" : "eager", decoding: "async", width: entry.size[0], height: entry.size[1],
    alt: `${data.views[kind]}: ${entry.name}`, title: data.views[kind], src: entry.views[kind],
  });
  image.style.setProperty("--ratio", entry.size[0] / entry.size[1]);
  return element("span", {}, image);
};
const fill = (place, entry) => {
  const has = (kind, ...others) => [kind, ...others, ...Object.keys(entry.views)].find((one) => one in entry.views);
  const kinds = view() === "pair" ? [has("truth", "original"), has("overlay")] : [has(view(), "original")];
  place.replaceChildren(...[...new Set(kinds)].filter(Boolean).map((kind) => picture(entry, kind)));
};
const ranges = members.map((group) => group.reduce((found, entry) =>
  [Math.min(found[0], entry.score), Math.max(found[1], entry.score)], [Infinity, -Infinity]));
const describe = (entry) => {
  const found = called(entry), parts = [];
  if (found !== null) {
    parts.push(element("span", { className: found ? "badge anomalous" : "badge" }, found ? "anomalous" : "normal"));
  }
  if (error(entry)) parts.push(element("span", { className: "badge error" }, ERRORS[error(entry)]));
  if (entry.p !== null) parts.push(element("span", {}, `p = ${show(entry.p)}`));
  if (entry.label >= 0 && !error(entry)) parts.push(element("span", {}, entry.label ? "labeled defect" : "labeled good"));
  if (data.groups.length > 1) parts.push(element("bdi", {}, data.groups[entry.group]));
  return parts;
};
const cards = new Map();
const near = new Set(); // entries whose cards are in sight or close to it: others are brought up to date when they are
const watcher = new IntersectionObserver((seen) => seen.forEach((one) => {
  const entry = entries[Number(one.target.dataset.index)];
  near[one.isIntersecting ? "add" : "delete"](entry);
  if (one.isIntersecting) refresh(entry);
}), { rootMargin: "1000px" });
const card = (entry) => {
  if (!cards.has(entry.index)) {
    const [low, high] = ranges[entry.group];
    const level = element("i", {});
    level.style.width = `${high > low ? 100 * (entry.score - low) / (high - low) : 0}%`;
    const parts = {
      pictures: element("span", { className: "pictures" }),
      about: element("div", { className: "about" }),
    };
    const open = element("button", { type: "button", className: "open" }, parts.pictures);
    open.setAttribute("aria-label", `Enlarge ${entry.name}`);
    const bar = element("div", { className: "level" }, level);
    bar.setAttribute("aria-hidden", "true");
    parts.item = element("li", {}, open,
      element("div", { className: "row" }, element("bdi", { className: "name" }, entry.name),
        element("span", { className: "score" }, `score ${fixed(entry.score)}`)), bar, parts.about);
    parts.open = open;
    open.dataset.index = entry.index;
    parts.item.dataset.index = entry.index;
    cards.set(entry.index, parts);
    watcher.observe(parts.item);
  }
  return cards.get(entry.index);
};
const refresh = (entry) => {
  const { item, pictures, about } = card(entry);
  const state = `${called(entry)} ${error(entry)}`;
  if (pictures.dataset.view !== view()) { fill(pictures, entry); pictures.dataset.view = view(); }
  if (about.dataset.state !== state) {
    about.replaceChildren(...describe(entry));
    about.dataset.state = state;
    item.classList.toggle("wrong", error(entry) !== "");
  }
  return item;
};

// ---- the list

let matched = [], built = 0;
const list = $("list"), more = $("more");
list.classList.toggle("many", entries.length > 200); // cards out of sight then need no layout
const observer = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && build(),
  { rootMargin: "1000px" });
const build = () => {
  list.append(...matched.slice(built, built + CHUNK).map(refresh));
  built = Math.min(built + CHUNK, matched.length);
  more.hidden = built === matched.length;
  observer.unobserve(more); // observing it again tells whether it is still in sight
  observer.observe(more);
};
const groupChosen = () => $("group") ? Number($("group").value) : data.groups.length > 1 ? -1 : 0;
const inGroup = (entry) => groupChosen() < 0 || entry.group === groupChosen();
const FILTERS = {
  all: () => true,
  anomalous: (entry) => called(entry) === true,
  normal: (entry) => called(entry) === false,
  missed: (entry) => error(entry) === "missed",
  alarm: (entry) => error(entry) === "alarm",
};
const update = () => {
  step = Number(slider.value);
  const searched = simplified($("search").value), passes = FILTERS[$("filter").value];
  const found = ordered.filter((entry) => inGroup(entry) && entry.search.includes(searched) && passes(entry));
  if (found.length !== matched.length || found.some((entry, index) => entry !== matched[index])) {
    const focused = document.activeElement;
    matched = found;
    built = 0;
    list.replaceChildren();
    build();
    if (list.contains(focused)) focused.focus();
  } else {
    near.forEach(refresh);
  }
  $("none").hidden = matched.length > 0;
  count();
};
const count = () => {
  const all = entries.filter(inGroup), images = `${number(all.length)} image${all.length === 1 ? "" : "s"}`;
  let text = images;
  if (called(entries[0] || { score: 0, p: 1, called: null }) !== null) {
    const found = all.filter(called).length;
    text = `${number(found)} of ${images} called anomalous (${percent(found, all.length)})`;
    const good = all.filter((entry) => entry.label === 0), bad = all.filter((entry) => entry.label === 1);
    const alarms = good.filter(called).length, missed = bad.length - bad.filter(called).length;
    if (good.length) text += ` · false alarms: ${number(alarms)} of ${number(good.length)} good (${percent(alarms, good.length)})`;
    if (bad.length) text += ` · missed: ${number(missed)} of ${number(bad.length)} defects (${percent(missed, bad.length)})`;
  }
  if (matched.length !== all.length) text += ` · ${number(matched.length)} shown`;
  if ($("count").textContent !== text) $("count").textContent = text;
  $("limit").textContent = limit();
  slider.setAttribute("aria-valuetext", limit());
  $("reset").disabled = step === home;
  mark();
};

// ---- charts of one detector

const WIDTH = 340, HEIGHT = 230, LEFT = 42, RIGHT = 12, TOP = 10, BOTTOM = 36;
const svg = (tag, attributes, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};
const chart = (title, about, [x0, x1], [y0, y1], xLabel, yLabel, yTicks) => {
  const x = (value) => LEFT + (value - x0) / (x1 - x0 || 1) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value - y0) / (y1 - y0 || 1) * (HEIGHT - TOP - BOTTOM);
  const made = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${about}` });
  for (const tick of yTicks) {
    made.append(svg("line", { class: "grid", x1: x(x0), x2: x(x1), y1: y(tick), y2: y(tick) }),
      svg("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, show(tick)));
  }
  for (const share of [0, 0.5, 1]) {
    const tick = x0 + share * (x1 - x0);
    made.append(svg("text", { x: x(tick), y: HEIGHT - BOTTOM + 16, "text-anchor": ["start", "middle", "end"][2 * share] },
      String(Number(tick.toPrecision(3)))));
  }
  made.append(svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, xLabel),
    svg("text", { x: 11, y: (HEIGHT - BOTTOM + TOP) / 2, "text-anchor": "middle",
      transform: `rotate(-90 11 ${(HEIGHT - BOTTOM + TOP) / 2})` }, yLabel));
  const figure = element("figure", {}, element("figcaption", {}, title), made);
  $("charts").append(figure);
  return { x, y, svg: made, figure };
};
const line = (points, { x, y }, close = "") => points.map(([a, b], index) =>
  `${index ? "L" : "M"}${x(a).toFixed(2)} ${y(b).toFixed(2)}`).join("") + close;
const legend = (...rows) => element("div", { className: "legend" },
  ...rows.map(([kind, text]) => element("span", {}, element("i", { className: kind }), text)));

let marks = {};
const histogram = (group) => {
  const [low, high] = ranges[groupChosen()], bins = 30, labeled = group.some((entry) => entry.label >= 0);
  const counts = [new Array(bins).fill(0), new Array(bins).fill(0)];
  for (const entry of group) {
    const bin = high > low ? Math.min(bins - 1, Math.floor((entry.score - low) / (high - low) * bins)) : 0;
    counts[entry.label === 1 ? 1 : 0][bin] += 1;
  }
  const top = Math.max(1, ...counts.flat()), edge = (bin) => low + (high - low) * bin / bins;
  const drawn = chart("Scores", `Histogram of ${group.length} images from ${show(low)} to ${show(high)}`, [low, high],
    [0, top], "anomaly score", "images", top > 1 ? [0, Math.round(top / 2), top] : [0, 1]);
  const outline = (of) => line([[low, 0], ...of.flatMap((n, bin) => [[edge(bin), n], [edge(bin + 1), n]]), [high, 0]],
    drawn, "Z");
  drawn.svg.append(svg("path", { class: "good", d: outline(counts[0]) }));
  if (labeled) drawn.svg.append(svg("path", { class: "bad", d: outline(counts[1]) }));
  const rows = labeled ? [["good", "good"], ["bad", "defects"]] : [["good", "images"]];
  drawn.figure.append(legend(...rows, ["mark", "threshold"]));
  marks.line = drawn.svg.appendChild(svg("line", { class: "mark", y1: TOP, y2: HEIGHT - BOTTOM }));
  marks.scores = drawn;
};
const roc = (group) => {
  const labels = [0, 1].map((label) => group.filter((entry) => entry.label === label).length);
  if (!labels[0] || !labels[1]) return;
  const points = [[0, 0]], sorted = [...group].filter((entry) => entry.label >= 0).sort((a, b) => b.score - a.score);
  let alarms = 0, found = 0, area = 0;
  sorted.forEach((entry, index) => {
    entry.label ? found++ : alarms++;
    if (index + 1 < sorted.length && sorted[index + 1].score === entry.score) return;
    const [x, y] = points[points.length - 1], point = [alarms / labels[0], found / labels[1]];
    area += (point[0] - x) * (point[1] + y) / 2;
    points.push(point);
  });
  const drawn = chart("ROC of the images", `Area ${area.toFixed(3)}`, [0, 1], [0, 1], "good images called anomalous",
    "defects found", [0, 0.5, 1]);
  drawn.svg.append(svg("path", { class: "chance", d: line([[0, 0], [1, 1]], drawn) }),
    svg("path", { class: "curve", d: line(points, drawn) }));
  drawn.figure.append(legend(["good", `area ${area.toFixed(3)}`], ["dot", "threshold"]));
  marks.dot = drawn.svg.appendChild(svg("circle", { class: "mark", r: 6 }));
  marks.roc = drawn;
};
const pro = () => {
  if (!data.pro.length) return;
  const [end, last] = data.pro[data.pro.length - 1];
  const drawn = chart("PRO of the pixels", `Overlap ${show(last)} at ${show(end)}`, [0, end], [0, 1], "good pixels above the threshold",
    "mean overlap", [0, 0.5, 1]);
  drawn.svg.append(svg("path", { class: "curve", d: line(data.pro, drawn) }));
};
const drawCharts = () => {
  $("charts").replaceChildren();
  marks = {};
  const group = members[groupChosen()];
  $("curves").hidden = !group || group.length < 2;
  if ($("curves").hidden) return;
  histogram(group);
  roc(group);
  pro();
};
/** Move the marks of the threshold in the charts. */
const mark = () => {
  if (!marks.line) return;
  const group = members[groupChosen()], decided = called(group[0]) !== null;
  marks.line.style.display = decided ? "" : "none";
  if (marks.dot) marks.dot.style.display = decided ? "" : "none";
  if (!decided) return;
  const [low, high] = ranges[groupChosen()];
  let above = Infinity, below = -Infinity;
  for (const entry of group) {
    if (called(entry)) above = Math.min(above, entry.score); else below = Math.max(below, entry.score);
  }
  const at = marks.scores.x(above === Infinity ? high : below === -Infinity ? low : (above + below) / 2);
  marks.line.setAttribute("x1", at);
  marks.line.setAttribute("x2", at);
  if (marks.dot) {
    const share = [0, 1].map((label) => {
      const own = group.filter((entry) => entry.label === label);
      return own.filter(called).length / own.length;
    });
    marks.dot.setAttribute("cx", marks.roc.x(share[0]));
    marks.dot.setAttribute("cy", marks.roc.y(share[1]));
  }
};

// ---- one image, large

const large = $("large");
let current = 0;
const enlarge = (position) => {
  current = Math.max(0, Math.min(matched.length - 1, position));
  const entry = matched[current];
  $("large-name").replaceChildren(element("bdi", {}, entry.name));
  const place = `${current + 1} of ${matched.length}, score ${fixed(entry.score)}`;
  const about = element("span", { className: "about" }, element("span", {}, place), ...describe(entry));
  $("large-about").replaceChildren(about);
  fill($("large-pictures"), entry);
  $("previous").disabled = current === 0;
  $("next").disabled = current === matched.length - 1;
  if (!large.open) large.showModal();
};
const focusCard = (position) => {
  if (!matched.length) return;
  const target = Math.max(0, Math.min(matched.length - 1, position));
  while (built <= target) build();
  card(matched[target]).open.focus();
};
const placeOf = (node) => {
  const open = node.closest && node.closest(".open");
  return open ? matched.indexOf(entries[Number(open.dataset.index)]) : -1;
};
list.addEventListener("click", (event) => {
  const position = placeOf(event.target);
  if (position >= 0) enlarge(position);
});
large.addEventListener("close", () => focusCard(current));
large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
$("previous").addEventListener("click", () => enlarge(current - 1));
$("next").addEventListener("click", () => enlarge(current + 1));
$("close").addEventListener("click", () => large.close());

// ---- controls and keys

const turnView = (step) => {
  VIEWS[(VIEWS.findIndex((input) => input.checked) + step + VIEWS.length) % VIEWS.length].checked = true;
  changeView();
};
const changeView = () => {
  near.forEach(refresh);
  if (large.open) enlarge(current);
};
$("turn").addEventListener("click", () => turnView(1));
$("views").addEventListener("change", changeView);
$("order").addEventListener("change", () => { sort(); update(); });
$("filter").addEventListener("change", update);
$("search").addEventListener("input", update);
if ($("group")) $("group").addEventListener("change", () => { drawCharts(); update(); });
let waiting = false;
slider.addEventListener("input", () => { // at most once per frame
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; update(); });
});
$("reset").addEventListener("click", () => { slider.value = home; update(); slider.focus(); });
more.addEventListener("click", () => { const first = built; build(); focusCard(first); });
$("controls").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input[type=search], select")) return;
  const position = placeOf(event.target), backwards = event.shiftKey ? -1 : 1;
  const moves = { ArrowLeft: -1, ArrowRight: 1 };
  if (event.key.toLowerCase() === "v") {
    turnView(backwards);
  } else if (event.key in moves && (large.open || position >= 0)) {
    (large.open ? enlarge : focusCard)((large.open ? current : position) + moves[event.key]);
  } else {
    return;
  }
  event.preventDefault();
});

$("curves").open = matchMedia("(min-width: 60rem)").matches; // on a narrow screen, the images come first
$("order").value = data.worstFirst ? "worst" : "high";
sort();
drawCharts();
update();
})();
