// Returns one line per visual fault of the open page. Run by docs/screenshots.py.
({ lowestContrast, clippedCode }) => {
  const faults = [];
  const top = document.scrollingElement;
  if (top.scrollWidth > top.clientWidth) {
    const scrolling = "pre, .katex, .md-typeset__scrollwrap";
    const wide = [...document.querySelectorAll("main *, article *")].filter(
      (e) => e.getBoundingClientRect().right > top.clientWidth + 1 && !e.closest(scrolling),
    );
    const names = wide.slice(0, 3).map((e) => `${e.tagName.toLowerCase()} "${e.textContent.trim().slice(0, 30)}"`);
    faults.push(`page is ${top.scrollWidth} px wide in a window of ${top.clientWidth} px: ${names.join(", ")}`);
  }

  if (clippedCode) {
    for (const e of document.querySelectorAll("pre > code")) {
      if (e.scrollWidth > e.clientWidth + 1) faults.push(`code is cut off: ${e.textContent.trim().slice(0, 60)}`);
    }
  }

  for (const e of document.querySelectorAll(".arithmatex")) {
    const rendered = e.querySelector(".katex") && !e.querySelector(".katex-error");
    if (!rendered) faults.push(`formula is not rendered: ${e.textContent}`);
  }

  // WCAG contrast between a text and the composed background colors below it.
  const parts = (color) => (color.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((v, i) => a * v + (1 - a) * below[i]);
  const background = (e) =>
    e ? over(parts(getComputedStyle(e).backgroundColor), background(e.parentElement)) : [255, 255, 255];
  const reported = new Set();
  for (const e of document.querySelectorAll("main *, article *")) {
    const text = [...e.childNodes].filter((n) => n.nodeType === Node.TEXT_NODE).map((n) => n.textContent.trim()).join("");
    const visible = e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!text || !visible || e.closest(".katex-mathml, .headerlink, script, style")) continue;
    const below = background(e);
    const color = getComputedStyle(e).color;
    const [low, high] = [luminance(below), luminance(over(parts(color), below))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const kind = `${e.tagName} ${e.className} ${color}`;
    if (ratio < lowestContrast && !reported.has(kind)) {
      reported.add(kind);
      faults.push(`contrast ${ratio.toFixed(1)} of ${e.tagName.toLowerCase()} "${text.slice(0, 30)}"`);
    }
  }
  return faults;
};
