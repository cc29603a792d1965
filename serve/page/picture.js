const MAX_SIDE = 1536;

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
