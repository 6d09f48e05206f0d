
"use strict";

// Tables: a click or Enter on a header sorts by it, once more turns the order round, a third time restores it.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const first = column === 0 ? "ascending" : "descending";
    header.querySelector("button").addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      const opposite = first === "ascending" ? "descending" : "ascending";
      const order = before === null ? first : before === first ? opposite : null;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      if (order !== null) header.setAttribute("aria-sort", order);
      body.append(...(order === null ? original : sorted(original, column, order === "ascending" ? 1 : -1)));
    });
  });
}

function sorted(rows, column, sign) {
  if (column === 0) {
    const compare = new Intl.Collator(undefined, { numeric: true }).compare;
    return [...rows].sort((a, b) => sign * compare(a.cells[0].textContent, b.cells[0].textContent));
  }
  const value = (row) => row.cells[column].dataset.value;
  const known = rows.filter((row) => value(row) !== undefined).sort((a, b) => sign * (value(a) - value(b)));
  return [...known, ...rows.filter((row) => value(row) === undefined)]; // blanks are last in either order
}

// Settings: one panel at a time; without this script all stand below each other.
const choice = document.getElementById("choice");
if (choice) {
  const panels = [...document.querySelectorAll(".panel")];
  const show = (id) => panels.forEach((panel) => (panel.hidden = panel.id !== id));
  const inputs = [...choice.querySelectorAll("input")];
  choice.hidden = false;
  choice.addEventListener("change", (event) => show(event.target.value));
  const follow = () => {
    const target = document.getElementById(location.hash.slice(1));
    const panel = target && target.closest(".panel");
    if (panel) inputs.find((input) => input.value === panel.id).checked = true;
    show(inputs.find((input) => input.checked).value);
    if (panel) target.scrollIntoView();
  };
  addEventListener("hashchange", follow);
  follow();
}
