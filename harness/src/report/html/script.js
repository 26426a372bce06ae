"use strict";
(() => {
  const table = document.querySelector("#items table");
  if (table) {
    const body = table.tBodies[0], rows = [...body.rows];
    const metric = document.querySelector("#metric"), show = document.querySelector("#show"), search = document.querySelector("#search");
    const empty = document.querySelector("#none-found"), count = document.querySelector("#count");
    const cells = rows.map(row => [...row.querySelectorAll("td[data-v]")]);
    const words = rows.map(row => row.querySelector("td.left").textContent.toLowerCase());
    const values = cells.map(list => list.map(td => td.dataset.v.split("|").map(v => v === "" ? NaN : Number(v))));
    const minus = text => Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212");
    const chosen = () => metric.options[metric.selectedIndex];

    const fill = () => {
      const at = metric.selectedIndex, digits = Number(chosen().dataset.decimals), better = Number(chosen().dataset.better);
      cells.forEach((list, i) => list.forEach((td, k) => {
        const v = values[i][k][at], text = td.querySelector("span");
        const delta = td.dataset.delta !== undefined;
        text.textContent = Number.isNaN(v) ? "\u2013" : (delta && v > 0 ? "+" : "") + minus(v.toFixed(digits));
        if (delta) text.className = !v || !better ? "" : v * better > 0 ? "good" : "bad";
      }));
    };
    const filter = () => {
      const at = metric.selectedIndex, better = Number(chosen().dataset.better) || 1;
      const wanted = search.value.trim().toLowerCase(), [what, which] = show.value.split(":");
      let shown = 0;
      rows.forEach((row, i) => {
        const v = which === undefined ? 0 : values[i][Number(which)][at] * better;
        const kept = words[i].includes(wanted) && (what === "all" || (what === "better" && v > 0) || (what === "worse" && v < 0) || (what === "cut" && row.dataset.cut === "1"));
        row.hidden = !kept;
        shown += kept;
      });
      empty.hidden = shown > 0;
      count.textContent = shown + " / " + rows.length;
    };
    const sort = (column, ascending) => {
      const at = metric.selectedIndex, order = rows.map((_, i) => i);
      const key = i => column === "n" ? i : column === "q" ? words[i] : values[i][Number(column)][at];
      order.sort((i, j) => {
        const a = key(i), b = key(j);
        if (typeof a === "string") return (ascending ? 1 : -1) * a.localeCompare(b) || i - j;
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b) || i - j;
        return (ascending ? a - b : b - a) || i - j;
      });
      order.forEach(i => body.append(rows[i]));
    };
    let sorted = ["n", true];
    table.tHead.querySelectorAll("button").forEach(button => button.addEventListener("click", () => {
      const column = button.dataset.column;
      sorted = [column, sorted[0] === column ? !sorted[1] : true];
      table.tHead.querySelectorAll("th").forEach(th => th.removeAttribute("aria-sort"));
      button.closest("th").setAttribute("aria-sort", sorted[1] ? "ascending" : "descending");
      sort(...sorted);
    }));
    metric.addEventListener("change", () => { fill(); filter(); sort(...sorted); });
    show.addEventListener("change", filter);
    search.addEventListener("input", filter);
    document.querySelector("#items .controls").hidden = false;
    filter();
  }
  const flip = document.querySelector("#flip");
  if (flip) {
    const cards = [...document.querySelectorAll(".flip")], count = document.querySelector("#flip-count");
    const filter = () => {
      let shown = 0;
      cards.forEach(card => {
        const kept = flip.value === "" || card.dataset.flips.split(" ").includes(flip.value);
        card.hidden = !kept;
        shown += kept;
      });
      count.textContent = shown + " / " + cards.length;
    };
    flip.addEventListener("change", filter);
    document.querySelector(".controls.flips").hidden = false;
    filter();
  }
  // What is folded on screen is open on paper.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
})();
