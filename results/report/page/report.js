"use strict";
(() => {
  const ROW = 58; // pixels, as in the style
  const AROUND = 8; // rows drawn above and below those that are seen
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const find = (id) => document.getElementById(id);
  const data = read("rows-data");
  const images = read("images-data");
  const total = data.id.length;
  const texts = data.question.map((_, i) =>
    [data.question[i], data.answers[i], data.macro[i], data.micro[i] ?? ""].join("\n").toLowerCase());
  const state = { run: 0, outcome: -1, task: -1, look: "any", query: "", withImage: false };
  let shown = []; // samples that pass the filters, by number
  let cursor = 0; // place in shown

  // Elements -------------------------------------------------------------------------------------------------

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

  // Filters --------------------------------------------------------------------------------------------------

  const look = (i) => (data.micro[i] === null ? data.fallback[i] : data.chosen[i] ? "micro" : "macro");

  function passes(i, outcome) {
    return data.run[i] === state.run
      && (outcome < 0 || data.outcome[i] === outcome)
      && (state.task < 0 || data.task[i] === state.task)
      && (state.look === "any" || look(i) === state.look)
      && (!state.withImage || data.photo[i] >= 0)
      && (state.query === "" || texts[i].includes(state.query));
  }

  function filter(keep) {
    const before = keep ? shown[cursor] : undefined;
    const counts = new Array(data.outcomes.length).fill(0);
    shown = [];
    for (let i = 0; i < total; i++) {
      if (!passes(i, -1)) continue;
      counts[data.outcome[i]]++;
      if (state.outcome < 0 || data.outcome[i] === state.outcome) shown.push(i);
    }
    shown = [...shown.filter((i) => data.photo[i] >= 0), ...shown.filter((i) => data.photo[i] < 0)];
    const all = counts.reduce((sum, count) => sum + count, 0);
    for (const chip of find("outcomes").children) {
      const outcome = Number(chip.dataset.outcome);
      chip.lastChild.textContent = (outcome < 0 ? all : counts[outcome]).toLocaleString("en");
      chip.setAttribute("aria-pressed", String(outcome === state.outcome));
    }
    cursor = Math.max(0, shown.indexOf(before));
    find("count").textContent = shown.length === 1 ? "1 sample" : `${shown.length.toLocaleString("en")} samples`;
    find("height").style.height = `${shown.length * ROW}px`;
    find("rows").scrollTop = Math.max(0, cursor * ROW - 2 * ROW);
    show();
  }

  function fill(select, options) {
    select.replaceChildren(...options.map(([value, label]) => make("option", { value }, label)));
  }

  function offer() { // what there is to choose from in this run
    const here = [...data.id.keys()].filter((i) => data.run[i] === state.run);
    const tasks = [...new Set(here.map((i) => data.task[i]))];
    const looks = [...new Set(here.map(look))];
    const named = { macro: "macro chosen", micro: "micro chosen" };
    fill(find("task"), [["-1", "all"], ...tasks.map((task) => [String(task), data.tasks[task]])]);
    fill(find("look"), [["any", "any"], ...looks.map((name) => [name, named[name] ?? `none: ${name}`])]);
  }

  function clear() {
    Object.assign(state, { outcome: -1, task: -1, look: "any", query: "", withImage: false });
    find("task").value = "-1";
    find("look").value = "any";
    find("search").value = "";
    find("with-image").checked = false;
    filter(true);
  }

  // The list -------------------------------------------------------------------------------------------------

  function mark(i, way) {
    const score = data.score[i][way === "macro" ? 0 : 1];
    const kind = score === null ? "none" : score >= data.right ? "right" : "wrong";
    return make("span", { class: `mark ${way} ${kind}` });
  }

  function row(place) {
    const i = shown[place];
    const said = data.micro[i] === null ? data.macro[i] : `${data.macro[i]} → ${data.micro[i]}`;
    const element = make("div", { class: "row", role: "option", id: `row-${i}`,
      "aria-selected": String(place === cursor), "aria-label": `${data.question[i]}: ${name(i)}` },
    make("div", { title: name(i) }, mark(i, "macro"), mark(i, "micro")),
    make("div", { class: "texts" }, make("p", {}, data.question[i]), make("p", { class: "said" }, said)));
    element.style.top = `${place * ROW}px`;
    element.addEventListener("click", () => go(place));
    return element;
  }

  const name = (i) => data.outcomes[data.outcome[i]][0];

  function draw() {
    const list = find("rows");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - AROUND);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + AROUND);
    const drawn = [];
    for (let place = first; place < last; place++) drawn.push(row(place));
    find("height").replaceChildren(...drawn);
    if (shown.length) list.setAttribute("aria-activedescendant", `row-${shown[cursor]}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function go(place) {
    if (!shown.length) return;
    cursor = Math.min(Math.max(place, 0), shown.length - 1);
    const list = find("rows");
    const top = cursor * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    history.replaceState(null, "", `#sample-${shown[cursor]}`);
    show();
  }

  // One sample -----------------------------------------------------------------------------------------------

  function photo(i) {
    const [width, height] = data.size[i];
    const rectangles = [];
    for (const cut of data.crops[i]) rectangles.push(["cut", cut]);
    if (data.box[i]) {
      const box = data.box[i].map((value, side) => Math.min(Math.max(value, 0), 1) * (side % 2 ? height : width));
      rectangles.push(["casing", box], ["box", box]);
    }
    const there = data.photo[i] >= 0;
    const holder = make("div", { class: there ? "photo" : "photo blank" });
    holder.style.setProperty("--ratio", width / height);
    if (there) holder.append(make("img", { src: images.photos[data.photo[i]], alt: "The whole image" }));
    holder.append(drawing(width, height, ...rectangles));
    return make("div", { class: "frame" }, holder);
  }

  function crop(i) {
    const frame = make("div", { class: "frame" });
    if (data.cropped[i] >= 0) {
      frame.append(make("img", { class: "crop", src: images.crops[data.cropped[i]], alt: "The zoomed region" }));
      return frame;
    }
    const why = data.fallback[i] ? `No second look: ${data.why[data.fallback[i]] ?? data.fallback[i]}.`
      : "This sample's image is not in the page.";
    frame.append(make("p", { class: "why" }, why));
    return frame;
  }

  const number = (value) => (value === null ? "–" : value < 10 ? value.toFixed(3) : value < 1e4 ? value.toFixed(2)
    : value.toExponential(1));

  function verdict(score) {
    if (score === null) return "";
    return score === 100 ? "right" : score === 0 ? "wrong" : `score ${score}`;
  }

  function answer(i, way) {
    const which = way === "macro" ? 0 : 1;
    const text = data[way][i];
    const chosen = data.chosen[i] === which;
    const said = text === null ? "no answer" : text === "" ? "(an empty answer)" : text;
    const card = make("div", { class: `answer ${way}${chosen ? " chosen" : ""}` },
      make("p", { class: "who" }, make("span", {}, way === "macro" ? "macro, whole image" : "micro, zoomed region"),
        make("span", {}, chosen ? "chosen ✓" : "")),
      make("p", { class: text ? "text" : "text empty" }, said));
    if (text !== null) {
      const small = make("p", { class: "small" }, mark(i, way),
        ` ${verdict(data.score[i][which])} · perplexity ${number(data.ppl[i][which])}`);
      card.append(small);
    }
    return card;
  }

  function facts(i) {
    const parts = [`sample ${data.id[i]} of ${data.tasks[data.task[i]]}`];
    if (data.box[i]) parts.push(`box ${data.box[i].map((value) => value.toFixed(2)).join(", ")}`);
    if (data.iou[i] !== null) parts.push(`IoU ${data.iou[i].toFixed(2)}`);
    const sides = data.crops[i].map(([left, top, right, bottom]) => `${right - left} × ${bottom - top}`);
    if (sides.length) parts.push(`crop ${sides.join(" and ")} of ${data.size[i][0]} × ${data.size[i][1]} pixels`);
    return parts.join(" · ");
  }

  function step(label, place, sign) {
    const button = make("button", { type: "button", "aria-label": label }, sign);
    button.disabled = place < 0 || place >= shown.length;
    button.addEventListener("click", () => {
      go(place);
      find("detail").querySelector(`button[aria-label="${label}"]`).focus({ preventScroll: true });
    });
    return button;
  }

  function nothing() {
    const detail = find("detail");
    detail.replaceChildren(make("div", { class: "empty-state" }, make("p", {}, total ? "No sample fits these filters."
      : "This run has no samples.")));
    if (!total) return;
    const button = make("button", { type: "button" }, "Clear filters");
    button.addEventListener("click", clear);
    detail.firstChild.append(button);
  }

  function show() {
    draw();
    if (!shown.length) { nothing(); return; }
    const i = shown[cursor];
    const [label, meaning] = data.outcomes[data.outcome[i]];
    find("detail").replaceChildren(
      make("header", {}, make("h3", {}, data.question[i]),
        make("div", { class: "steps" }, step("Previous sample", cursor - 1, "↑"), step("Next sample", cursor + 1, "↓"))),
      make("p", { class: "meta" }, make("span", { class: "badge", title: meaning }, label), ` ${facts(i)}`),
      make("div", { class: "pair" }, photo(i), crop(i)),
      make("div", { class: "pair" }, answer(i, "macro"), answer(i, "micro")),
      make("p", { class: "wanted" }, make("span", {}, "Expected: "), data.answers[i] || "–"));
  }

  // Keys, tabs, theme ----------------------------------------------------------------------------------------

  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inside = find("gallery").contains(event.target);
    const writing = event.target.matches("input[type=search], select");
    if (writing) {
      if (event.key === "Escape") find("rows").focus({ preventScroll: true });
      return;
    }
    const page = Math.max(1, Math.floor(find("rows").clientHeight / ROW) - 1);
    const moves = { ArrowDown: cursor + 1, ArrowUp: cursor - 1, PageDown: cursor + page, PageUp: cursor - page,
      Home: 0, End: shown.length - 1 };
    if (inside && event.key in moves) go(moves[event.key]);
    else if (event.key === "j" || event.key === "k") { reveal(); go(cursor + (event.key === "j" ? 1 : -1)); }
    else if (event.key === "/") { reveal(); find("search").focus(); }
    else if (/^[0-6]$/.test(event.key)) { reveal(); state.outcome = Number(event.key) - 1; filter(true); }
    else return;
    event.preventDefault();
  }

  function reveal() {
    const { top, bottom } = find("gallery").getBoundingClientRect();
    if (top > innerHeight - 200 || bottom < 200) find("samples").scrollIntoView();
  }

  function chooseRun(number) {
    state.run = number;
    document.querySelectorAll(".run").forEach((run, place) => { run.hidden = place !== number; });
    document.querySelectorAll(".tabs button").forEach((tab, place) => {
      tab.setAttribute("aria-selected", String(place === number));
      tab.tabIndex = place === number ? 0 : -1;
    });
    offer();
    clear();
  }

  function start() {
    const chips = [["all", "every sample"], ...data.outcomes].map(([label, meaning], place) => {
      const chip = make("button", { type: "button", title: `${meaning} (key ${place})`, "data-outcome": place - 1 },
        label, make("span"));
      chip.addEventListener("click", () => { state.outcome = place - 1; filter(true); });
      return chip;
    });
    find("outcomes").replaceChildren(...chips);
    find("task").addEventListener("change", (event) => { state.task = Number(event.target.value); filter(true); });
    find("look").addEventListener("change", (event) => { state.look = event.target.value; filter(true); });
    find("with-image").addEventListener("change", (event) => { state.withImage = event.target.checked; filter(true); });
    find("search").addEventListener("input", (event) => {
      state.query = event.target.value.trim().toLowerCase();
      filter(true);
    });
    find("rows").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    document.addEventListener("keydown", press);
    document.querySelectorAll(".tabs button").forEach((tab, place, tabs) => {
      tab.addEventListener("click", () => chooseRun(place));
      tab.addEventListener("keydown", (event) => {
        const to = place + ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] ?? 0);
        if (to !== place && tabs[to]) { chooseRun(to); tabs[to].focus(); }
      });
    });
    document.querySelectorAll("nav a[data-section]").forEach((link) => link.addEventListener("click", (event) => {
      event.preventDefault();
      document.querySelector(`.run:not([hidden]) [data-name="${link.dataset.section}"]`)?.scrollIntoView();
    }));
    find("theme").addEventListener("click", () => {
      const dark = (document.documentElement.dataset.theme
        ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
      document.documentElement.dataset.theme = dark ? "light" : "dark";
    });
    const linked = /^#sample-(\d+)$/.exec(location.hash);
    const sample = linked && Number(linked[1]) < total ? Number(linked[1]) : null;
    chooseRun(sample === null ? 0 : data.run[sample]);
    if (sample !== null) { go(shown.indexOf(sample)); find("samples").scrollIntoView(); }
  }

  start();
})();
