"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const tip = document.getElementById("tip");
  const facts = new WeakMap(); // token or patch -> the lines of its tooltip

  // Every text is put in as text, never as markup.
  function make(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function nats(value, step) {
    const digits = Math.min(8, Math.max(2, Math.ceil(-Math.log10(step || 1))));
    return (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(digits);
  }

  // ------------------------------------------------------------------ light and dark
  const themes = ["auto", "light", "dark"];
  const names = { auto: "as the system", light: "light", dark: "dark" };
  const themeButton = document.querySelector(".theme");
  function setTheme(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    themeButton.querySelector("span").textContent = theme;
    themeButton.setAttribute("aria-label", `Colours: ${names[theme]}`);
  }
  let theme = "auto";
  try {
    theme = localStorage.getItem("grains-ref-theme") || "auto";
  } catch {} // a page in a frame may not remember
  if (!themes.includes(theme)) theme = "auto";
  setTheme(theme);
  themeButton.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    setTheme(theme);
    try {
      localStorage.setItem("grains-ref-theme", theme);
    } catch {}
  });

  // ------------------------------------------------------------------ copying the command
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const words = button.parentElement.querySelector("pre");
      try {
        await navigator.clipboard.writeText(words.textContent);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(words); // the reader copies it
        button.textContent = "selected";
      }
    });
  }

  // ------------------------------------------------------------------ tooltips
  function showTip(target) {
    const lines = facts.get(target);
    if (!lines) return hideTip();
    tip.replaceChildren(make("b", "", lines[0]), ...lines.slice(1).map((line) => make("span", "", line)));
    tip.hidden = false;
    target.setAttribute("aria-describedby", "tip");
    const at = target.getClientRects()[0] || target.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left), innerWidth - tip.offsetWidth - 8);
    const below = at.bottom + 8;
    const fits = below + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${fits ? below : Math.max(8, at.top - tip.offsetHeight - 8)}px`;
  }
  function hideTip() {
    tip.hidden = true;
    document.querySelector("[aria-describedby=tip]")?.removeAttribute("aria-describedby");
  }
  document.addEventListener("pointerover", (event) => {
    hideTip();
    const target = event.target.closest?.(".chip, .patch");
    if (target) showTip(target);
  });
  document.addEventListener("focusin", (event) => {
    hideTip();
    if (facts.has(event.target)) showTip(event.target);
  });
  document.addEventListener("focusout", hideTip);
  addEventListener("scroll", hideTip, { passive: true });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hideTip();
    const items = event.target.closest?.(".roving");
    if (!items) return;
    const all = [...items.querySelectorAll("[tabindex]")];
    const at = all.indexOf(event.target);
    const columns = Number(items.dataset.columns || 0);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns || 1, ArrowUp: -(columns || 1) }[event.key];
    let to = step === undefined ? undefined : at + step;
    if (event.key === "Home") to = 0;
    if (event.key === "End") to = all.length - 1;
    if (to === undefined || at < 0) return;
    event.preventDefault();
    const next = all[Math.min(Math.max(to, 0), all.length - 1)];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  // ------------------------------------------------------------------ examples
  async function unpack(packed, steps) {
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const all = new Uint8Array(await new Response(stream).arrayBuffer());
    const n = new DataView(all.buffer).getUint32(0, true);
    const [low, middle, high, scoreLow, scoreHigh, kinds] = [0, 1, 2, 3, 4, 5].map((i) => all.subarray(4 + i * n, 4 + (i + 1) * n));
    return {
      ids: Array.from(low, (byte, j) => byte + 256 * middle[j] + 65536 * high[j]),
      a: Array.from(scoreLow, (byte, j) => byte + 256 * scoreHigh[j] - steps),
      kinds: Array.from(kinds),
      ...JSON.parse(new TextDecoder().decode(all.subarray(4 + 6 * n))),
    };
  }

  function ranksOf(a) {
    const order = a.map((_, j) => j).sort((i, j) => Math.abs(a[j]) - Math.abs(a[i]));
    const ranks = new Array(a.length);
    order.forEach((j, rank) => (ranks[j] = rank + 1));
    return ranks;
  }

  class Example {
    constructor(content, data) {
      this.content = content;
      this.scale = content.scale;
      this.words = content.ids.map((id) => data.tokens[id]);
      this.kinds = content.kinds.map((kind) => data.kinds[kind]);
      this.values = content.a.map((steps) => steps * content.scale);
      this.strongest = Math.max(...content.a.map(Math.abs), 0) * content.scale || 1;
      this.ranks = ranksOf(content.a);
      this.selected = new Map();
      for (const j of content.pos) this.selected.set(j, "chosen");
      for (const j of content.neg) this.selected.set(j, "rejected");
      this.places = new Map((content.picture?.patches ?? []).map((patch) => [patch[0], patch]));
    }

    name(j) {
      const patch = this.places.get(j);
      return patch ? `${patch[1]} row ${patch[2]}, column ${patch[3]}` : this.words[j].trim() || JSON.stringify(this.words[j]);
    }

    // What the tooltip says: value, rank, kind.
    lines(j) {
      const value = this.values[j];
      const side = value > 0 ? "toward chosen" : value < 0 ? "toward rejected" : "neither way";
      const lines = [this.name(j), `${nats(value, this.scale)} nats, ${side}`];
      lines.push(`rank ${this.ranks[j]} of ${this.words.length}, token ${j}, ${this.kinds[j]}`);
      if (this.selected.has(j)) lines.push(`selected toward ${this.selected.get(j)}`);
      if (this.content.marks[j]) lines.push(`marked ${this.content.marks[j]}`);
      return lines;
    }

    // Sign, depth of colour and selection of a token, for its element.
    paint(element, j) {
      const value = this.values[j];
      if (value > 0) element.classList.add("pos");
      if (value < 0) element.classList.add("neg");
      element.style.setProperty("--w", (Math.abs(value) / this.strongest).toFixed(3));
      if (this.selected.has(j)) element.classList.add("selected");
      element.dataset.token = j;
      facts.set(element, this.lines(j));
    }

    tokens() {
      const box = make("div", "tokens roving");
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", "Tokens; arrow keys go from one to the next");
      const isSpaced = !this.words.some((word) => /^\s/.test(word)); // words without spaces of their own
      let first = true;
      for (let j = 0; j < this.words.length; j++) {
        if (this.places.has(j)) {
          let end = j;
          while (this.places.has(end + 1)) end++;
          box.append(this.run(j, end));
          j = end;
          continue;
        }
        const word = this.words[j];
        const chip = make("span", "chip", word.trim() || (word.includes("\n") ? "\u21b5" : "\u2423"));
        if (!word.trim()) chip.classList.add("blank");
        if (isSpaced || /^[ \t]/.test(word)) chip.classList.add("gap");
        if (this.content.marks[j]) chip.append(make("sup", "", this.content.marks[j]));
        chip.tabIndex = first ? 0 : -1;
        first = false;
        this.paint(chip, j);
        box.append(chip, document.createElement("wbr"));
        if (word.includes("\n")) box.append(make("br"));
      }
      return box;
    }

    // A run of image tokens, which are shown on the picture.
    run(from, to) {
      const sum = this.values.slice(from, to + 1).reduce((total, value) => total + value, 0);
      return make("span", "chip pictures gap", `[${to - from + 1} image tokens, sum ${nats(sum, this.scale)}]`);
    }

    strongestTokens() {
      const box = make("div", "strongest");
      for (const [side, title, tokens] of [["neg", "Selected toward rejected", this.content.neg], ["pos", "Selected toward chosen", this.content.pos]]) {
        const part = make("div", side);
        const list = make("ol");
        for (const j of tokens) {
          const item = make("li");
          item.append(make("code", "", this.name(j)), make("span", "value", nats(this.values[j], this.scale)));
          const bar = make("span", "length");
          bar.style.width = `${(100 * Math.abs(this.values[j])) / this.strongest}%`;
          item.append(bar);
          list.append(item);
        }
        if (!tokens.length) list.append(make("li", "none", "none"));
        part.append(make("h3", "", title), list);
        box.append(part);
      }
      return box;
    }

    picture() {
      const { src, width, height, patches } = this.content.picture;
      const figure = make("figure", "picture");
      const canvas = make("div", "canvas");
      const image = make("img", Math.max(width, height) <= 128 ? "small" : "");
      image.src = src;
      image.alt = "The picture of the prompt";
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("class", "roving");
      svg.setAttribute("role", "group");
      svg.setAttribute("aria-label", "Image patches; arrow keys go from one to the next");
      canvas.append(image, svg);

      const views = [...new Set(patches.filter((patch) => patch[6] > patch[4]).map((patch) => patch[1]))];
      const show = (view) => this.drawPatches(svg, patches.filter((patch) => patch[1] === view && patch[6] > patch[4]));
      const controls = make("div", "controls");
      const label = make("label", "", "scores over picture");
      const slider = make("input");
      Object.assign(slider, { type: "range", min: "0", max: "1", step: "0.05", value: "0.75" });
      slider.addEventListener("input", () => figure.style.setProperty("--overlay", slider.value));
      label.append(slider);
      controls.append(label);
      if (views.length > 1) {
        const choice = make("select");
        choice.setAttribute("aria-label", "View; views overlap and are shown one at a time");
        for (const view of views) choice.append(make("option", "", view));
        choice.addEventListener("change", () => show(views[choice.selectedIndex]));
        controls.append(choice);
      }
      if (views.length) show(views[0]);
      figure.append(canvas, controls);
      return figure;
    }

    drawPatches(svg, patches) {
      const drawn = [];
      const frames = [];
      svg.dataset.columns = new Set(patches.map((patch) => patch[3])).size;
      for (const [j, , , , left, top, right, bottom] of patches) {
        const rect = document.createElementNS(SVG, "rect");
        for (const [name, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) {
          rect.setAttribute(name, Math.max(0, value));
        }
        rect.classList.add("patch");
        rect.setAttribute("tabindex", drawn.length ? -1 : 0);
        this.paint(rect, j);
        drawn.push(rect);
        if (!this.selected.has(j)) continue;
        for (const layer of ["under", "over"]) {
          const frame = rect.cloneNode();
          const inset = (right - left) * 0.04;
          frame.setAttribute("x", left + inset);
          frame.setAttribute("y", top + inset);
          frame.setAttribute("width", Math.max(0, right - left - 2 * inset));
          frame.setAttribute("height", Math.max(0, bottom - top - 2 * inset));
          frame.setAttribute("class", `frame ${layer} ${this.selected.get(j) === "chosen" ? "pos" : "neg"}`);
          frame.removeAttribute("tabindex");
          delete frame.dataset.token;
          frames.push(frame);
        }
      }
      svg.replaceChildren(...drawn, ...frames);
    }

    draw(body) {
      const responses = make("dl", "responses");
      for (const [side, name] of [["pos", "chosen"], ["neg", "rejected"]]) {
        responses.append(make("dt", side, name), make("dd", "", this.content[name]));
      }
      const ends = make("div", "ends");
      ends.append(`${nats(-this.strongest, this.scale)} nats`, make("span", "ramp"), nats(this.strongest, this.scale));
      const text = make("div");
      text.append(responses, ends, this.tokens(), this.strongestTokens());
      if (this.places.size) {
        const of = [...this.places.keys()].reduce((total, j) => total + this.values[j], 0);
        const all = this.values.reduce((total, value) => total + value, 0);
        text.append(make("p", "sums", `Sums: ${this.places.size} image tokens ${nats(of, this.scale)}, all others ${nats(all - of, this.scale)} nats.`));
      }
      if (!this.content.picture) return body.replaceChildren(text);
      const both = make("div", "seen");
      both.append(this.picture(), text);
      body.replaceChildren(both);
    }
  }

  // Examples are drawn when they are opened and come into view, and taken away when they are closed.
  for (const block of document.querySelectorAll(".examples-data")) {
    const data = JSON.parse(block.textContent);
    const draw = async (details) => {
      if (!details.open || details.dataset.drawn) return;
      details.dataset.drawn = "yes";
      const content = await unpack(data.examples[Number(details.dataset.index)], data.steps);
      new Example(content, data).draw(details.querySelector(".body"));
      details.dataset.drawn = "done";
    };
    for (const details of block.parentElement.querySelectorAll(".example")) {
      draw(details);
      details.addEventListener("toggle", () => {
        if (details.open) return draw(details);
        hideTip();
        details.querySelector(".body").replaceChildren();
        delete details.dataset.drawn;
      });
    }
  }
})();
