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
  const [before, after] = JSON.stringify(bodyFor("IMAGE")).replaceAll("'", "'\\''").split(/IMAGE(.*)/s);
  const key = sessionStorage.getItem(KEY) ? " \\\n    -H \"Authorization: Bearer $JSFREE_API_KEY\"" : "";
  // The picture is no argument of a program: Linux limits each to 128 KiB.
  return `(printf '%s' '${before}data:image/png;base64,'; base64 -w0 picture.png; printf '%s' '${after}') |
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
