// The samples that are listed, as CSV or JSON Lines.

const FIELDS = ["run", "task", "doc_id", "outcome", "question", "expected", "macro", "micro", "chosen", "score_macro",
  "score_micro", "ppl_macro", "ppl_micro", "margin", "seconds", "fallback", "iou"];

function record(i) {
  const values = [data.runs[data.run[i]], data.tasks[data.task[i]], data.id[i], name(i), data.question[i],
    data.answers[i], data.macro[i], data.micro[i], data.chosen[i] ? "micro" : "macro", ...data.score[i],
    ...data.ppl[i], data.margin[i], data.seconds[i], data.fallback[i], data.iou[i]];
  return Object.fromEntries(FIELDS.map((field, place) => [field, values[place]]));
}

function cell(value) { // an apostrophe precedes a text that a spreadsheet would compute
  const text = value === null ? "" : typeof value === "string" && /^[=+\-@\t\n\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv(places) {
  return [FIELDS, ...places.map((i) => Object.values(record(i)))].map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

const jsonLines = (places) => places.map((i) => `${JSON.stringify(record(i))}\n`).join("");

function download(text, file, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not allowed for this address: what a page could always do
    const area = make("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
  return true;
}

function exportButtons(listed) { // listed: returns the samples, by number
  const told = find("exported");
  const offered = [
    ["copy", async () => { told.textContent = (await copy(csv(listed()))) ? "copied" : "not allowed here"; }],
    ["CSV", () => download(csv(listed()), "samples.csv", "text/csv")],
    ["JSON Lines", () => download(jsonLines(listed()), "samples.jsonl", "application/jsonl")],
  ];
  for (const [label, act] of offered) {
    const title = label === "copy" ? "Copy the samples listed, as CSV" : `Download the samples listed, as ${label}`;
    const button = make("button", { type: "button", title, "aria-label": title }, label);
    button.addEventListener("click", act);
    told.before(button);
  }
}
