// One sample: its images, both answers, and everything that its trace has.

const STAGES = { macro: "macro, whole image", locate: "locate, where to look", micro: "micro, zoomed region" };
const SECOND = { ...STAGES, micro: "second run, whole image" }; // of a replay of two runs
const stages = (i) => (data.ensembles.includes(data.run[i]) ? SECOND : STAGES);
let unfolded = true; // whether the trace of a sample is shown
let heated = true; // whether attention is shown, where the trace keeps it

function inPixels(i, box) {
  const [width, height] = data.size[i];
  return box.map((value, side) => Math.min(Math.max(value, 0), 1) * (side % 2 ? height : width));
}

function enlarging(content, label) { // a frame whose content fills the screen after a click
  const frame = make("button", { type: "button", class: "frame", "aria-label": `${label}, enlarge` }, content);
  frame.addEventListener("click", () => {
    const large = content.cloneNode(true);
    find("large-content").replaceChildren(large);
    if (large.matches("img")) loupe(large);
    find("large").showModal();
  });
  return frame;
}

function loupe(image) { // a round glass over the pointer, three times as large
  const times = 3;
  const glass = make("span", { class: "loupe", hidden: "" });
  const holder = make("span", { class: "under-loupe" });
  image.replaceWith(holder);
  holder.append(image, glass);
  image.addEventListener("pointermove", (event) => {
    const { left, top, width, height } = image.getBoundingClientRect();
    const [x, y, half] = [event.clientX - left, event.clientY - top, 70];
    glass.hidden = false;
    Object.assign(glass.style, { left: `${x - half}px`, top: `${y - half}px`, backgroundImage: `url("${image.src}")`,
      backgroundSize: `${width * times}px ${height * times}px`,
      backgroundPosition: `${half - x * times}px ${half - y * times}px` });
  });
  image.addEventListener("pointerleave", () => { glass.hidden = true; });
  return holder;
}

function photo(i) {
  const [width, height] = data.size[i];
  const rectangles = data.crops[i].map((cut) => ["cut", cut]);
  if (data.annotated[i]) rectangles.push(["casing", inPixels(i, data.annotated[i])], ["annotated", inPixels(i, data.annotated[i])]);
  if (data.box[i]) rectangles.push(["casing", inPixels(i, data.box[i])], ["box", inPixels(i, data.box[i])]);
  const known = data.photo[i] >= 0;
  const holder = make("span", { class: known ? "photo" : "photo blank" });
  holder.style.setProperty("--ratio", width / height);
  if (known) holder.append(imageElement("photos", data.photo[i], { alt: "The whole image" }));
  holder.append(...heat(i));
  holder.append(drawing(width, height, ...rectangles));
  if (known) return enlarging(holder, "The whole image");
  return make("div", { class: "frame" }, holder);
}

function crop(i) {
  if (data.cropped[i] >= 0) {
    const image = imageElement("crops", data.cropped[i], { class: "crop", alt: "The zoomed region" });
    const frame = enlarging(image, "The zoomed region");
    loupe(image);
    return frame;
  }
  const why = data.fallback[i] ? `No second look: ${data.why[data.fallback[i]] ?? data.fallback[i]}.`
    : data.crops[i].length ? "This sample's image is not in the page." : "No region: both answers are to the whole image.";
  return make("div", { class: "frame" }, make("p", { class: "why" }, why));
}

function heat(i) { // what the model attends to, over the whole image
  const src = traceOf(i)?.heat;
  if (src === undefined) return [];
  const image = make("img", { class: "heat", src, alt: "" });
  image.hidden = !heated;
  return [image];
}

function heatSwitch() {
  const box = make("input", { type: "checkbox" });
  box.checked = heated;
  box.addEventListener("change", () => {
    heated = box.checked;
    document.querySelectorAll(".heat").forEach((image) => { image.hidden = !heated; });
  });
  return make("label", {}, box, make("span", { class: "line scale" }), "attention, lowest to highest");
}

function keyOf(i) { // what the rectangles on the image are
  const kinds = [["box", "located", data.box[i]], ["cut", "cropped", data.crops[i].length],
    ["annotated", "annotated", data.annotated[i]]].filter(([, , drawn]) => drawn);
  return make("p", { class: "key-of-boxes" }, ...kinds.map(([kind, label]) =>
    make("span", {}, make("span", { class: `line ${kind}` }), label)),
  ...(heat(i).length ? [heatSwitch()] : []));
}

function verdict(score) {
  if (score === null) return "";
  return score === 100 ? "right" : score === 0 ? "wrong" : `score ${score}`;
}

function answer(i, way) {
  const which = way === "macro" ? 0 : 1;
  const text = data[way][i];
  const chosen = data.chosen[i] === which;
  const shownText = text === null ? "no answer" : text === "" ? "(an empty answer)" : text;
  const reply = replyOf(i, which);
  const parts = text && reply?.lengths && reply.text === text ? written(reply) : [shownText];
  const card = make("div", { class: `answer ${way}${chosen ? " chosen" : ""}` },
    make("p", { class: "who" }, make("span", {}, stages(i)[way]), make("span", {}, chosen ? "chosen ✓" : "")),
    make("p", { class: text ? "text" : "text empty" }, ...parts));
  if (text !== null) {
    card.append(make("p", { class: "small" }, mark(i, way),
      ` ${verdict(data.score[i][which])} · perplexity ${number(data.ppl[i][which])}`));
  }
  return card;
}

function facts(i) {
  const parts = [`sample ${data.id[i]} of ${data.tasks[data.task[i]]}`];
  if (data.box[i]) parts.push(`box ${data.box[i].map((side) => side.toFixed(2)).join(", ")}`);
  if (data.iou[i] !== null) parts.push(`IoU ${data.iou[i].toFixed(2)}`);
  const sides = data.crops[i].map(([left, top, right, bottom]) => `${right - left} × ${bottom - top}`);
  if (sides.length) parts.push(`crop ${sides.join(" and ")} of ${data.size[i][0]} × ${data.size[i][1]} pixels`);
  if (data.seconds[i] !== null) parts.push(`${data.seconds[i].toFixed(3)} s`);
  return parts.join(" · ");
}

// The trace ---------------------------------------------------------------------------------------------------

const traceOf = (i) => (data.detail[i] < 0 ? null : data.details[data.detail[i]]);

const replyOf = (i, which) => traceOf(i)?.replies[traceOf(i).cards[which]];

function optionsOf(i) { // [letter, text] of the options in the prompt
  const prompt = traceOf(i)?.prompts.macro ?? "";
  const found = [...prompt.matchAll(/^\(?([A-Z])[.):] ?(.+)$/gm)].map(([, letter, text]) => [letter, text]);
  return found.length > 1 && found[0][0] === "A" ? found : [];
}

function options(i) {
  const expected = data.answers[i].split(" / ");
  return make("ul", { class: "options" }, ...optionsOf(i).map(([letter, text]) =>
    make("li", { class: expected.includes(letter) ? "expected" : "" }, make("b", {}, letter), ` ${text}`)));
}

function wanted(i) {
  const text = optionsOf(i).find(([letter]) => letter === data.answers[i])?.[1];
  return make("p", { class: "wanted" }, make("span", {}, "Expected: "),
    (data.answers[i] || "–") + (text === undefined ? "" : ` (${text})`));
}

function percent(logprob) {
  const chance = 100 * Math.exp(logprob);
  return `${chance.toFixed(chance < 99.95 ? 1 : 0)}%`;
}

function token(kind, ids, logprob, ...content) { // one token, or several that write one character
  const what = ids.length === 0 ? "end of the reply" : `token id ${ids.join(", ")}`;
  const title = `${percent(logprob)}, ${what}, log-probability ${logprob.toFixed(3)}`;
  const element = make("span", { class: kind, title }, ...content);
  element.style.setProperty("--doubt", `${Math.round(60 * (1 - Math.exp(logprob)))}%`);
  return element;
}

const tile = (name, ids, logprob) => token("token", ids, logprob, make("b", {}, name), ` ${percent(logprob)}`);

const endOf = (reply) => (reply.more ? [make("span", { class: "token" }, `and ${reply.more} more`)]
  : reply.logprobs.slice(reply.tokens.length).map((logprob) => tile("end", [], logprob)));

function written(reply) { // the text of a reply, token by token
  const letters = [...reply.text]; // lengths count characters
  const parts = [];
  let [place, ids, logprob] = [0, [], 0];
  reply.lengths.forEach((length, number) => {
    ids.push(reply.tokens[number]);
    logprob += reply.logprobs[number];
    if (length === 0) return;
    parts.push(token("piece", ids, logprob, letters.slice(place, place += length).join("")));
    [ids, logprob] = [[], 0];
  });
  if (ids.length) parts.push(tile("no text", ids, logprob));
  return [...parts, letters.slice(place).join("")];
}

function tokens(reply) { // where a trace has no texts of tokens
  const tiles = reply.tokens.map((id, place) => tile(String(id), [id], reply.logprobs[place]));
  tiles.push(...endOf(reply));
  return make("p", { class: "tokens" }, ...tiles);
}

function keyOfTokens(i) { // what the colours of tokens mean
  if (!traceOf(i)?.replies.some((reply) => reply.lengths)) return [];
  return [make("p", { class: "key-of-tokens" }, "Tokens by probability: 100%", make("span", { class: "chances" }), "0%")];
}

function cost(reply) {
  const parts = [`${(1000 * reply.seconds).toFixed(1)} ms`, `${reply.computed.toLocaleString("en")} tokens computed`,
    `${reply.encodes} image${reply.encodes === 1 ? "" : "s"} encoded`];
  if (!reply.ended) parts.push("cut off before its end");
  return parts.join(" · ");
}

function stage(reply, prompts, look, names) {
  const prompt = look > 1 ? undefined : prompts[reply.stage] ?? prompts.second;
  const title = `${names[reply.stage]}${look > 1 ? `, look ${look}` : ""}`;
  const block = make("section", { class: `stage ${reply.stage}` },
    make("h4", {}, title, " ", make("span", { class: "small" }, cost(reply))));
  if (prompt !== undefined) block.append(make("p", { class: "label" }, "Prompt"), make("pre", {}, prompt));
  block.append(make("p", { class: "label" }, "Reply"));
  if (reply.lengths) block.append(make("pre", {}, ...(reply.text ? [] : ["(empty) "]), ...written(reply), ...endOf(reply)));
  else block.append(make("pre", {}, reply.text || "(empty)"), make("p", { class: "label" }, "Tokens by id, with their probabilities"), tokens(reply));
  return block;
}

function trace(i) {
  const kept = traceOf(i);
  if (kept === null) return make("p", { class: "note" }, "The prompts and tokens of this sample are in the run's traces.");
  const seen = {};
  const parts = kept.replies.map((reply) => {
    seen[reply.stage] = (seen[reply.stage] ?? 0) + 1;
    return stage(reply, kept.prompts, seen[reply.stage], stages(i));
  });
  if (kept.given !== null) {
    parts.splice(1, 0, make("section", { class: "stage locate" }, make("h4", {}, `box from ${kept.grounding}`),
      make("p", { class: "label" }, "Reply in the model's place"), make("pre", {}, kept.given)));
  }
  const folded = make("details", { class: "trace" }, make("summary", {}, "Prompts, replies, tokens"), ...parts);
  folded.open = unfolded;
  folded.addEventListener("toggle", () => { unfolded = folded.open; });
  return folded;
}

function choice(i) { // why this answer, in words
  const why = traceOf(i)?.verdict ?? (data.fallback[i] ? data.why[data.fallback[i]] ?? data.fallback[i] : "");
  return why ? [make("p", { class: "wanted" }, make("span", {}, "Choice: "), why)] : [];
}
