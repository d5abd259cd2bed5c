"use strict";

// Light or dark: the reader's system decides until the button is used.
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// The table of cases: sort by a click on a heading, filter by name, run and outcome.
const caseTable = document.getElementById("case-table");
const caseRows = () => (caseTable ? [...caseTable.tBodies[0].rows] : []);
const visibleRows = () => caseRows().filter((row) => !row.hidden);

function sortKey(row, column) {
  const cell = row.cells[column];
  const text = cell.querySelector("data")?.value ?? cell.textContent.trim();
  const number = parseFloat(text);
  return Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? -1 : 1; // numbers before texts, so that gaps come last
}

function sortBy(head) {
  const column = head.cellIndex;
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const keyed = caseRows().map((row) => [sortKey(row, column), row]);
  keyed.sort(([a], [b]) => (typeof a === typeof b ? sign : 1) * compare(a, b));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  caseTable.tBodies[0].append(...keyed.map(([, row]) => row));
}

function filterCases() {
  const filters = document.getElementById("filters").elements;
  const name = filters.name.value.toLowerCase();
  for (const row of caseRows()) {
    row.hidden =
      !row.dataset.name.toLowerCase().includes(name) ||
      Boolean(filters.run?.value && row.dataset.run !== filters.run.value) ||
      Boolean(filters.wrong?.checked && row.dataset.verdict !== "wrong");
  }
  const count = `${visibleRows().length} of ${caseRows().length}`;
  document.getElementById("filter-count").textContent = count;
}

// Links to a case, in the table and in the charts, open it in the viewer.
function openHash() {
  const row = document.getElementById(location.hash.slice(1));
  if (row?.matches("#case-table tbody tr")) viewer?.open(row);
}

if (caseTable) {
  for (const button of caseTable.querySelectorAll("thead button")) {
    button.addEventListener("click", () => sortBy(button.closest("th")));
  }
  document.getElementById("filters").addEventListener("input", filterCases);
  caseTable.tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (!event.target.closest("a")) viewer?.open(row);
  });
  addEventListener("hashchange", openHash);
  addEventListener("DOMContentLoaded", openHash);
}
