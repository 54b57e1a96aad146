// The page of many features: search, sort, and step through the table; open one dashboard.
const rows = [...document.querySelectorAll("tbody tr")];
const search = document.querySelector("#search");
const jump = document.querySelector("#jump");
const message = document.querySelector("#status");
let shown = rows;
let current = null;

function openFeature(id) {
  const row = rows.find((r) => r.dataset.id === String(id));
  if (!row) {
    message.textContent = "feature " + id + " is not on this page";
    return;
  }
  if (current) {
    document.getElementById("feature-" + current.dataset.id).hidden = true;
    current.removeAttribute("aria-current");
  }
  current = row;
  row.setAttribute("aria-current", "true");
  document.getElementById("feature-" + id).hidden = false;
  jump.value = id;
  row.scrollIntoView({ block: "nearest" });
  if (location.hash !== "#" + id) {
    history.replaceState(null, "", "#" + id);
  }
}

function filterRows() {
  const wanted = search.value.trim().toLowerCase();
  shown = [...document.querySelectorAll("tbody tr")].filter((row) => {
    const fits = row.dataset.text.includes(wanted) || row.dataset.id === wanted;
    row.hidden = !fits;
    return fits;
  });
  message.textContent = shown.length + " of " + rows.length + " features";
}

function step(by) {
  if (!shown.length) {
    return;
  }
  const next = shown.indexOf(current) + by;
  openFeature(shown[Math.min(Math.max(next, 0), shown.length - 1)].dataset.id);
}

function cellValue(row, column) {
  return row.cells[column].dataset.v ?? row.cells[column].textContent;
}

function asNumber(value) {
  return value === "" ? -Infinity : Number(value);
}

function compareRows(a, b, column) {
  const x = cellValue(a, column);
  const y = cellValue(b, column);
  if (isNaN(asNumber(x)) || isNaN(asNumber(y))) {
    return x.localeCompare(y);
  }
  return asNumber(x) - asNumber(y);
}

function sortBy(button) {
  const heading = button.closest("th");
  const column = heading.cellIndex;
  const descending = button.dataset.order !== "down";
  document.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
  document.querySelectorAll("th button").forEach((other) => delete other.dataset.order);
  button.dataset.order = descending ? "down" : "up";
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = document.querySelector("tbody");
  const sorted = [...rows].sort((a, b) => {
    const order = compareRows(a, b, column);
    return descending ? -order : order;
  });
  sorted.forEach((row) => body.append(row));
  filterRows();
}

function onKey(event) {
  if (event.target.matches("input")) {
    if (event.key === "Escape") {
      event.target.blur();
    }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) {
    return;
  }
  if (event.key === "j") {
    step(1);
  } else if (event.key === "k") {
    step(-1);
  } else if (event.key === "/") {
    event.preventDefault();
    search.focus();
  }
}

search.addEventListener("input", filterRows);
jump.addEventListener("change", () => openFeature(jump.value));
document.querySelector("#next").addEventListener("click", () => step(1));
document.querySelector("#previous").addEventListener("click", () => step(-1));
document.querySelectorAll("th button").forEach((button) => {
  button.addEventListener("click", () => sortBy(button));
});
rows.forEach((row) => row.addEventListener("click", () => openFeature(row.dataset.id)));
addEventListener("hashchange", () => openFeature(location.hash.slice(1)));
addEventListener("keydown", onKey);
filterRows();
if (rows.length) {
  openFeature(location.hash.slice(1) || rows[0].dataset.id);
}
