// Reports every problem of reading the pages in the frames of this document. It runs in the document
// that browser.rs writes, when all frames are loaded; each line of the result is a frame's name and a
// problem.
"use strict";

const TEXT_MIN_PX = 12;
const TEXT_CONTRAST_MIN = 4.5;
const LINE_CONTRAST_MIN = 3;
// Two boxes that share less than this do not overlap.
const TOUCH_PX = 1;

function luminance(color) {
  const parts = color.match(/[\d.]+/g).slice(0, 3).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}

function contrast(one, other) {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

// The first background that is not transparent, from the element outwards.
function background(element) {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (!/^rgba\(.*, 0\)$/.test(color)) return color;
  }
  return "rgb(255, 255, 255)";
}

function named(element) {
  const text = element.textContent.trim().slice(0, 30);
  return `<${element.localName}> "${text}"`;
}

const isShown = (element) => element.getClientRects().length > 0;

function textProblems(page) {
  const found = [];
  const hasText = (element) =>
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  for (const element of page.body.querySelectorAll("*")) {
    if (!hasText(element) || !isShown(element)) continue;
    const isSvg = element.localName === "text";
    const style = getComputedStyle(element);
    const scale = isSvg ? element.getScreenCTM().d : 1;
    const size = parseFloat(style.fontSize) * scale;
    if (size < TEXT_MIN_PX) found.push(`${named(element)} has text of ${size} px`);
    const ratio = contrast(isSvg ? style.fill : style.color, background(element));
    if (ratio < TEXT_CONTRAST_MIN) found.push(`${named(element)} has contrast ${ratio.toFixed(1)}`);
  }
  return found;
}

function widthProblems(page) {
  const found = [];
  const { scrollWidth, clientWidth } = page.documentElement;
  if (scrollWidth > clientWidth) found.push(`the page is ${scrollWidth} px wide`);
  for (const element of page.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    const isCut = isShown(element) && (box.right > clientWidth + TOUCH_PX || box.left < -TOUCH_PX);
    if (isCut && !element.closest(".scroll")) found.push(`${named(element)} is cut off`);
  }
  for (const table of page.querySelectorAll("table")) {
    const box = table.closest(".scroll");
    if (!box || box.tabIndex !== 0) found.push(`${named(table)} cannot be scrolled by keys`);
  }
  return found;
}

function chartProblems(page) {
  const found = [];
  for (const svg of page.querySelectorAll("svg[role=img]")) {
    const title = svg.querySelector("title").textContent;
    const texts = [...svg.querySelectorAll("text")].filter(isShown);
    for (const axis of ["x", "y"]) {
      const count = texts.filter((text) => text.classList.contains(axis)).length;
      if (count < 2) found.push(`${title}: ${count} names on the ${axis}-axis`);
    }
    texts.forEach((one, position) => {
      const a = one.getBoundingClientRect();
      for (const other of texts.slice(position + 1)) {
        const b = other.getBoundingClientRect();
        const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (width > TOUCH_PX && height > TOUCH_PX)
          found.push(`${title}: ${named(one)} overlaps ${named(other)}`);
      }
    });
    found.push(...lineProblems(svg, title));
  }
  return found;
}

// Checks every line against the page and against the next line.
function lineProblems(svg, title) {
  const found = [];
  const styles = ["first", "second", "third"].flatMap((name) => {
    const path = svg.querySelector(`path.line.${name}, path.dots.${name}`);
    if (!path) return [];
    const { stroke, strokeDasharray } = getComputedStyle(path);
    return [{ stroke, strokeDasharray, isLine: path.classList.contains("line") }];
  });
  const paper = background(svg);
  styles.forEach((style, position) => {
    const next = styles[position + 1];
    const others = [["the page", paper]].concat(next ? [["the next line", next.stroke]] : []);
    for (const [name, color] of others) {
      const ratio = contrast(style.stroke, color);
      if (ratio < LINE_CONTRAST_MIN)
        found.push(`${title}: line ${position} has contrast ${ratio.toFixed(2)} to ${name}`);
    }
    // Single points differ by the names beside them.
    const areLines = next && style.isLine && next.isLine;
    if (areLines && style.strokeDasharray === next.strokeDasharray)
      found.push(`${title}: line ${position} differs from the next in colour only`);
  });
  return found;
}

addEventListener("load", () => {
  const lines = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    const found = [...textProblems(page), ...widthProblems(page), ...chartProblems(page)];
    lines.push(...found.map((problem) => `${frame.title}: ${problem}`));
  }
  const result = document.createElement("pre");
  result.textContent = lines.join("\n") + "\n";
  document.body.replaceChildren(result);
});
