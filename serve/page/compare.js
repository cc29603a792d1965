const MAX_SIDE = 1536;
const RATIOS = [0, 0.25, 0.5, 0.75, 1];
const state = { info: null, picture: null, running: null, shuffled: false, last: null, sample: null };

/* The picture. */

const asDataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Problem("The file cannot be read. Choose it again."));
    reader.readAsDataURL(blob);
  });

/** A file as a data URL that the server accepts: large or unusual pictures are drawn again as JPEG. */
async function acceptable(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Problem("This file is not a picture that the browser can show. Choose a PNG, JPEG or WebP file.");
  }
  const factor = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  if (factor === 1 && ["image/png", "image/jpeg", "image/webp"].includes(file.type) && file.size < 4e6) return asDataUrl(file);
  const canvas = el("canvas", { width: Math.round(bitmap.width * factor), height: Math.round(bitmap.height * factor) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return asDataUrl(await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92)));
}

async function useFile(file) {
  if (!file) return;
  showError(null);
  try {
    const url = await acceptable(file);
    usePicture({ image: url, picture: url, absent: null, id: file.name || "picture" });
  } catch (error) {
    showError(error);
  }
}

function usePicture(picture, sample = null) {
  state.picture = picture;
  state.sample = sample;
  const image = $("preview");
  image.src = picture.picture;
  image.alt = "The chosen picture: " + picture.id;
  image.hidden = false;
  $("drop-text").hidden = true;
  for (const button of $("samples").children) button.setAttribute("aria-pressed", String(button.dataset.sample === sample));
  share();
}

async function useNamed(name) {
  const [kind, at] = name.split(":");
  usePicture(await json(`/page/${kind === "scene" ? "scenes" : "samples"}/${Number(at)}`), name);
}

async function guarded(work) {
  showError(null);
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
}

async function showSamples(count) {
  for (let at = 0; at < count; at++) {
    let sample;
    try {
      sample = await json(`/page/samples/${at}`);
    } catch (error) {
      showError(error); // the other samples may be readable
      continue;
    }
    const button = el("button", { type: "button", className: "sample", "aria-pressed": "false" }, el("img", { src: sample.picture, alt: `Sample ${at + 1}` }));
    button.dataset.sample = `sample:${at}`;
    button.setAttribute("aria-pressed", String(state.sample === button.dataset.sample));
    button.addEventListener("click", () => usePicture(sample, button.dataset.sample));
    $("samples").append(button);
    if (!state.picture) usePicture(sample, button.dataset.sample);
  }
}

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

/* Marks. */

const shade = (score) => 1 + state.info.score_edges.filter((edge) => score >= edge).length;

function sentenceNodes(caption) {
  if (!caption.sentences.length) return [caption.text || "(nothing)"];
  return caption.sentences.flatMap((sentence) => {
    const kind = sentence.score === null || !state.info.score_edges.length ? "" : ` s${shade(sentence.score)}`;
    const node = el("span", { className: "sentence" + kind + (sentence.unique ? " unique" : "") }, ...struck(sentence.text));
    if (sentence.unique) node.append(el("span", { className: "tag" }, "only here"));
    if (sentence.score !== null) {
      node.title = `${state.info.score_name} × 100: ${number(100 * sentence.score, 1)}`;
      node.append(el("span", { className: "value" }, number(100 * sentence.score, 1)));
    }
    return [node, " "];
  });
}

/** A text with the words for objects that are not in the picture struck through. */
function struck(text) {
  const absent = state.last?.picture.absent ?? state.picture?.absent;
  if (!absent?.length) return [text];
  const words = [...absent].sort((a, b) => b.length - a.length).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/ /g, "\\s+"));
  const pattern = new RegExp(`\\b(${words.join("|")})\\b`, "gi");
  return text.split(pattern).map((part, at) => (at % 2 ? el("s", {}, part, el("span", { className: "sr" }, " (absent)")) : part));
}

function legend(captions) {
  const items = [];
  const edges = state.info.score_edges.map((edge) => number(100 * edge, 1));
  if (edges.length && captions.some((caption) => caption.score !== null)) {
    items.push(el("li", {}, `${state.info.score_name} × 100, in fifths of m0’s sentences:`));
    for (let at = 0; at <= edges.length; at++) {
      const range = at === 0 ? `below ${edges[0]}` : at === edges.length ? `${edges[at - 1]} and above` : `${edges[at - 1]} to ${edges[at]}`;
      items.push(el("li", {}, el("span", { className: `swatch s${at + 1}` }), range));
    }
  }
  items.push(el("li", {}, el("span", { className: "unique" }, "underlined"), ": only one model says it"));
  if (state.last.picture.absent) items.push(el("li", {}, el("s", {}, "struck"), ": not in the picture"));
  $("legend").replaceChildren(...items);
  $("legend").hidden = false;
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

/* Votes. */

/** SHA-256 of the file in a data URL; zeros where the browser has no cryptography, as on a page without TLS. */
async function sha256(url) {
  if (!crypto.subtle) return "0".repeat(64);
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (character) => character.charCodeAt(0));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function vote(choice) {
  const { names, asked, picture } = state.last;
  const winner = choice === 1 ? 1 : 0;
  $("vote").hidden = true;
  reveal(true);
  await guarded(async () => {
    const body = {
      winner: names[winner],
      loser: names[1 - winner],
      tie: choice === null,
      image: await sha256(picture.image),
      ratio: asked.hallucination_ratio,
      views: asked.views,
      temperature: asked.temperature,
      seed: asked.seed,
    };
    showTally((await (await post("/page/votes", body)).json()).tally);
    $("status").textContent = `Thank you. The first was ${names[0]}, the second ${names[1]}.`;
  });
}

function showTally(tally) {
  const parts = tally.map(({ models, wins, ties }) => `${models[0]} ${wins[0]}, ${models[1]} ${wins[1]}, no difference ${ties}`);
  $("tally").textContent = parts.length ? `Blind votes so far: ${parts.join("; ")}. No stage of the method reads them.` : "";
}

/* Sharing. */

/** Write the settings into the address, without the picture, unless it is one of the run's. */
function share() {
  if (!state.info) return;
  const { hallucination_ratio, views, seed } = settings();
  const known = { left: $("left").value, right: $("right").value, h: hallucination_ratio, views, seed, sampled: $("temperature").value };
  if (state.sample) known.picture = state.sample;
  history.replaceState(null, "", "#" + new URLSearchParams(known));
}

function restore() {
  const known = new URLSearchParams(location.hash.slice(1));
  for (const [name, id] of Object.entries({ left: "left", right: "right", h: "ratio", views: "views", seed: "seed", sampled: "temperature" })) {
    const value = known.get(name);
    const field = $(id);
    if (value !== null && (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value))) field.value = value;
  }
  $("ratio-value").textContent = Number($("ratio").value).toFixed(2);
  const picture = known.get("picture");
  return /^(sample|scene):\d{1,9}$/.test(picture ?? "") ? picture : null;
}

function bodyFor(image) {
  return { image, prompt: state.info.prompt, models: [$("left").value, $("right").value], ...settings() };
}

function asCurl() {
  const body = JSON.stringify(bodyFor("IMAGE")).replaceAll("'", "'\\''");
  const key = sessionStorage.getItem(KEY) ? " \\\n    -H \"Authorization: Bearer $JSFREE_API_KEY\"" : "";
  return `IMAGE="data:image/png;base64,$(base64 -w0 picture.png)"
printf '%s' '${body}' | sed "s|IMAGE|$IMAGE|" |
  curl -s ${location.origin}/v1/compare -H 'Content-Type: application/json'${key} -d @-`;
}

function asPython() {
  const { hallucination_ratio, views, temperature, seed } = settings();
  return `import base64
import os

from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1", api_key=os.environ.get("JSFREE_API_KEY", "none"))
image = "data:image/png;base64," + base64.b64encode(open("picture.png", "rb").read()).decode()
for model in (${JSON.stringify($("left").value)}, ${JSON.stringify($("right").value)}):
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": ${JSON.stringify(state.info.prompt)}},
        ]}],
        temperature=${temperature},
        seed=${seed},
        extra_body={"hallucination_ratio": ${hallucination_ratio}, "views": ${views}},
    )
    print(model, answer.choices[0].message.content)
`;
}

async function copy(text, what) {
  $("copy-text").value = text;
  $("copy-part").hidden = false;
  try {
    await navigator.clipboard.writeText(text);
    $("copied").textContent = `${what} copied.`;
  } catch {
    $("copy-text").select();
    $("copied").textContent = "The browser does not allow copying here; copy the text below.";
  }
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
