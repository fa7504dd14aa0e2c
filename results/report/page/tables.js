// Tables that are sorted by a click on a header: up, down, and as they came.

function value(cell) { // a number where there is one, else the text; null for what is missing
  const text = cell.textContent.trim();
  if (text === "-" || text === "") return null;
  const figure = Number(text.replace(/[,%x]/g, ""));
  return Number.isNaN(figure) ? text : figure;
}

function compare(one, other, sign) { // what is missing comes last, whichever way
  if (one === null || other === null) return (one === null) - (other === null);
  if (typeof one === "number" && typeof other === "number") return sign * (one - other);
  return sign * String(one).localeCompare(String(other), "en", { numeric: true });
}

function sortable(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = make("button", { type: "button" }, header.textContent);
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" };
      const order = next[header.getAttribute("aria-sort") ?? "none"];
      headers.forEach((one) => one.removeAttribute("aria-sort"));
      if (order !== "none") header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const sorted = rows.map((row) => [row, value(row.cells[column])]);
      if (order !== "none") sorted.sort((one, other) => compare(one[1], other[1], sign));
      body.replaceChildren(...sorted.map(([row]) => row));
    });
  });
}
