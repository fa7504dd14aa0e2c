// The list of samples, its filters, its order and its address; keys, tabs, theme.

const ROW = 58; // pixels, as in the style
const AROUND = 8; // rows drawn above and below those that are seen
const NONE = { outcome: -1, task: -1, look: "any", other: "", query: "", withImage: false, sort: "", down: false };
const state = { run: 0, ...NONE };
let shown = []; // samples that pass the filters, by number
let cursor = 0; // place in shown
let texts = null; // what is searched, made at the first search
let twins = null; // by run: the number of the sample with the same task and doc_id

const ORDERS = {
  ppl_macro: ["macro perplexity", (i) => data.ppl[i][0]],
  ppl_micro: ["micro perplexity", (i) => data.ppl[i][1]],
  margin: ["margin", (i) => data.margin[i]],
  seconds: ["seconds", (i) => data.seconds[i]],
  iou: ["IoU", (i) => data.iou[i]],
};

// Filters ------------------------------------------------------------------------------------------------------

const look = (i) => (data.micro[i] === null ? data.fallback[i] : data.chosen[i] ? "micro" : "macro");

function searched(i) {
  texts ??= data.question.map((_, k) =>
    [data.question[k], data.answers[k], data.macro[k], data.micro[k] ?? ""].join("\n").toLowerCase());
  return texts[i];
}

function twin(i, run) { // the same question in another run
  if (twins === null) {
    twins = data.runs.map(() => new Map());
    for (let k = 0; k < total; k++) twins[data.run[k]].set(`${data.task[k]} ${data.id[k]}`, k);
  }
  return twins[run].get(`${data.task[i]} ${data.id[i]}`);
}

function differs(i) {
  const [what, run] = state.other.split(" ");
  const k = twin(i, Number(run));
  if (k === undefined) return false;
  return what === "verdict" ? selectedRight(i) !== selectedRight(k) : selected(i) !== selected(k);
}

function passes(i) {
  return data.run[i] === state.run
    && (state.task < 0 || data.task[i] === state.task)
    && (state.look === "any" || look(i) === state.look)
    && (!state.withImage || data.photo[i] >= 0)
    && (state.query === "" || searched(i).includes(state.query.toLowerCase()))
    && (state.other === "" || differs(i));
}

function order() { // with images first, or by a figure, missing ones last
  if (state.sort === "") {
    shown = [...shown.filter((i) => data.photo[i] >= 0), ...shown.filter((i) => data.photo[i] < 0)];
    return;
  }
  const figure = ORDERS[state.sort][1];
  const sign = state.down ? -1 : 1;
  const known = shown.filter((i) => figure(i) !== null);
  known.sort((one, other) => sign * (figure(one) - figure(other)) || one - other);
  shown = [...known, ...shown.filter((i) => figure(i) === null)];
}

function filter(sample) { // and stay at a sample, where it still passes
  const before = sample ?? shown[cursor];
  const counts = new Array(data.outcomes.length).fill(0);
  shown = [];
  for (let i = 0; i < total; i++) {
    if (!passes(i)) continue;
    counts[data.outcome[i]]++;
    if (state.outcome < 0 || data.outcome[i] === state.outcome) shown.push(i);
  }
  order();
  const all = counts.reduce((sum, count) => sum + count, 0);
  for (const chip of find("outcomes").children) {
    const outcome = Number(chip.dataset.outcome);
    chip.lastChild.textContent = (outcome < 0 ? all : counts[outcome]).toLocaleString("en");
    chip.setAttribute("aria-pressed", String(outcome === state.outcome));
  }
  cursor = Math.max(0, shown.indexOf(before));
  find("count").textContent = shown.length === 1 ? "1 sample" : `${shown.length.toLocaleString("en")} samples`;
  find("exported").textContent = "";
  find("height").style.height = `${shown.length * ROW}px`;
  find("rows").scrollTop = Math.max(0, cursor * ROW - 2 * ROW);
  show();
}

function change(values, record = write) { // filters chosen by the reader
  Object.assign(state, values);
  filter();
  record();
}

function clear() {
  change(NONE);
  fields();
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
  fill(find("look"), [["any", "any"], ...looks.map((kind) => [kind, named[kind] ?? `none: ${kind}`])]);
  fill(find("sort"), [["", "images first"],
    ...Object.entries(ORDERS).filter(([, [, figure]]) => here.some((i) => figure(i) !== null))
      .flatMap(([key, [label]]) => [[key, `${label}, ↑`], [`${key} down`, `${label}, ↓`]])]);
  const others = data.runs.map((label, run) => [label, run]).filter(([, run]) => run !== state.run);
  fill(find("other"), [["", "no"], ...others.flatMap(([label, run]) =>
    [[`verdict ${run}`, `right or wrong, from ${label}`], [`answer ${run}`, `answer, from ${label}`]])]);
  find("other").parentElement.hidden = others.length === 0;
}

function fields() { // show the state
  find("task").value = String(state.task);
  find("look").value = state.look;
  find("other").value = state.other;
  find("sort").value = state.sort + (state.down ? " down" : "");
  find("search").value = state.query;
  find("with-image").checked = state.withImage;
}

// The address --------------------------------------------------------------------------------------------------

function address() {
  const values = new URLSearchParams();
  if (state.run) values.set("run", state.run);
  if (state.outcome >= 0) values.set("outcome", state.outcome + 1);
  if (state.task >= 0) values.set("task", data.tasks[state.task]);
  if (state.look !== "any") values.set("look", state.look);
  if (state.other) values.set("differs", state.other);
  if (state.query) values.set("search", state.query);
  if (state.withImage) values.set("images", "1");
  if (state.sort) values.set("sort", state.sort + (state.down ? " down" : ""));
  if (shown.length) values.set("sample", shown[cursor]);
  return `#${values}`;
}

let waiting = null;

function write() { // a step that the back button undoes
  clearTimeout(waiting);
  waiting = null;
  if (location.hash !== address()) history.pushState(null, "", address());
}

function rewrite() { // the same step; a browser allows few a second, so a held key writes the last
  if (waiting === null) {
    history.replaceState(null, "", address());
    waiting = setTimeout(() => { waiting = null; history.replaceState(null, "", address()); }, 150);
  }
}

function open() { // what the address says; unknown values are as none
  const old = /^#sample-(\d+)$/.exec(location.hash);
  const values = new URLSearchParams(old ? `sample=${old[1]}` : location.hash.slice(1));
  const whole = (key, limit) => (/^\d+$/.test(values.get(key) ?? "") && Number(values.get(key)) < limit ? Number(values.get(key)) : -1);
  const sample = whole("sample", total);
  const run = sample < 0 ? Math.max(0, whole("run", data.runs.length)) : data.run[sample];
  chooseRun(run);
  const among = (id, value, none) => ([...find(id).options].some((one) => one.value === value) ? value : none);
  const [sort, down] = among("sort", values.get("sort") ?? "", "").split(" ");
  const task = data.tasks.indexOf(values.get("task"));
  Object.assign(state, { outcome: Math.max(0, whole("outcome", data.outcomes.length + 1)) - 1, task,
    look: among("look", values.get("look"), "any"), other: among("other", values.get("differs"), ""),
    query: values.get("search") ?? "", withImage: values.get("images") === "1", sort, down: down === "down" });
  fields();
  filter(sample < 0 ? undefined : sample);
  return sample >= 0;
}

// The list -----------------------------------------------------------------------------------------------------

function row(place) {
  const i = shown[place];
  const said = data.micro[i] === null ? data.macro[i] : `${data.macro[i]} → ${data.micro[i]}`;
  const figure = state.sort ? ORDERS[state.sort][1](i) : null;
  const element = make("div", { class: "row", role: "option", id: `row-${i}`,
    "aria-selected": String(place === cursor) },
  make("div", { title: name(i) }, make("span", { class: "hidden" }, name(i)), mark(i, "macro"), mark(i, "micro")),
  make("div", { class: "texts" }, make("p", {}, data.question[i]),
    make("p", { class: "said" }, figure === null ? said : `${number(figure)} · ${said}`)));
  element.style.top = `${place * ROW}px`;
  element.addEventListener("click", () => { go(place); write(); });
  return element;
}

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
  show();
}

function step(label, place, sign) {
  const button = make("button", { type: "button", "aria-label": label }, sign);
  button.disabled = place < 0 || place >= shown.length;
  button.addEventListener("click", () => {
    go(place);
    rewrite();
    find("detail").querySelector(`button[aria-label="${label}"]`).focus({ preventScroll: true });
  });
  return button;
}

function elsewhere(i) { // the same question in the other runs
  const others = data.runs.map((label, run) => [label, run === state.run ? undefined : twin(i, run)]);
  return others.filter(([, k]) => k !== undefined).map(([label, k]) => {
    const button = make("button", { type: "button" }, label);
    button.addEventListener("click", () => { chooseRun(data.run[k]); Object.assign(state, NONE); fields(); filter(k); write(); });
    return make("p", { class: "wanted twin" }, button, ` ${selected(k) || "(an empty answer)"} `,
      make("span", {}, `${verdict(data.score[k][data.chosen[k]])}, ${data.chosen[k] ? "micro" : "macro"} chosen`));
  });
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
    options(i),
    make("div", { class: "pair" }, photo(i), crop(i)), keyOf(i),
    make("div", { class: "pair" }, answer(i, "macro"), answer(i, "micro")),
    ...keyOfTokens(i), wanted(i), ...choice(i), ...elsewhere(i), trace(i));
}

// Keys, tabs, theme --------------------------------------------------------------------------------------------

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || find("large").open) return;
  const inside = find("gallery").contains(event.target);
  const writing = event.target.matches("input[type=search], select");
  if (writing) {
    if (event.key === "Escape") find("rows").focus({ preventScroll: true });
    return;
  }
  const page = Math.max(1, Math.floor(find("rows").clientHeight / ROW) - 1);
  const moves = { ArrowDown: cursor + 1, ArrowUp: cursor - 1, PageDown: cursor + page, PageUp: cursor - page,
    Home: 0, End: shown.length - 1 };
  if (inside && event.key in moves) { go(moves[event.key]); rewrite(); }
  else if (event.key === "j" || event.key === "k") { reveal(); go(cursor + (event.key === "j" ? 1 : -1)); rewrite(); }
  else if (event.key === "/") { reveal(); find("search").focus(); }
  else if (/^[0-6]$/.test(event.key)) { reveal(); change({ outcome: Number(event.key) - 1 }); }
  else return;
  event.preventDefault();
}

function reveal() {
  const { top, bottom } = find("gallery").getBoundingClientRect();
  if (top > innerHeight - 200 || bottom < 200) find("samples").scrollIntoView();
}

function chooseRun(run) { // its tables and what its samples offer
  state.run = run;
  document.querySelectorAll(".run").forEach((one, place) => { one.hidden = place !== run; });
  document.querySelectorAll(".tabs button").forEach((tab, place) => {
    tab.setAttribute("aria-selected", String(place === run));
    tab.tabIndex = place === run ? 0 : -1;
  });
  offer();
}

function listen() {
  const on = (id, event, values, record) => find(id).addEventListener(event, () => change(values(find(id)), record));
  on("task", "change", (field) => ({ task: Number(field.value) }));
  on("look", "change", (field) => ({ look: field.value }));
  on("other", "change", (field) => ({ other: field.value }));
  on("with-image", "change", (field) => ({ withImage: field.checked }));
  on("search", "input", (field) => ({ query: field.value.trim() }), rewrite);
  on("sort", "change", (field) => {
    const [sort, down] = field.value.split(" ");
    cursor = -1; // the first one is looked for, not the one that is seen
    return { sort, down: down === "down" };
  });
  find("rows").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  find("large").addEventListener("click", () => find("large").close());
  document.addEventListener("keydown", press);
  addEventListener("popstate", open);
  document.querySelectorAll(".tabs button").forEach((tab, place, tabs) => {
    const choose = (run) => { chooseRun(run); clear(); };
    tab.addEventListener("click", () => choose(place));
    tab.addEventListener("keydown", (event) => {
      const to = place + ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] ?? 0);
      if (to !== place && tabs[to]) { choose(to); tabs[to].focus(); }
    });
  });
  document.querySelectorAll("nav a").forEach((link) => link.addEventListener("click", (event) => {
    event.preventDefault(); // the address is that of the samples
    const section = link.dataset.section;
    const where = section ? `.run:not([hidden]) [data-name="${section}"]` : link.getAttribute("href");
    document.querySelector(where)?.scrollIntoView();
  }));
  find("theme").addEventListener("click", () => {
    const dark = (document.documentElement.dataset.theme
      ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
}

function start() {
  const chips = [["all", "every sample"], ...data.outcomes].map(([label, meaning], place) => {
    const chip = make("button", { type: "button", title: `${meaning} (key ${place})`, "data-outcome": place - 1 },
      label, make("span"));
    chip.addEventListener("click", () => change({ outcome: place - 1 }));
    return chip;
  });
  find("outcomes").replaceChildren(...chips);
  times();
  document.querySelectorAll("figure.table table").forEach(sortable);
  exportButtons(() => shown);
  listen();
  if (open()) find("samples").scrollIntoView();
  document.addEventListener("DOMContentLoaded", show);
}

start();
