// Values under the pointer, and the same technique marked wherever it appears.
document.querySelectorAll(".tile").forEach((tile) => {
  const { rows, columns, values, unit } = tile.dataset;
  const cells = Int8Array.from(atob(values), (letter) => letter.charCodeAt(0));
  const told = tile.querySelector("output");
  tile.addEventListener("pointermove", (event) => {
    const box = tile.getBoundingClientRect();
    const along = (at, size, count) => Math.max(0, Math.min(count - 1, Math.floor((at / size) * count)));
    const row = along(event.clientY - box.top, box.height, +rows);
    const column = along(event.clientX - box.left, box.width, +columns);
    const value = cells[row * +columns + column] * +unit;
    told.textContent = (value > 0 ? "+" : "") + value.toPrecision(2).replace("-", "\u2212");
  });
});
document.querySelectorAll("[data-of]").forEach((one) => {
  const same = [...document.querySelectorAll("[data-of]")].filter((other) => other.dataset.of === one.dataset.of);
  const mark = (on) => same.forEach((other) => other.classList.toggle("marked", on));
  one.addEventListener("pointerenter", () => mark(true));
  one.addEventListener("pointerleave", () => mark(false));
});
