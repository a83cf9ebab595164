"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, text = "", name = "") => Object.assign(document.createElement(tag), { textContent: text, className: name });

  // Tables: a head is a button that sorts its column, numbers by value, cells without one last.
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    return cell.dataset.sort === undefined || text === "" ? text : Number(text);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
  const sort = (table, column, down) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    const empty = (value) => value === "" || Number.isNaN(value);
    rows.sort(([a], [b]) => (empty(a) || empty(b) ? empty(a) - empty(b) : down ? compare(b, a) : compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  };
  for (const table of all("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const figures = head.classList.contains("figure") || head.classList.contains("number");
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : figures;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table, column, down);
      });
    });
  }

  // Charts: the values under the pointer, or under the arrow keys, read back from the curves themselves.
  const tip = make("div", "", "tip");
  tip.hidden = true;
  document.body.append(tip);
  const axis = (text, log = false) => {
    const [low, high, start, end] = text.split(" ").map(Number);
    const [a, b] = log ? [Math.log10(low), Math.log10(high)] : [low, high];
    return (pixel) => { const value = a + ((pixel - start) / (end - start)) * (b - a); return log ? 10 ** value : value; };
  };
  const points = new WeakMap();
  const read = (path) => {
    if (!points.has(path)) points.set(path, (path.getAttribute("d").match(/-?[\d.]+ -?[\d.]+/g) ?? []).map((pair) => pair.split(" ").map(Number)));
    return points.get(path);
  };
  const told = (value) => (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-4) ? value.toExponential(2) : Number(value.toPrecision(4)).toString());
  const hide = (svg) => { tip.hidden = true; svg?.querySelector(".cursor")?.remove(); };
  const show = (svg, pixel, left, top) => {
    const [x, y] = [axis(svg.dataset.x), axis(svg.dataset.y, svg.dataset.log === "1")];
    const lines = all(".line:not(.off)", svg).map((path) => {
      const near = read(path).reduce((best, point) => (Math.abs(point[0] - pixel) < Math.abs(best[0] - pixel) ? point : best), [Infinity, 0]);
      return { name: path.querySelector("title").textContent, near };
    }).filter((line) => Math.abs(line.near[0] - pixel) < 24);
    if (!lines.length) return hide(svg);
    const at = lines.reduce((best, line) => (Math.abs(line.near[0] - pixel) < Math.abs(best - pixel) ? line.near[0] : best), Infinity);
    lines.sort((a, b) => a.near[1] - b.near[1]);
    tip.replaceChildren(make("p", `update ${Math.round(x(at)).toLocaleString("en")}`));
    for (const line of lines.slice(0, 12)) {
      const row = make("div");
      row.append(make("span", line.name), make("b", told(y(line.near[1]))));
      tip.append(row);
    }
    if (lines.length > 12) tip.append(make("p", `and ${lines.length - 12} more below`));
    let cursor = svg.querySelector(".cursor");
    if (!cursor) svg.append((cursor = document.createElementNS("http://www.w3.org/2000/svg", "path")));
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("d", `M${at} 8V186`);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(6, left + 18 + box.width > innerWidth ? left - box.width - 14 : left + 16)}px`;
    tip.style.top = `${Math.max(6, Math.min(top + 14, innerHeight - box.height - 6))}px`;
  };
  for (const svg of all("svg.chart")) {
    const scale = () => { const box = svg.getBoundingClientRect(); return { box, by: svg.viewBox.baseVal.width / box.width }; };
    svg.addEventListener("pointermove", (event) => { const { box, by } = scale(); show(svg, (event.clientX - box.left) * by, event.clientX, event.clientY); });
    for (const name of ["pointerleave", "blur"]) svg.addEventListener(name, () => hide(svg));
    let place = 46;
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -8, ArrowRight: 8 }[event.key];
      if (event.key === "Escape") return hide(svg);
      if (!by) return undefined;
      event.preventDefault();
      place = Math.min(342, Math.max(46, place + by));
      const { box, by: ratio } = scale();
      return show(svg, place, box.left + place / ratio, box.top + 20);
    });
  }

  // Legends: pointing at a condition brings it forward, pressing it takes it out of the charts and back.
  for (const box of all(".curves")) {
    const items = all(".lines li", box);
    const paths = all("[data-i]:not(li)", box);
    const forward = (item) => paths.forEach((path) => path.classList.toggle("dim", item !== null && path.dataset.i !== item.dataset.i));
    if (items.length < 2) continue;
    for (const item of items) {
      item.tabIndex = 0;
      item.setAttribute("role", "button");
      item.setAttribute("aria-pressed", "true");
      const press = () => {
        const on = item.getAttribute("aria-pressed") !== "true";
        item.setAttribute("aria-pressed", String(on));
        paths.filter((path) => path.dataset.i === item.dataset.i).forEach((path) => path.classList.toggle("off", !on));
      };
      item.addEventListener("click", press);
      item.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); press(); } });
      for (const name of ["pointerenter", "focus"]) item.addEventListener(name, () => forward(item));
      for (const name of ["pointerleave", "blur"]) item.addEventListener(name, () => forward(null));
    }
  }

  // Pictures: pressing one gives it the whole width.
  for (const picture of all(".shots img")) {
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    const press = () => picture.closest("figure").classList.toggle("wide");
    picture.addEventListener("click", press);
    picture.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); press(); } });
  }

  // Paper has nothing to unfold.
  let folded = [];
  addEventListener("beforeprint", () => { folded = all("details:not([open])"); folded.forEach((each) => { each.open = true; }); });
  addEventListener("afterprint", () => folded.forEach((each) => { each.open = false; }));
})();
