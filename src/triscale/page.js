"use strict";
// A click on a header sorts the table: numbers by value, texts by the reader's alphabet; dashes stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.addEventListener("click", () => {
    const rows = [...table.tBodies[0].rows];
    const numeric = rows.some((row) => "value" in row.cells[column].dataset);
    const downwards = header.ariaSort ? header.ariaSort === "ascending" : numeric;
    const key = (row) => {
      const cell = row.cells[column];
      if (!numeric) return cell.textContent;
      return "value" in cell.dataset ? Number(cell.dataset.value) : NaN;
    };
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (numeric && (Number.isNaN(x) || Number.isNaN(y))) return Number.isNaN(x) - Number.isNaN(y);
      const order = numeric ? x - y : x.localeCompare(y);
      return downwards ? -order : order;
    });
    headers.forEach((other) => { other.ariaSort = null; });
    header.ariaSort = downwards ? "descending" : "ascending";
    table.tBodies[0].append(...rows);
  }));
}

const large = document.getElementById("large");
for (const image of document.querySelectorAll("figure img")) {
  image.addEventListener("click", () => {
    large.querySelector("img").src = image.src;
    large.querySelector("p").textContent = image.alt;
    large.showModal();
  });
}
large.addEventListener("click", () => large.close());

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
