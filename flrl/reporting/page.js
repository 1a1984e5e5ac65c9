"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const DASHES = ["", "7 4", "2 3", "9 3 2 3", "4 2"];
  const LEFT = 56, RIGHT = 14, TOP = 10, BOTTOM = 36, HEIGHT = 250, MARKS = 8, SHOWN = 12;

  // Elements.

  const add = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const html = (tag, attributes = {}, ...children) => add(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    add(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // Numbers.

  const PREFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const shown = (value, unit) => {
    if (value === null || value === undefined) return "–";
    if (unit === "B") {
      const [size, prefix] = PREFIXES.find(([size]) => Math.abs(value) >= size) ?? [1, ""];
      return `${Number((value / size).toPrecision(4))} ${prefix}B`;
    }
    return String(Number(value.toPrecision(5))) + (unit ? ` ${unit}` : "");
  };
  const ticks = (low, high, count, whole) => {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    let step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
    if (whole) step = Math.max(1, Math.ceil(step));
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
    return found;
  };

  // Marks and patterns, so that series can be told apart without colour.

  const mark = (kind, x, y, r = 3.6) => [
    `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
    `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    `M${x} ${y - r}L${x + r} ${y + r}H${x - r}z`,
    `M${x} ${y - r - 1}l${r + 1} ${r + 1}l${-r - 1} ${r + 1}l${-r - 1} ${-r - 1}z`,
    `M${x - r} ${y - r}l${2 * r} ${2 * r}M${x + r} ${y - r}l${-2 * r} ${2 * r}`,
    `M${x} ${y + r}L${x + r} ${y - r}H${x - r}z`,
    `M${x - r - 1} ${y}h${2 * r + 2}M${x} ${y - r - 1}v${2 * r + 2}`,
  ][kind % 7];
  const LINES = ["", "M0 8L8 0", "M0 0L8 8", "M0 4H8", "M4 0V8", "M0 0L8 8M0 8L8 0", "M0 4H8M4 0V8", "M3 4a1.5 1.5 0 1 0 3 0a1.5 1.5 0 1 0 -3 0"];
  const pattern = (id, i) =>
    svg("pattern", { id, width: 8, height: 8, patternUnits: "userSpaceOnUse", class: `c${i % 8}` },
      svg("rect", { width: 8, height: 8, style: "fill:var(--c)" }),
      svg("path", { d: LINES[(i + Math.floor(i / 8)) % 8], style: "stroke:var(--card);stroke-width:1.6;fill:none" }));
  const swatch = (kind, i, id) => {
    const box = svg("svg", { width: 30, height: 14, class: `c${i % 8}`, "aria-hidden": "true" });
    if (kind === "stack") box.append(svg("defs", {}, pattern(id, i)), svg("rect", { width: 30, height: 14, fill: `url(#${id})` }));
    else if (kind === "band") box.append(svg("rect", { width: 30, height: 14, class: "band" }));
    else box.append(svg("path", { d: "M0 7H30", class: "line", style: "stroke:var(--c);stroke-width:2", "stroke-dasharray": DASHES[i % 5] }),
      svg("path", { d: mark(i, 15, 7), class: "marks" }));
    return box;
  };

  class Chart {
    constructor(figure, spec, number) {
      Object.assign(this, { figure, spec, number, stacked: spec.kind === "stack", hidden: new Set(), cursor: null, from: null });
      this.series = spec.series.map((s, i) => {
        const x = s.x ?? spec.x ?? data.x, y = s.y ?? data.metrics[s.metric];
        const at = x.map((_, k) => (this.stacked ? k : x[k]));
        return { name: s.name, i, points: at.map((v, k) => [v, y[k]]).filter(([, v]) => v !== null), values: new Map(at.map((v, k) => [v, y[k]])) };
      });
      this.labels = spec.x ?? data.x;
      this.bands = (spec.bands ?? []).map((band, i) => ({ ...band, i }));
      this.xs = [...new Set(this.series.flatMap((s) => [...s.values.keys()]))].sort((a, b) => a - b);
      const ends = [this.xs[0] ?? 0, this.xs[this.xs.length - 1] ?? 1];
      const room = this.stacked || ends[0] === ends[1] ? 0.5 : 0;
      this.full = this.view = [ends[0] - room, ends[1] + room];
      this.build();
      new ResizeObserver(() => this.draw()).observe(this.plot);
    }

    build() {
      this.plot = html("div", { class: "plot", tabindex: "0", role: "group", "aria-label": `${this.spec.title}: arrows read values, plus and minus zoom, 0 resets` });
      this.tip = html("div", { class: "tip" });
      this.said = html("p", { class: "tip", style: "opacity:0;top:0", role: "status" });
      this.resetter = html("button", { type: "button", class: "reset" }, "Reset zoom");
      this.resetter.hidden = true;
      this.resetter.onclick = () => this.zoom(this.full);
      const legend = html("div", { class: "legend" });
      const keys = [...this.series, ...this.bands.map((b) => ({ ...b, band: true }))];
      if (keys.length > 1) for (const key of keys) legend.append(this.toggle(key));
      const table = html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${this.spec.title}` });
      const details = html("details", {}, html("summary", {}, "As a table"), table);
      details.ontoggle = () => table.childElementCount || table.append(this.table());
      this.figure.append(this.resetter, this.plot, legend, details);
      const moved = (event) => event.clientX - this.plot.getBoundingClientRect().left;
      this.plot.onpointerdown = (event) => { this.from = moved(event); this.plot.setPointerCapture(event.pointerId); this.read(this.nearest(moved(event))); };
      this.plot.onpointermove = (event) => { this.read(this.nearest(moved(event))); this.choose(moved(event)); };
      this.plot.onpointerup = (event) => this.chosen(moved(event));
      this.plot.onpointercancel = () => { this.from = null; this.read(null); };
      this.plot.onpointerleave = () => this.read(null);
      this.plot.onblur = () => this.read(null);
      this.plot.ondblclick = () => this.zoom(this.full);
      this.plot.onkeydown = (event) => this.key(event);
    }

    toggle(key) {
      const kind = this.stacked ? "stack" : key.band ? "band" : "line", name = key.name;
      const button = html("button", { type: "button", "aria-pressed": "true" }, swatch(kind, key.i, `k${this.number}-${key.i}`), html("span", {}, name));
      button.onclick = () => {
        this.hidden.has(name) ? this.hidden.delete(name) : this.hidden.add(name);
        button.setAttribute("aria-pressed", String(!this.hidden.has(name)));
        this.draw();
      };
      return button;
    }

    table() {
      const columns = [...this.series.map((s) => [s.name, s.values])];
      for (const b of this.bands) for (const end of ["low", "high"]) columns.push([`${b.name}, ${end}`, new Map(this.xs.map((x, k) => [x, b[end][k]]))]);
      const head = [this.spec.xlabel, ...columns.map(([name]) => name)].map((name) => html("th", { scope: "col" }, name));
      const rows = this.xs.map((x) => html("tr", {}, html("th", { scope: "row" }, this.label(x)),
        ...columns.map(([, values]) => html("td", {}, shown(values.get(x), this.spec.unit)))));
      return html("table", {}, html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...rows));
    }

    label(x) { return String(this.stacked ? this.labels[x] : x); }
    seen() { return this.series.filter((s) => !this.hidden.has(s.name)); }

    range() {
      const inside = (x) => x >= this.view[0] && x <= this.view[1];
      if (this.stacked) {
        const totals = this.xs.filter(inside).map((x) => this.seen().reduce((sum, s) => sum + (s.values.get(x) ?? 0), 0));
        return [0, Math.max(...totals, 1e-12) * 1.04];
      }
      const values = this.seen().flatMap((s) => s.points.filter(([x]) => inside(x)).map(([, y]) => y));
      for (const b of this.bands.filter((b) => !this.hidden.has(b.name))) this.xs.forEach((x, k) => inside(x) && values.push(b.low[k], b.high[k]));
      const finite = values.filter((v) => v !== null);
      if (!finite.length) return [0, 1];
      const low = finite.reduce((a, b) => Math.min(a, b)), high = finite.reduce((a, b) => Math.max(a, b));
      const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
      return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
    }

    summary() {
      const parts = this.seen().slice(0, SHOWN).map((s) => {
        const ys = s.points.map(([, y]) => y);
        return ys.length ? `${s.name} from ${shown(ys[0], this.spec.unit)} to ${shown(ys[ys.length - 1], this.spec.unit)}` : `${s.name} without values`;
      });
      const [a, b] = [this.xs[0], this.xs[this.xs.length - 1]];
      return `${this.spec.title}, ${this.spec.xlabel} ${this.label(a)} to ${this.label(b)}: ${parts.join("; ")}`;
    }

    draw() {
      const width = this.plot.clientWidth, [y0, y1] = this.range(), [x0, x1] = this.view;
      if (!width || !this.xs.length) return;
      this.width = width;
      this.px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
      this.py = (y) => HEIGHT - BOTTOM - ((y - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
      const clip = `clip${this.number}`, box = { x: LEFT, y: TOP - 5, width: Math.max(0, width - LEFT - RIGHT), height: HEIGHT - TOP - BOTTOM + 5 };
      const root = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": this.summary() });
      const defs = svg("defs", {}, svg("clipPath", { id: clip }, svg("rect", { ...box, x: LEFT - 5, width: box.width + 10 })));
      const marks = svg("g", { "clip-path": `url(#${clip})` });
      root.append(defs, ...this.axes(ticks(y0, y1, 6), y1), marks);
      for (const b of this.bands) if (!this.hidden.has(b.name)) marks.append(this.band(b));
      const base = new Map();
      for (const s of this.seen()) {
        if (this.stacked) { defs.append(pattern(`p${this.number}-${s.i}`, s.i)); marks.append(this.bars(s, base)); } else marks.append(...this.line(s));
      }
      this.over = svg("g");
      root.append(this.over);
      this.plot.replaceChildren(root, this.tip, this.said);
      this.read(this.cursor);
    }

    axes(ys, top) {
      const whole = this.stacked || this.xs.every(Number.isInteger), count = Math.max(2, Math.min(10, Math.floor(this.width / 70)));
      const xs = ticks(...this.view, count, whole).filter((x) => !this.stacked || this.labels[x] !== undefined);
      const text = (x, y, anchor, label) => svg("text", { x, y, "text-anchor": anchor }, label);
      const bottom = HEIGHT - BOTTOM;
      return [
        ...ys.map((y) => svg("path", { class: "grid", d: `M${LEFT} ${this.py(y)}H${this.width - RIGHT}` })),
        ...ys.map((y) => text(LEFT - 6, this.py(y) + 4, "end", this.spec.unit === "B" ? shown(y, "B") : shown(y, ""))),
        svg("path", { class: "axis", d: `M${LEFT} ${bottom}H${this.width - RIGHT}` }),
        ...xs.map((x) => text(this.px(x), bottom + 16, "middle", this.label(x))),
        text((LEFT + this.width - RIGHT) / 2, HEIGHT - 4, "middle", this.spec.xlabel),
        ...(this.spec.unit && this.spec.unit !== "B" ? [text(4, TOP + 2, "start", this.spec.unit)] : []),
      ];
    }

    line(s) {
      const d = s.points.map(([x, y], k) => `${k ? "L" : "M"}${this.px(x).toFixed(1)} ${this.py(y).toFixed(1)}`).join("");
      const inside = s.points.filter(([x]) => x >= this.view[0] && x <= this.view[1]), step = Math.max(1, Math.floor(inside.length / MARKS));
      const offset = Math.floor((s.i * step) / this.series.length) % step;
      const dots = inside.filter((_, k) => k % step === offset).map(([x, y]) => mark(s.i, this.px(x), this.py(y))).join("");
      return [
        svg("path", { class: `series c${s.i % 8}`, d: d || "M0 0", "stroke-dasharray": DASHES[s.i % 5] }, svg("title", {}, s.name)),
        svg("path", { class: `marks c${s.i % 8}`, d: dots || "M0 0" }),
      ];
    }

    band(b) {
      const there = (b.x ?? this.xs).map((x, k) => [x, b.low[k], b.high[k]]).filter(([, low]) => low !== null);
      const edge = (points, j) => points.map((p) => `${this.px(p[0]).toFixed(1)} ${this.py(p[j]).toFixed(1)}`).join("L");
      return svg("path", { class: `band c${b.i % 8}`, d: there.length ? `M${edge(there, 1)}L${edge([...there].reverse(), 2)}z` : "M0 0" }, svg("title", {}, b.name));
    }

    bars(s, base) {
      const whole = this.px(1) - this.px(0), wide = Math.max(0.6, whole > 3 ? whole * 0.84 : whole);
      let d = "";
      for (const [x, y] of s.points) {
        const from = base.get(x) ?? 0;
        base.set(x, from + y);
        if (y) d += `M${(this.px(x) - wide / 2).toFixed(1)} ${this.py(from).toFixed(1)}h${wide.toFixed(1)}V${this.py(from + y).toFixed(1)}h${-wide.toFixed(1)}z`;
      }
      return svg("path", { class: "bars", d: d || "M0 0", fill: `url(#p${this.number}-${s.i})` }, svg("title", {}, s.name));
    }

    // Reading values and zooming.

    nearest(pixel) {
      const x = this.view[0] + ((pixel - LEFT) / (this.width - LEFT - RIGHT)) * (this.view[1] - this.view[0]);
      return this.xs.reduce((best, v) => (Math.abs(v - x) < Math.abs(best - x) ? v : best), this.xs[0]);
    }

    read(x) {
      this.cursor = x;
      this.over.replaceChildren();
      this.tip.replaceChildren();
      if (x === null || x < this.view[0] || x > this.view[1]) return;
      const at = this.px(x);
      this.over.append(svg("path", { class: "cursor", d: `M${at} ${TOP}V${HEIGHT - BOTTOM}` }));
      const values = this.seen().map((s) => [s.name, s.values.get(x)]).filter(([, y]) => y !== null && y !== undefined && (y !== 0 || !this.stacked));
      for (const b of this.bands) {
        const k = this.xs.indexOf(x);
        if (!this.hidden.has(b.name) && b.low[k] !== null) values.push([b.name, `${shown(b.low[k], "")} to ${shown(b.high[k], "")}`]);
      }
      const lines = values.slice(0, SHOWN).map(([name, y]) => `${name}: ${typeof y === "string" ? y : shown(y, this.spec.unit)}`);
      if (values.length > SHOWN) lines.push(`and ${values.length - SHOWN} more, in the table`);
      const title = `${this.spec.xlabel} ${this.label(x)}`;
      this.tip.append(html("strong", {}, title), ...lines.map((line) => html("div", {}, line)));
      this.tip.style.left = at < this.width / 2 ? `${at + 12}px` : "";
      this.tip.style.right = at < this.width / 2 ? "" : `${this.width - at + 12}px`;
      if (document.activeElement === this.plot) this.said.textContent = [title, ...lines].join(", ");
    }

    choose(pixel) {
      if (this.from === null) return;
      const [a, b] = [Math.max(LEFT, Math.min(this.from, pixel)), Math.min(this.width - RIGHT, Math.max(this.from, pixel))];
      this.over.append(svg("rect", { class: "chosen", x: a, y: TOP, width: Math.max(0, b - a), height: HEIGHT - TOP - BOTTOM }));
    }

    chosen(pixel) {
      const from = this.from;
      this.from = null;
      if (from === null || Math.abs(pixel - from) < 8) return;
      const value = (p) => this.view[0] + ((p - LEFT) / (this.width - LEFT - RIGHT)) * (this.view[1] - this.view[0]);
      this.zoom([value(Math.min(from, pixel)), value(Math.max(from, pixel))]);
    }

    zoom([a, b]) {
      const view = [Math.max(a, this.full[0]), Math.min(b, this.full[1])];
      if (!this.xs.some((x) => x >= view[0] && x <= view[1])) return;
      this.view = view;
      this.resetter.hidden = view[0] === this.full[0] && view[1] === this.full[1];
      this.draw();
    }

    key(event) {
      const inside = this.xs.filter((x) => x >= this.view[0] && x <= this.view[1]), at = inside.indexOf(this.cursor);
      const [a, b] = this.view, middle = at < 0 ? (a + b) / 2 : this.cursor, half = (b - a) / 2;
      const last = inside.length - 1;
      const actions = {
        ArrowRight: () => this.read(inside[Math.min(last, at + 1)]), ArrowLeft: () => this.read(inside[at < 0 ? last : Math.max(0, at - 1)]),
        Home: () => this.read(inside[0]), End: () => this.read(inside[last]),
        "+": () => this.zoom([middle - half / 2, middle + half / 2]), "-": () => this.zoom([middle - half * 2, middle + half * 2]),
        0: () => this.zoom(this.full), Escape: () => this.zoom(this.full),
      };
      if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      actions[event.key]();
    }
  }

  // Tables that sort by a click on a column's name.

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        const [x, y] = [Number(key(a)), Number(key(b))];
        const order = Number.isNaN(x) || Number.isNaN(y) ? key(a).localeCompare(key(b), "en", { numeric: true }) : x - y;
        return rising ? order : -order;
      };
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      body.append(...[...body.rows].sort(compare));
    }));
  }

  // The page's charts; in a sweep's page one of all runs, of the metric that is chosen.

  document.querySelectorAll("figure[data-chart]").forEach((figure, number) => new Chart(figure, data.charts[figure.dataset.chart], number));
  const choice = document.getElementById("metric");
  if (choice) {
    const figure = document.getElementById("runs-chart");
    const drawn = () => {
      const metric = choice.value, runs = data.runs.filter((run) => metric in run.metrics);
      figure.replaceChildren(html("figcaption", {}, metric));
      const series = runs.map((run) => ({ name: run.name, x: run.x, y: run.metrics[metric] }));
      new Chart(figure, { kind: "line", title: metric, xlabel: "round", unit: metric.endsWith("_bytes") ? "B" : "", series }, 0);
    };
    choice.onchange = drawn;
    drawn();
  }
})();
