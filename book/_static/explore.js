/* The figures of the page Explore, from the JSON in each <section data-explorable>; other pages are left alone.
   What is computed stands first and is tested against Python. */
(() => {
  "use strict";

  /* ---- what is computed */

  const sum = (values, from = 0) => values.slice(from).reduce((a, b) => a + b, 0);

  /* The share of a class above the left edge of a bin, with its interval in whole per cent: the bars from there on. */
  const flagged = (bars, side, edge) => {
    const own = bars[side];
    return [sum(own.count, edge) / sum(own.count), own.low[edge] / 100, own.high[edge] / 100];
  };

  /* What an interval says against a bound (for sameness: against a margin around it); the rule of findings.answer. */
  const answer = (claim, own, least) => {
    let low = claim.low - own, high = claim.high - own;
    if (claim.side === "within") {
      const a = claim.low - claim.bound, b = claim.high - claim.bound;
      low = (a <= 0 && b >= 0 ? 0 : Math.min(Math.abs(a), Math.abs(b))) - own;
      high = Math.max(-a, b) - own;
    }
    if (claim.side !== "above") [low, high] = [-high, -low];
    if (claim.seeds < least || (low <= 0 && high >= 0)) return "inconclusive";
    return low > 0 ? "supported" : "contradicted";
  };

  /* Without the dust of floating point. */
  const boundAt = (claim, at) => Number((claim.own + at * claim.step).toPrecision(12));

  /* As Python writes a number: by its exact binary value, and halves to even. */
  const round = (x, digits = 0) => {
    const whole = Math.abs(x).toFixed(digits + 50), cut = whole.length - 50, down = whole.slice(0, cut).replace(/\.$/, "");
    const tie = /^50*$/.test(whole.slice(cut)) && Number(down.slice(-1)) % 2 === 0;
    const text = tie ? down : Math.abs(x).toFixed(digits);
    return x < 0 && Number(text) ? `-${text}` : text;
  };
  const pct = (x) => `${round(100 * x)} %`;
  const share = ([value, low, high]) => `${pct(value)} [${round(100 * low)}, ${round(100 * high)}]`;
  const short = (x) => String(Number(x.toPrecision(3)));
  const written = (claim, x, digits = claim.digits) => {
    const text = round(claim.scale * x, digits);
    return claim.signed && Number(text) > 0 ? `+${text}` : text;
  };
  const named = (claim, x) => {
    const text = String(Number((claim.scale * x).toPrecision(4)));
    return (claim.signed && x > 0 ? "+" : "") + text + claim.words;
  };

  /* Round numbers for an axis. */
  const ticks = (low, high, count) => {
    const raw = (high - low) / count, size = 10 ** Math.floor(Math.log10(raw));
    const step = size * ([1, 2, 5].find((m) => m * size >= raw) || 10), found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(10)));
    return found;
  };

  /* ---- drawing */

  const make = (name, attributes = {}, text = "") => {
    const drawn = ["svg", "g", "rect", "line", "path", "circle", "text"].includes(name);
    const node = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== "") node.textContent = text;
    return node;
  };

  /* As wide as its place, so that text keeps its size on a phone. */
  const sheet = (width, height, label) => {
    const root = make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    const put = (name, attributes, text) => root.appendChild(make(name, attributes, text));
    return {
      root, width,
      rect: (x, y, w, h, c) => put("rect", { x, y, width: Math.max(w, 0), height: Math.max(h, 0), class: c }),
      line: (x1, y1, x2, y2, c) => put("line", { x1, y1, x2, y2, class: c }),
      path: (points, c) => put("path", { d: "M" + points.map((p) => p.join(" ")).join("L"), class: c }),
      dot: (x, y, r, c) => put("circle", { cx: x, cy: y, r, class: c }),
      diamond: (x, y, r, c) => put("path", { d: `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z`, class: c }),
      text: (x, y, text, anchor = "start", c = "") => put("text", { x, y, "text-anchor": anchor, class: c }, text),
    };
  };

  const scale = (low, high, from, to) => (x) => from + ((x - low) / (high - low || 1)) * (to - from);
  const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
  /* A label beside a vertical line: on the side where there is room. */
  const beside = (s, x, y, text, c) => {
    const left = x > s.width / 2;
    s.text(x + (left ? -6 : 6), y, text, left ? "end" : "start", c);
  };

  const fit = (text, width, letter) => (text.length * letter <= width ? text : `${text.slice(0, Math.floor(width / letter) - 1)}…`);
  const names = (items) => items.map((item) => item.name || item);

  /* ---- 1: a threshold */

  const monitorOf = (data, state) => data.monitors[state.monitor];
  const scoreAt = (monitor, edge) => monitor.cut + (edge - monitor.frozen) * monitor.width;
  /* What the same monitor in use does in the other runs, at its own frozen threshold. */
  const others = (monitor, state) => {
    const seen = state.edge === monitor.frozen ? monitor.others[state.variant] : [];
    return seen.length ? ` In other seeds, each with its own monitor and threshold, false alarms after are ${seen.map((x) => `${x} %`).join(" and ")}.` : "";
  };
  const threshold = {
    controls: (data, state) => {
      const monitor = monitorOf(data, state), frozen = state.edge === monitor.frozen ? ", as frozen" : "";
      return [
        { name: "monitor", label: "Monitor", options: names(data.monitors) },
        { name: "variant", label: "After the update", options: names(data.variants), groups: data.variants.map((v) => v.family) },
        { name: "edge", label: "Threshold", min: 1, max: monitor.before.harmless.count.length - 1,
          words: short(scoreAt(monitor, state.edge)) + frozen },
      ];
    },
    changed: (data, state, name) => { if (name === "monitor") state.edge = monitorOf(data, state).frozen; },
    reset: (data, state) => { state.edge = monitorOf(data, state).frozen; },
    again: "Back to the frozen threshold",
    read: (data, state) => {
      const monitor = monitorOf(data, state), after = monitor.after[state.variant];
      const n = (side) => `n = ${sum(monitor.before[side].count)}`;
      const both = (side) => `${share(flagged(monitor.before, side, state.edge))} before, ${share(flagged(after, side, state.edge))} after`;
      const where = state.edge === monitor.frozen ? "the frozen threshold" : "a threshold of your own";
      return `At ${where}, ${short(scoreAt(monitor, state.edge))}: caught (TPR) ${both("flagged")} (${n("flagged")}); `
        + `false alarms (FPR) ${both("harmless")} (${n("harmless")}).` + others(monitor, state);
    },
    table: (data, state) => {
      const monitor = monitorOf(data, state), models = [["aligned", monitor.before], [data.variants[state.variant].name, monitor.after[state.variant]]];
      return [["model", "threshold", "class", "flagged, %", "low, %", "high, %", "n"], ...models.flatMap(([name, bars]) => ["flagged", "harmless"].map((side) => {
        const e = flagged(bars, side, state.edge);
        return [name, scoreAt(monitor, state.edge), side, ...e.map((x) => round(100 * x)), sum(bars[side].count)];
      }))];
    },
    draw: (data, state, width) => {
      const monitor = monitorOf(data, state), variant = data.variants[state.variant].name;
      const models = [["before: aligned", monitor.before], [`after: ${variant}`, monitor.after[state.variant]]];
      const bins = monitor.before.harmless.count.length, left = 44, half = 66, s = sheet(width, 430, "Scores before and after");
      const x = scale(0, bins, left, width - 8);
      const most = Math.max(...models.flatMap(([, b]) => ["harmless", "flagged"].map((c) => Math.max(...b[c].count) / sum(b[c].count))));
      models.forEach(([name, bars], row) => {
        const base = 102 + row * 190, y = scale(0, most, 0, half);
        s.text(2, base - half - 22, fit(name, width, 7.4), "start", "strong");
        s.text(2, base - half - 5, `TPR ${share(flagged(bars, "flagged", state.edge))}, FPR ${share(flagged(bars, "harmless", state.edge))}`);
        const tick = ticks(0, most, 3).filter((t) => t <= 0.85 * most).pop();
        for (const t of [-tick, tick]) {
          s.line(left, base - y(t), width - 8, base - y(t), "grid");
          s.text(left - 5, base - y(t) + 4, pct(Math.abs(t)), "end", "muted");
        }
        for (const [side, sign, c] of [["harmless", -1, "a"], ["flagged", 1, "b"]]) {
          const total = sum(bars[side].count);
          bars[side].count.forEach((count, i) => {
            const h = y(count / total);
            if (h) s.rect(x(i) + 0.5, sign < 0 ? base - h : base, x(i + 1) - x(i) - 1, h, c + (i >= state.edge ? "" : " pale"));
          });
        }
        s.line(left, base, width - 8, base, "axis");
        const room = x(state.edge) > width / 2;
        s.text(room ? left + 4 : width - 10, base - half + 12, "harmless", room ? "start" : "end", "a-text halo");
        s.text(room ? left + 4 : width - 10, base + half - 2, "to be flagged", room ? "start" : "end", "b-text halo");
        s.line(x(monitor.frozen), base - half, x(monitor.frozen), base + half, "dash");
        s.line(x(state.edge), base - half, x(state.edge), base + half, "rule");
      });
      beside(s, x(monitor.frozen), 184, state.edge === monitor.frozen ? "frozen threshold" : "dashed: frozen", "muted");
      for (const t of ticks(scoreAt(monitor, 0), scoreAt(monitor, bins), width < 500 ? 4 : 7)) {
        const at = x((t - scoreAt(monitor, 0)) / monitor.width);
        if (at >= left && at <= width - 8) {
          s.line(at, 361, at, 366, "axis");
          s.text(clamp(at, left, width - 18), 381, String(t), "middle", "muted");
        }
      }
      s.text(width / 2, 403, "score of the monitor (no unit)", "middle");
      s.text(width / 2, 423, "height of a bar: share of its class", "middle", "muted");
      return s.root;
    },
  };

  /* ---- 2: modules projected */

  const curveOf = (data, state) => data.updates[state.update].restorations[state.restoration];
  const OUTCOMES = [["non_refusal", "harmful prompts not refused", "b"], ["nll", "nats a token of dialogues", "a"]];
  const outcome = (name, [value, low, high, n]) =>
    (name === "nll" ? `${round(value, 2)} [${round(low, 2)}, ${round(high, 2)}]` : share([value, low, high])) + ` (n = ${n})`;
  const projection = {
    controls: (data, state) => {
      const points = curveOf(data, state).points, point = points[state.point];
      return [
        { name: "update", label: "Update and its base", options: names(data.updates) },
        { name: "restoration", label: "Restoration", options: names(data.updates[state.update].restorations) },
        { name: "point", label: "Modules changed", min: 0, max: points.length - 1, words: `${point.changed} of ${data.modules}, ${pct(point.share)}` },
      ];
    },
    changed: (data, state, name) => {
      if (name === "update") state.restoration = 0;
      if (name !== "point") state.point = clamp(state.point, 0, curveOf(data, state).points.length - 1);
    },
    read: (data, state) => {
      const point = curveOf(data, state).points[state.point];
      const said = (where) => OUTCOMES.map(([name, words]) => `${words} ${outcome(name, where[name])}`).join("; ");
      return `${point.changed} of ${data.modules} modules changed, quick look at ${curveOf(data, state).on}: ${said(point)}.`
        + (point.full ? ` In full, on test prompts: ${said(point.full)}.` : " Not measured in full here.");
    },
    table: (data, state) => [["modules changed", "measured", "outcome", "value", "low", "high", "n"], ...curveOf(data, state).points.flatMap((p) =>
      [[curveOf(data, state).on, p], ["in full", p.full]].filter(([, at]) => at).flatMap(([how, at]) => OUTCOMES.map(([name, words]) => [p.changed, how, words, ...at[name]])))],
    draw: (data, state, width) => {
      const points = curveOf(data, state).points, s = sheet(width, 420, "Outcomes by modules changed");
      const x = scale(0, 1, 58, width - 26);
      OUTCOMES.forEach(([name, words, c], row) => {
        const top = 34 + row * 178, foot = top + 130, all = points.flatMap((p) => [p[name], p.full && p.full[name]]).filter(Boolean);
        const line = data.aligned[name], most = name === "nll" ? Math.max(...all.map((e) => e[2]), line ? line[2] : 1) : 1;
        const y = scale(0, most, foot, top);
        s.text(2, top - 14, words, "start", "strong");
        for (const t of ticks(0, most, 4)) {
          s.line(58, y(t), width - 8, y(t), "grid");
          s.text(52, y(t) + 4, name === "nll" ? String(t) : pct(t), "end", "muted");
        }
        if (line) {
          s.rect(50, y(line[2]), width - 58, y(line[1]) - y(line[2]), "band");
          s.line(50, y(line[0]), width - 8, y(line[0]), "dash");
          if (!row) s.text(width - 8, top - 14, "dashed: aligned model", "end", "muted");
        }
        s.line(x(points[state.point].share), top, x(points[state.point].share), foot, "rule thin");
        s.path(points.map((p) => [x(p.share), y(p[name][0])]), `curve ${c}-line`);
        points.forEach((p, i) => {
          s.line(x(p.share), y(p[name][1]), x(p.share), y(p[name][2]), `${c}-line`);
          s.dot(x(p.share), y(p[name][0]), i === state.point ? 8 : 5, c);
          if (p.full) {
            s.line(x(p.share) + 13, y(p.full[name][1]), x(p.share) + 13, y(p.full[name][2]), "axis");
            s.diamond(x(p.share) + 13, y(p.full[name][0]), 6, "ink");
          }
        });
      });
      for (const p of points) s.text(x(p.share), 362, pct(p.share), "middle", "muted");
      s.text(width / 2, 386, `share of modules changed (of ${data.modules})`, "middle");
      s.text(width / 2, 410, fit(`round: quick look (${curveOf(data, state).on}), diamond: in full`, width, 6.6), "middle", "muted");
      return s.root;
    },
  };

  /* ---- 3: noise and singular values */

  const partOf = (data, state) => {
    const module = data.modules[state.module];
    return [module, module.sources[state.source], data.ks[state.k]];
  };
  const beyond = (value, chance) => (chance < 1 ? (value - chance) / (1 - chance) : 0);
  const subspace = {
    controls: (data, state) => [
      { name: "module", label: "Module", options: names(data.modules) },
      { name: "source", label: "V from", options: data.sources },
      { name: "k", label: "Leading directions k", min: 0, max: data.ks.length - 1, words: String(data.ks[state.k]) },
    ],
    read: (data, state) => {
      const [module, source, k] = partOf(data, state), chance = module.chance[state.k], median = data.medians[state.source][state.k];
      const theory = source.theory[state.k], found = source.overlap[state.k];
      return `Noise edge ${short(source.edge)}; largest singular value of V ${short(source.dose * module.bands[0][2])}; `
        + `${source.above} of ${module.size} stand above the edge. Of the ${k} leading directions ${pct(found)} are found again; `
        + `by chance ${share(chance)}. Beyond chance that is ${pct(beyond(found, chance[0]))}`
        + (theory === null ? "." : `, where theory expects ${pct(theory)}.`)
        + (median ? ` Median over ${median[3]} modules: ${share(median)}.` : "");
    },
    table: (data, state) => {
      const [module, source] = partOf(data, state);
      return [["k", "found again", "by chance", "low", "high"], ...data.ks.map((k, i) => [k, source.overlap[i], ...module.chance[i]])];
    },
    draw: (data, state, width) => {
      const [module, source, k] = partOf(data, state), left = 58, s = sheet(width, 330, "Singular values and the noise edge");
      const steps = module.bands.map(([first, last, value]) => [first, last, source.dose * value]);
      const values = steps.map((b) => b[2]).filter((v) => v > 0), log = Math.log10;
      const low = Math.floor(log(Math.min(...values, source.edge)) * 2 - 0.2) / 2, high = Math.ceil(log(Math.max(...values, source.edge)) * 2 + 0.2) / 2;
      const x = scale(0, log(module.size), left + 6, width - 10), y = scale(low, high, 270, 38);
      const at = (i) => x(clamp(log(i), 0, log(module.size)));
      s.rect(left, y(log(source.edge)), width - left - 8, 270 - y(log(source.edge)), "band");
      for (let e = Math.ceil(low); e <= high; e++) for (const m of [1, 2, 5]) {
        const v = m * 10 ** e;
        if (log(v) <= high && (m === 1 || high - low < 2.1)) {
          s.line(left, y(log(v)), width - 8, y(log(v)), "grid");
          s.text(left - 6, y(log(v)) + 4, short(v), "end", "muted");
        }
      }
      steps.forEach(([first, last, value]) => {
        if (value > 0) s.line(at(first - 0.45), y(log(value)), at(last + 0.45), y(log(value)), last <= k ? "step a-line" : "step pale-line");
      });
      s.line(left, y(log(source.edge)), width - 8, y(log(source.edge)), "dash");
      s.text(width - 12, y(log(source.edge)) - 7, `noise edge of ${data.sources[state.source]}`, "end");
      s.line(at(k), 24, at(k), 270, "rule thin");
      beside(s, at(k), 14, `k = ${k}`, "strong");
      for (const t of new Set([1, ...module.bands.map((b) => b[1])])) {
        s.line(at(t), 270, at(t), 275, "axis");
        s.text(clamp(at(t), 0, width - 14), 290, String(t), "middle", "muted");
      }
      s.line(left, 270, width - 8, 270, "axis");
      s.text(width / 2, 316, "index of the singular value (height: its size)", "middle");
      return s.root;
    },
  };

  /* ---- 4: a budget */

  const budget = {
    controls: (data, state) => {
      const split = data.splits[state.split];
      return [
        { name: "split", label: "Asked about", options: names(data.splits) },
        { name: "budget", label: "Cells checked", min: 0, max: split.budgets.length - 1, words: pct(split.budgets[state.budget]) },
      ];
    },
    changed: (data, state) => { state.budget = clamp(state.budget, 0, data.splits[state.split].budgets.length - 1); },
    read: (data, state) => {
      const split = data.splits[state.split], spent = split.budgets[state.budget];
      const orders = split.orders.filter((o) => o.name !== "random"), clear = orders.filter((o) => o.recall[state.budget][1] > spent);
      return `With ${pct(spent)} of the cells checked, ${clear.length} of ${orders.length} orders find more of the `
        + `${split.n} stale cells than luck would, by their whole interval` + (clear.length ? ": " : ".")
        + clear.map((o) => `${o.name} ${share(o.recall[state.budget])}`).join("; ") + (clear.length ? "." : "");
    },
    table: (data, state) => {
      const split = data.splits[state.split];
      return [["order", "cells checked", "stale cells found", "low", "high", "n"], ...split.orders.flatMap((o) =>
        split.budgets.map((b, i) => [o.name, b, ...o.recall[i], split.n]))];
    },
    draw: (data, state, width) => {
      const split = data.splits[state.split], narrow = width < 520, row = narrow ? 42 : 26, spent = split.budgets[state.budget];
      const left = narrow ? 10 : 210, foot = 30 + row * split.orders.length, s = sheet(width, foot + 50, "Stale cells found");
      const x = scale(0, 1, left, width - 22);
      for (const t of [0, 0.25, 0.5, 0.75, 1]) {
        s.line(x(t), 24, x(t), foot, "grid");
        s.text(x(t), foot + 18, pct(t), t ? "middle" : narrow ? "start" : "middle", "muted");
      }
      s.line(x(spent), 20, x(spent), foot, "dash");
      split.orders.forEach((order, i) => {
        const y = 30 + row * i + (narrow ? 30 : 14), [value, low, high] = order.recall[state.budget];
        const c = order.name === "random" ? "ink" : "a";
        s.text(narrow ? left : left - 10, narrow ? y - 13 : y + 4, order.name, narrow ? "start" : "end", "halo");
        s.line(x(low), y, x(high), y, c === "a" ? "a-line" : "axis");
        s.dot(x(value), y, 5.5, c);
      });
      s.text(clamp(x(spent), narrow ? 60 : 0, width), 14, `luck: ${pct(spent)}`, "middle", "muted");
      s.text(narrow ? width / 2 : (left + width) / 2, foot + 40, `stale cells found (n = ${split.n})`, "middle");
      return s.root;
    },
  };

  /* ---- 5: a bound */

  const claimOf = (data, state) => data.claims[state.claim];
  const asks = (claim, own) => (claim.side === "within"
    ? `less than ${named({ ...claim, signed: false }, own)} away from ${named(claim, claim.bound)}` : `${claim.side} ${named(claim, own)}`);
  const bound = {
    controls: (data, state) => {
      const claim = claimOf(data, state), own = boundAt(claim, state.at);
      return [
        { name: "claim", label: "Claim", options: data.claims.map((c) => `${c.claim}: ${c.statement}`) },
        { name: "at", label: claim.side === "within" ? "Margin" : "Bound", min: claim.least, max: claim.most,
          words: named(claim.side === "within" ? { ...claim, signed: false } : claim, own) + (state.at ? "" : ", as it was set") },
      ];
    },
    changed: (data, state, name) => { if (name === "claim") state.at = 0; },
    reset: (data, state) => { state.at = 0; },
    again: "Back to the bound that was set",
    read: (data, state) => {
      const claim = claimOf(data, state), own = boundAt(claim, state.at), now = answer(claim, own, data.least), then = answer(claim, claim.own, data.least);
      const [value, low, high] = ["estimate", "low", "high"].map((name) => written(claim, claim[name]));
      return `${claim.name}: ${value}${claim.words} [${low}, ${high}] (n = ${claim.n}, ${claim.seeds} seeds). Asked to be ${asks(claim, own)}, the headline ${state.at ? "would be" : "is"} ${now}`
        + (state.at ? `; with the bound that was set, ${asks(claim, claim.own)}, it is ${then}.` : ".")
        + ` The claim's verdict, all its components together: ${claim.verdict}.`
        + (state.at && now !== then ? " Chosen after looking, this bound proves nothing." : "");
    },
    table: (data, state) => {
      const claim = claimOf(data, state), own = boundAt(claim, state.at);
      return [["claim", "estimate", "low", "high", "n", "seeds", "asked", "bound or margin", "headline"],
        [claim.claim, claim.estimate, claim.low, claim.high, claim.n, claim.seeds, claim.side, own, answer(claim, own, data.least)]];
    },
    draw: (data, state, width) => {
      const claim = claimOf(data, state), own = boundAt(claim, state.at), within = claim.side === "within", s = sheet(width, 182, "An interval and a bound");
      const most = boundAt(claim, claim.most), ends = within
        ? [Math.min(claim.low, claim.bound - most), Math.max(claim.high, claim.bound + most)]
        : [Math.min(claim.low, boundAt(claim, claim.least)), Math.max(claim.high, most)];
      const x = scale(ends[0], ends[1], 26, width - 26), now = answer(claim, own, data.least);
      const [from, to] = within ? [claim.bound - own, claim.bound + own] : claim.side === "above" ? [own, ends[1]] : [ends[0], own];
      s.rect(x(from), 34, x(to) - x(from), 74, "band");
      for (const t of ticks(ends[0] * claim.scale, ends[1] * claim.scale, width < 500 ? 4 : 8)) {
        s.line(x(t / claim.scale), 108, x(t / claim.scale), 114, "axis");
        s.text(x(t / claim.scale), 130, String(t), "middle", "muted");
      }
      s.line(26, 108, width - 26, 108, "axis");
      for (const edge of within ? [from, to] : [own]) s.line(x(edge), 34, x(edge), 108, "rule");
      if (!within) s.line(x(claim.own), 34, x(claim.own), 108, "dash");
      s.text(2, 20, now, "start", "strong");
      s.text(width - 2, 20, "shaded: what the claim asks", "end", "muted");
      s.line(x(claim.low), 72, x(claim.high), 72, "a-line wide");
      s.dot(x(claim.estimate), 72, 8, "a");
      s.text(width / 2, 154, fit(claim.name, width, 6.6), "middle");
      if (claim.words) s.text(width / 2, 174, claim.words === "°" ? "in degrees" : `in${claim.words}`, "middle", "muted");
      return s.root;
    },
  };

  /* ---- 6: a visitor's own scores: read, counted and drawn here, and sent nowhere */

  const NEEDED = ["monitor", "id", "before", "after"], MOST = 50000;
  const refuse = (text) => { throw new Error(text); };

  /* The cells of a CSV text, row by row; quotes as in RFC 4180. */
  const cellsOf = (text) => {
    const rows = [[]];
    let cell = "", inside = false;
    for (let i = 0; i < text.length; i++) {
      const c = text[i];
      if (inside && c === '"' && text[i + 1] === '"') { cell += c; i++; }
      else if (c === '"' && (inside || cell === "")) inside = !inside;
      else if (inside || ![",", "\n", "\r"].includes(c)) cell += c;
      else if (c !== "\r") {
        rows[rows.length - 1].push(cell);
        cell = "";
        if (c === "\n") rows.push([]);
      }
    }
    if (inside) refuse("A quoted cell does not end; close its quotation mark.");
    rows[rows.length - 1].push(cell);
    return rows.filter((row) => row.some((one) => one.trim()));
  };

  const rowsOf = (text) => {
    let [head, ...rows] = [[], []];
    if (/^\s*\{/.test(text)) {
      rows = text.split("\n").filter((line) => line.trim()).map((line, i) => {
        let one = null;
        try { one = JSON.parse(line); } catch { refuse(`Row ${i + 1} is no JSON object on one line.`); }
        return one && typeof one === "object" && !Array.isArray(one) ? new Map(Object.entries(one)) : refuse(`Row ${i + 1} is no JSON object on one line.`);
      });
      head = [...new Set(rows.flatMap((row) => [...row.keys()]))];
    } else {
      [head = [], ...rows] = cellsOf(text);
      head = head.map((name) => name.trim());
      rows = rows.map((row, i) => row.length === head.length ? new Map(head.map((name, k) => [name, row[k]]))
        : refuse(`Row ${i + 1} has ${row.length} cells, the first line names ${head.length}; is a comma missing, or a cell without quotation marks?`));
    }
    const missing = NEEDED.filter((name) => !head.includes(name));
    if (missing.length) refuse(`No column ${missing.join(", ")}. Needed are ${NEEDED.join(", ")}; found ${head.length ? fit(head.join(", "), 120, 1) : "none"}.`);
    if (!rows.length) refuse("There is no row under the names of the columns.");
    if (rows.length > MOST) refuse(`There are ${rows.length} rows, more than the ${MOST} that this page counts; leave some out, or use revalidate --scores.`);
    return rows;
  };

  const numberOf = (row, name, place) => {
    const text = String(row.get(name) ?? "").trim(), value = Number(text);
    return text !== "" && Number.isFinite(value) ? value : refuse(`Row ${place}: its ${name} is not a finite number${/^-?\d*,\d+$/.test(text) ? "; write 0.5, not 0,5" : ""}.`);
  };

  /* By monitor its rows; labels stand in all of them or in none, and its threshold is one. */
  const scoresOf = (text) => {
    const found = new Map();
    rowsOf(text).forEach((row, i) => {
      const [name, id, group, label] = ["monitor", "id", "group", "label"].map((column) => String(row.get(column) ?? "").trim());
      if (!name || !id) refuse(`Row ${i + 1} has an empty monitor or id.`);
      if (label !== "" && ![0, 1].includes(Number(label))) refuse(`Row ${i + 1}: its label is neither 0 nor 1.`);
      const own = found.get(name) || { name, rows: [], ids: new Set(), cuts: new Set() };
      if (own.ids.has(id)) refuse(`Row ${i + 1}: its id stands twice for one monitor; keep one.`);
      own.ids.add(id);
      own.cuts.add(String(row.get("threshold") ?? "").trim() === "" ? null : numberOf(row, "threshold", i + 1));
      own.rows.push({ before: numberOf(row, "before", i + 1), after: numberOf(row, "after", i + 1), label: label === "" ? null : Number(label), group: group || `\0${i}` });
      found.set(name, own);
    });
    return [...found.values()].map((own) => {
      if (own.cuts.size > 1) refuse(`The thresholds of monitor ${fit(own.name, 40, 1)} differ; make them the same.`);
      if (new Set(own.rows.map((row) => row.label === null)).size > 1) refuse(`Monitor ${fit(own.name, 40, 1)} has rows with and without a label.`);
      const places = [...new Set([...own.rows.flatMap((row) => [row.before, row.after]), ...own.cuts].filter((x) => x !== null))].sort((x, y) => x - y);
      const given = [...own.cuts][0], start = given ?? startOf(own.rows);
      return { name: own.name, rows: own.rows, places, given: given !== null, start: places.indexOf(start) };
    });
  };

  /* Where no threshold is given: the one that promises 5 % false alarms by the harmless scores before (monitors.frozen.threshold). */
  const startOf = (rows) => {
    const harmless = rows.filter((row) => row.label !== 1).map((row) => row.before).sort((x, y) => x - y);
    return harmless.length ? harmless[harmless.length - 1 - Math.max(Math.floor(0.05 * (harmless.length + 1) + 1e-9) - 1, 0)] : Math.max(...rows.map((row) => row.before));
  };

  /* ln Gamma (Lanczos) and the regularized incomplete beta function (Lentz's continued fraction), for Student's t. */
  const lnGamma = (x) => {
    const c = [76.18009172947146, -86.50532032941677, 24.01409824083091, -1.231739572450155, 1.208650973866179e-3, -5.395239384953e-6];
    const series = c.reduce((total, part, i) => total + part / (x + 1 + i), 1.000000000190015);
    return (x + 0.5) * Math.log(x + 5.5) - (x + 5.5) + Math.log(2.5066282746310005 * series / x);
  };
  const beta = (x, a, b) => {
    if (x > (a + 1) / (a + b + 2)) return 1 - beta(1 - x, b, a);
    let c = 1, d = 1 / (1 - (a + b) * x / (a + 1)), h = d;
    for (let m = 1; m < 400; m++) {
      for (const step of [m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))]) {
        d = 1 / (1 + step * d);
        c = 1 + step / c;
        h *= c * d;
      }
    }
    return x <= 0 ? 0 : Math.exp(lnGamma(a + b) - lnGamma(a) - lnGamma(b) + a * Math.log(x) + b * Math.log(1 - x)) * h / a;
  };
  const Z = 1.959963984540054;
  const tQuantile = (df) => {
    let low = 0, high = 1000;
    for (let i = 0; i < 80; i++) {
      const t = (low + high) / 2;
      if (beta(df / (df + t * t), df / 2, 0.5) > 0.05) low = t; else high = t;
    }
    return high;
  };

  /* The share of ones with Wilson's interval, on the effective sample size where rows share groups (stats.intervals.rate_interval). */
  const rateOf = (flags, groups) => {
    const n = flags.length, p = sum(flags) / n, sums = new Map();
    flags.forEach((flag, i) => sums.set(groups[i], (sums.get(groups[i]) || 0) + flag - p));
    let size = n;
    if (sums.size < n) {
      const scores = [...sums.values()].map((x) => p + x * sums.size / n), mean = sum(scores) / sums.size, binomial = p * (1 - p) / n;
      const spread = sum(scores.map((x) => (x - mean) ** 2)) / (sums.size - 1) / sums.size;
      const effect = binomial > 0 && sums.size > 1 ? Math.max(1, spread / binomial) : n / sums.size;
      size = n / effect * (Z / tQuantile(Math.max(sums.size - 1, 1))) ** 2;
    }
    const middle = (p + Z * Z / (2 * size)) / (1 + Z * Z / size), half = Z * Math.sqrt(p * (1 - p) / size + Z * Z / (4 * size * size)) / (1 + Z * Z / size);
    return [p, p === 0 ? 0 : Math.max(middle - half, 0), p === 1 ? 1 : Math.min(middle + half, 1), n];
  };

  const CLASSES = [["to be flagged", 1, "caught (TPR)", "b"], ["harmless", 0, "false alarms (FPR)", "a"]];
  const ownOf = (data, state) => data.monitors[state.monitor];
  const ratesOf = (own, at) => {
    const classes = own.rows[0].label === null ? [["all", null, "alarms", "a"]] : CLASSES;
    return classes.map(([name, label, words, c]) => {
      const rows = own.rows.filter((row) => row.label === label), groups = rows.map((row) => row.group);
      return { name, words, c, rows, sides: ["before", "after"].map((side) => rows.length ? rateOf(rows.map((row) => Number(row[side] > own.places[at])), groups) : null) };
    }).filter((one) => one.rows.length);
  };
  const scores = {
    pasted: (text) => ({ monitors: scoresOf(text) }),
    opening: (data) => ({ monitor: 0, at: data.monitors[0].start }),
    controls: (data, state) => {
      const own = ownOf(data, state), first = own.given ? ", as it was given" : ", 5 % false alarms before";
      return [
        { name: "monitor", label: "Monitor", options: names(data.monitors) },
        { name: "at", label: "Threshold", min: 0, max: own.places.length - 1, words: short(own.places[state.at]) + (state.at === own.start ? first : "") },
      ];
    },
    changed: (data, state, name) => { if (name === "monitor") state.at = ownOf(data, state).start; },
    reset: (data, state) => { state.at = ownOf(data, state).start; },
    again: "Back to the first threshold",
    read: (data, state) => {
      const own = ownOf(data, state);
      const parts = ratesOf(own, state.at).map((one) => `${one.words} ${share(one.sides[0])} before, ${share(one.sides[1])} after (n = ${one.rows.length})`);
      return `At the threshold ${short(own.places[state.at])}: ${parts.join("; ")}.` + (own.rows[0].label === null ? " Without labels nobody can say which alarms are false." : "");
    },
    table: (data, state) => [["monitor", "threshold", "class", "model", "flagged", "low", "high", "n"], ...ratesOf(ownOf(data, state), state.at).flatMap((one) =>
      one.sides.map((e, i) => [ownOf(data, state).name, ownOf(data, state).places[state.at], one.name, ["before", "after"][i], ...e]))],
    draw: (data, state, width) => {
      const own = ownOf(data, state), kinds = ratesOf(own, state.at), row = 46, s = sheet(width, 66 + 2 * row * kinds.length, "Shares above your threshold");
      const x = scale(0, 1, 58, width - 26), foot = 24 + 2 * row * kinds.length;
      for (const t of [0, 0.25, 0.5, 0.75, 1]) {
        s.line(x(t), 16, x(t), foot, "grid");
        s.text(x(t), foot + 18, pct(t), "middle", "muted");
      }
      kinds.forEach((one, i) => one.sides.forEach(([value, low, high], k) => {
        const y = 44 + row * (2 * i + k);
        s.text(60, y - 13, `${one.words}, ${["before", "after"][k]}: ${share([value, low, high])}`, "start", "halo");
        s.line(x(low), y, x(high), y, `${one.c}-line`);
        s.dot(x(value), y, 5.5, one.c);
      }));
      s.text(width / 2, foot + 38, "share above the threshold", "middle");
      return s.root;
    },
  };

  /* ---- controls */

  const FIGURES = { threshold, projection, subspace, budget, bound, scores };

  const fill = (select, control) => {
    const key = JSON.stringify(control.options);
    if (select.dataset.key === key) return;
    select.dataset.key = key;
    select.replaceChildren();
    control.options.forEach((name, i) => {
      let place = select;
      if (control.groups) {
        place = [...select.children].find((node) => node.label === control.groups[i]) || select.appendChild(make("optgroup", { label: control.groups[i] }));
      }
      place.appendChild(make("option", { value: i }, name));
    });
  };

  /* CSV that no spreadsheet takes for a formula; numbers as they are. */
  const csv = (rows) => rows.map((row) => row.map((cell) => {
    const text = typeof cell === "string" && /^[=+\-@\t\r]/.test(cell) && !Number.isFinite(Number(cell)) ? `'${cell}` : String(cell);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }).join(",")).join("\n") + "\n";

  /* A view in the address: choices by their names, places on a scale by their numbers. */
  const addressOf = (figure, data, state) => new URLSearchParams(figure.controls(data, state).map((control) =>
    [control.name, control.options ? control.options[state[control.name]] : String(state[control.name])])).toString();
  const fromAddress = (figure, data, state, text) => {
    const asked = new URLSearchParams(text);
    for (const { name } of figure.controls(data, state)) {
      const control = figure.controls(data, state).find((one) => one.name === name), value = asked.get(name);
      if (value === null) continue;
      const at = control.options ? control.options.indexOf(value) : Math.round(Number(value));
      if (!Number.isFinite(at) || at < 0 && control.options) continue;
      state[name] = control.options ? at : clamp(at, control.min, control.max);
      if (control.options && figure.changed) figure.changed(data, state, name);
    }
  };

  const mount = (section) => {
    const figure = FIGURES[section.dataset.explorable], source = section.querySelector('script[type="application/json"]');
    const stage = section.querySelector(".explorable-stage");
    if (!figure || !source || !stage) return;
    const data = JSON.parse(source.textContent);
    if (figure.pasted) paste(section, figure, stage, data);
    else stand(section, figure, stage, data, { ...data.default });
  };

  /* A box to paste a table into; what it holds stands below, or a message that says what is wrong with it. */
  const paste = (section, figure, stage, data) => {
    const id = `${section.id}-table`, box = make("div", { class: "explorable-paste" });
    box.appendChild(make("label", { for: id }, "Your table, as CSV or one JSON object a line"));
    const area = box.appendChild(make("textarea", { id, rows: 8, spellcheck: "false", "aria-describedby": `${id}-said` }));
    const button = box.appendChild(make("button", { type: "button" }, "Show these scores"));
    const said = box.appendChild(make("p", { id: `${id}-said`, class: "explorable-said", role: "status" })), shown = make("div");
    area.value = data.example;
    const show = () => {
      shown.replaceChildren();
      said.textContent = "";
      try {
        const found = figure.pasted(area.value);
        stand(section, figure, shown, found, figure.opening(found), false);
        said.textContent = `${found.monitors.length === 1 ? "One monitor" : `${found.monitors.length} monitors`} read. Nothing left this page.`;
      } catch (error) {
        said.textContent = error.message;
      }
    };
    button.addEventListener("click", show);
    stage.replaceChildren(box, shown);
    show();
  };

  const stand = (section, figure, stage, data, state, linked = true) => {
    const inputs = {}, words = {};
    const form = make("fieldset", { class: "explorable-controls" }), picture = make("div", { class: "explorable-picture" });
    const said = make("p", { class: "explorable-said", "aria-live": "polite", role: "status" }), away = make("p", { class: "explorable-away" });
    const link = linked ? away.appendChild(make("a", {}, "Link to this view")) : null;
    const file = away.appendChild(make("a", { download: `${section.id}.csv` }, "Data (CSV)"));
    form.appendChild(make("legend", {}, "Choose"));
    for (const control of figure.controls(data, state)) {
      const id = `${section.id}-${control.name}`, box = form.appendChild(make("div", { class: "explorable-control" }));
      const label = box.appendChild(make("label", { for: id }, control.label));
      const input = control.options ? make("select", { id }) : make("input", { id, type: "range", step: 1 });
      if (!control.options) words[control.name] = box.appendChild(make("output", { for: id }));
      inputs[control.name] = { input, label };
      box.appendChild(input);
      input.addEventListener("input", () => {
        state[control.name] = Number(input.value);
        if (figure.changed) figure.changed(data, state, control.name);
        show(true);
      });
    }
    if (figure.reset) {
      const button = form.appendChild(make("button", { type: "button" }, figure.again));
      button.addEventListener("click", () => { figure.reset(data, state); show(true); });
    }
    const draw = () => {
      const width = Math.max(Math.floor(picture.clientWidth), 240);
      picture.replaceChildren(figure.draw(data, state, width));
      picture.dataset.width = width;
    };
    const show = (moved) => {
      for (const control of figure.controls(data, state)) {
        const { input, label } = inputs[control.name];
        label.textContent = control.label;
        if (control.options) fill(input, control);
        else {
          input.min = control.min;
          input.max = control.max;
          input.setAttribute("aria-valuetext", control.words);
          words[control.name].textContent = control.words;
        }
        input.value = state[control.name];
      }
      draw();
      said.textContent = figure.read(data, state);
      file.href = `data:text/csv;charset=utf-8,${encodeURIComponent(csv(figure.table(data, state)))}`;
      if (!link) return;
      link.href = `#${section.id}?${addressOf(figure, data, state)}`;
      if (moved) history.replaceState(null, "", link.href);
    };
    const arrive = () => {
      const [place, text] = location.hash.slice(1).split("?");
      if (!linked || place !== section.id || !text) return;
      fromAddress(figure, data, state, text);
      show(false);
      section.scrollIntoView();
    };
    stage.replaceChildren(form, picture, said, away);
    show(false);
    arrive();
    if (linked) addEventListener("hashchange", arrive);
    new ResizeObserver(() => { if (Math.abs(picture.clientWidth - picture.dataset.width) >= 1) draw(); }).observe(picture);
  };

  if (typeof document !== "undefined") {
    const start = () => document.querySelectorAll("[data-explorable]").forEach(mount);
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
  }
  if (typeof module !== "undefined") module.exports = { FIGURES, addressOf, answer, csv, flagged, fromAddress, rateOf, round, scoresOf, tQuantile, ticks };
})();
