// What a reader of the open page would stumble over, a line each, for docs/screenshots.py.
(lowest) => {
  const faults = [];
  const top = document.scrollingElement;
  if (top.scrollWidth > top.clientWidth) {
    const scrolls = "pre, .katex, .table-wrapper, .md-typeset__scrollwrap"; // by themselves
    const wide = [...document.querySelectorAll("main *, article *")].filter(
      (e) => e.getBoundingClientRect().right > top.clientWidth + 1 && !e.closest(scrolls),
    );
    const names = wide.slice(0, 3).map((e) => `${e.tagName.toLowerCase()} "${e.textContent.trim().slice(0, 30)}"`);
    faults.push(`is ${top.scrollWidth} wide in a window of ${top.clientWidth}: ${names.join(", ")}`);
  }

  for (const e of document.querySelectorAll(".arithmatex")) {
    const rendered = e.querySelector(".katex") && !e.querySelector(".katex-error");
    if (!rendered) faults.push(`formula not rendered: ${e.textContent}`);
  }

  // The contrast of the WCAG between a text and the colours that lie over each other below it.
  const parts = (colour) => (colour.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((v, i) => a * v + (1 - a) * below[i]);
  const ground = (e) => (e ? over(parts(getComputedStyle(e).backgroundColor), ground(e.parentElement)) : [255, 255, 255]);
  const said = new Set();
  for (const e of document.querySelectorAll("main *, article *")) {
    const text = [...e.childNodes].filter((n) => n.nodeType === Node.TEXT_NODE).map((n) => n.textContent.trim()).join("");
    const shown = e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!text || !shown || e.closest(".katex-mathml, .headerlink, script, style")) continue;
    const below = ground(e);
    const colour = getComputedStyle(e).color;
    const [low, high] = [luminance(below), luminance(over(parts(colour), below))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const kind = `${e.tagName} ${e.className} ${colour}`;
    if (ratio < lowest && !said.has(kind)) {
      said.add(kind);
      faults.push(`contrast ${ratio.toFixed(1)} of ${e.tagName.toLowerCase()} "${text.slice(0, 30)}"`);
    }
  }
  return faults;
};
