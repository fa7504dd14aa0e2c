// What the other scripts share: the page's data, elements, numbers as text.

const find = (id) => document.getElementById(id);
const read = (id) => JSON.parse(find(id).textContent);
const data = read("rows-data");
const total = data.id.length;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function drawing(width, height, ...rectangles) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  for (const [kind, [left, top, right, bottom]] of rectangles) {
    const rect = document.createElementNS(space, "rect");
    const values = { class: kind, x: left, y: top, width: right - left, height: bottom - top };
    for (const [name, value] of Object.entries(values)) rect.setAttribute(name, value);
    svg.append(rect);
  }
  return svg;
}

let images = null; // megabytes, at the end of the page: the rest is shown before they have come

function imageElement(kind, place, attributes) { // kind: photos or crops
  if (document.readyState !== "loading") images ??= read("images-data");
  return make("img", images === null ? attributes : { src: images[kind][place], ...attributes });
}

const name = (i) => data.outcomes[data.outcome[i]][0];

const selected = (i) => (data.chosen[i] ? data.micro[i] : data.macro[i]);

const selectedRight = (i) => data.score[i][data.chosen[i]] >= data.right;

const number = (value) => (value === null ? "–" : value < 10 ? value.toFixed(3) : value < 1e4 ? value.toFixed(2)
  : value.toExponential(1));

function mark(i, way) {
  const score = data.score[i][way === "macro" ? 0 : 1];
  const kind = score === null ? "none" : score >= data.right ? "right" : "wrong";
  return make("span", { class: `mark ${way} ${kind}` });
}

function times() { // dates in the reader's time zone, in words
  for (const time of document.querySelectorAll("time")) {
    time.textContent = new Date(time.dateTime).toLocaleString("en-GB", { day: "numeric", month: "long",
      year: "numeric", hour: "2-digit", minute: "2-digit", timeZoneName: "long" });
  }
}
