const RATIOS = [0, 0.25, 0.5, 0.75, 1];
const state = { info: null, picture: null, running: null, shuffled: false, last: null, sample: null };

/* Requests. */

function settings() {
  return {
    hallucination_ratio: Number($("ratio").value),
    views: Number($("views").value),
    temperature: Number($("temperature").value) && state.info.temperature,
    seed: Math.max(0, Math.trunc(Number($("seed").value)) || 0),
  };
}

const post = (path, body, signal) =>
  request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

/** The events of a stream, parsed; raises a Problem for an error event. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The connection was lost while the captions were written. Caption the picture again.");
    }
    if (part.done) return;
    rest += part.value;
    for (let end; (end = rest.search(/\r?\n\r?\n/)) >= 0; ) {
      const data = rest.slice(0, end).split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      rest = rest.slice(end).replace(/^\r?\n\r?\n/, "");
      if (!data.trim() || data.trim() === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new Problem(event.error.message + ". Caption the picture again.");
      yield event;
    }
  }
}

function busy(is) {
  $("stop").disabled = !is;
  for (const id of ["go", "again", "reseed", "strip"]) $(id).disabled = is;
  $("columns").setAttribute("aria-busy", String(is));
}

/** Run something that Stop ends; what has been written stays. */
async function stoppable(work) {
  if (!state.picture) return showError(new Problem("There is no picture yet. Drop, paste or choose one, or pick a sample."));
  state.running?.abort();
  const controller = (state.running = new AbortController());
  busy(true);
  showError(null);
  try {
    await work(controller.signal);
  } catch (error) {
    if (error.name === "AbortError") $("status").textContent = "Stopped.";
    else {
      $("status").textContent = "";
      showError(error);
    }
  } finally {
    if (state.running === controller) {
      state.running = null;
      busy(false);
    }
  }
}

/* The two columns. */

/** Writes text as it comes, at most once a frame. */
class Column {
  constructor(at, model, title) {
    this.model = model;
    this.text = $(`text-${at}`);
    this.facts = $(`facts-${at}`);
    this.pending = "";
    this.words = "";
    this.first = this.last = null;
    $(`name-${at}`).textContent = title;
    this.text.replaceChildren();
    this.facts.textContent = "";
  }

  add(delta, started) {
    this.last = performance.now() - started;
    this.first ??= this.last;
    this.words += delta;
    if (!this.pending) requestAnimationFrame(() => this.flush());
    this.pending += delta;
  }

  flush() {
    if (this.pending) this.text.append(this.pending);
    this.pending = "";
  }

  finish(caption, marked) {
    this.pending = "";
    this.text.replaceChildren(...(marked ? sentenceNodes(caption) : [caption.text]));
    const count = caption.text.split(/\s+/).filter(Boolean).length;
    const facts = [`${count} words`];
    if (this.first !== null) facts.push(`first text after ${number(this.first / 1000, 2)} s`);
    if (caption.tokens && this.last) facts.push(`${number(caption.tokens / (this.last / 1000))} tokens/s`);
    if (marked && caption.score !== null) facts.unshift(`mean ${state.info.score_name} ${number(100 * caption.score, 1)}`);
    if (caption.finish_reason === "length") facts.push("cut at the length limit");
    this.facts.textContent = facts.join(" · ");
  }
}

async function captionBoth() {
  const names = [$("left").value, $("right").value];
  if (names[0] === names[1]) return showError(new Problem("Both sides are the same model. Choose two different ones."));
  const blind = $("blind").checked;
  if (blind && Math.random() < 0.5) names.reverse();
  const asked = settings();
  const picture = state.picture;
  await stoppable(async (signal) => {
    state.last = null;
    $("vote").hidden = $("legend").hidden = true;
    const columns = names.map((name, at) => new Column(at, name, blind ? ["The first", "The second"][at] : name));
    $("status").textContent = "Captioning …";
    const started = performance.now();
    const body = { image: picture.image, prompt: state.info.prompt, models: names, ...asked, stream: true };
    let result = null;
    for await (const event of events(await post("/v1/compare", body, signal))) {
      if (event.object === "comparison.delta") columns.find((column) => column.model === event.model)?.add(event.delta, started);
      if (event.object === "comparison") result = event;
    }
    if (!result) throw new Problem("The answer ended early. Caption the picture again.");
    const seconds = (performance.now() - started) / 1000;
    state.last = { captions: result.captions, columns, asked, names, picture };
    reveal(!blind);
    $("status").textContent = `Done in ${number(seconds, 1)} s. ${blind ? "Vote to see which model is which." : ""}`;
    $("vote").hidden = !blind;
  });
}

/** Show the captions; with marks and names once the visitor may know them. */
function reveal(marked) {
  const { captions, columns, names } = state.last;
  columns.forEach((column, at) => {
    const caption = captions.find((each) => each.model === column.model);
    column.finish(caption, marked);
    if (marked) $(`name-${at}`).textContent = names[at];
  });
  if (marked) legend(captions);
}

/* The dial at once. */

async function strip() {
  const model = $("strip-model").value;
  const cards = RATIOS.map((ratio) => {
    const card = el("li", {}, el("h3", {}, `h = ${ratio}`), el("p", { className: "caption" }, "…"), el("p", { className: "facts" }));
    card.dataset.ratio = ratio;
    return card;
  });
  await stoppable(async (signal) => {
    $("strip-list").replaceChildren(...cards);
    $("status").textContent = `Captioning with ${model} at five ratios …`;
    state.last = { picture: state.picture };
    $("vote").hidden = true; // a vote would be on captions that are no longer the last ones
    const one = async (card, ratio) => {
      const body = { image: state.picture.image, prompt: state.info.prompt, models: [model], ...settings(), hallucination_ratio: ratio };
      const caption = (await (await post("/v1/compare", body, signal)).json()).captions[0];
      for (const sentence of caption.sentences) sentence.unique = false;
      card.children[1].replaceChildren(...sentenceNodes(caption));
      card.children[2].textContent = caption.score === null ? "" : `mean ${number(100 * caption.score, 1)}`;
    };
    await Promise.all(RATIOS.map((ratio, at) => one(cards[at], ratio)));
    $("status").textContent = "Done: the further h, the less of the picture.";
  });
}

/* Start. */

function fill(select, values, chosen) {
  select.replaceChildren(...values.map((value) => el("option", { value, selected: value === chosen }, String(value))));
}

async function start() {
  const info = (state.info = await json("/page/info"));
  navigation(info);
  fill($("left"), info.models, info.models[0]);
  fill($("right"), info.models, info.models.at(-1));
  fill($("strip-model"), info.models, info.models[0]);
  fill($("views"), Array.from({ length: info.max_views }, (_, at) => at + 1), 1);
  $("scene").hidden = !info.scenes;
  const named = restore();
  if (named) await useNamed(named);
  else if (info.samples) await guarded(() => useNamed("sample:" + info.first_sample));
  await showSamples(info.samples);
  showTally((await json("/page/votes")).tally);
}

const on = (id, event, act) => $(id).addEventListener(event, act);
for (const id of ["file", "camera"]) on(id, "change", (event) => useFile(event.target.files[0]));
on("drop", "dragover", (event) => event.preventDefault());
on("drop", "drop", (event) => {
  event.preventDefault();
  useFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
  if (file) useFile(file);
});
on("scene", "click", () => guarded(() => useNamed("scene:" + Math.floor(Math.random() * 1e9))));
on("ratio", "input", () => ($("ratio-value").textContent = Number($("ratio").value).toFixed(2)));
for (const id of ["left", "right", "ratio", "views", "temperature", "seed"]) on(id, "change", share);
on("go", "click", captionBoth);
on("again", "click", captionBoth);
on("reseed", "click", () => {
  $("seed").value = Math.floor(Math.random() * 1e9);
  $("temperature").value = "1";
  share();
  captionBoth();
});
on("stop", "click", () => state.running?.abort());
on("strip", "click", strip);
on("vote-0", "click", () => vote(0));
on("vote-1", "click", () => vote(1));
on("vote-tie", "click", () => vote(null));
on("copy-curl", "click", () => copy(asCurl(), "The curl command"));
on("copy-python", "click", () => copy(asPython(), "The Python program"));
on("copy-link", "click", () => {
  share();
  copy(location.href, "The link, without the picture,");
});
guarded(start);
