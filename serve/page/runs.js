const CURVES = {
  loss: "Loss",
  validation_loss: "Loss, held out",
  accuracy: "Accuracy: chosen above rejected",
  chosen_reward: "Implicit reward, chosen",
  rejected_reward: "Implicit reward, rejected",
  margin: "Reward margin",
  nll: "NLL per token",
};
const STATES = { interrupted: "its driver has stopped; resume it with `jsfree run`", new: "nothing is recorded yet" };
const SVG = "http://www.w3.org/2000/svg";

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return number(seconds, 1) + " s";
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function stageRow(stage, several) {
  const open = stage.status !== "done";
  const rows = stage.rows === null ? "" : open && stage.rows_total ? `${number(stage.rows)} / ${number(stage.rows_total)}` : number(stage.rows);
  const name = el("th", { scope: "row" }, (several ? stage.round + "/" : "") + stage.name);
  if (stage.label) name.append(el("span", { className: "note" }, stage.label));
  const share = el("td");
  if (stage.share !== null && open) {
    share.append(el("progress", { value: stage.share, max: 1, "aria-label": `Progress of ${stage.name}` }), ` ${number(100 * stage.share)} %`);
  }
  const time = open ? (stage.seconds_remaining === null ? "" : duration(stage.seconds_remaining) + " left") : duration(stage.seconds);
  const cells = [rows, number(stage.rows_failed || null), number(stage.rows_per_second, 1), number(stage.tokens_per_second || null), number(stage.replicas), time];
  const state = stage.reused ? "taken from another run" : stage.status;
  return el("tr", { className: stage.status }, name, el("td", {}, state), share, ...cells.map((cell) => el("td", {}, cell)));
}

function curve(title, points) {
  const values = points.map((point) => point.value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [first, last] = [points[0].step, points.at(-1).step];
  const x = (step) => 4 + (232 * (step - first)) / (last - first || 1);
  const y = (value) => 76 - (68 * (value - low)) / (high - low || 1);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 240 80");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${title}: from ${number(values[0], 3)} to ${number(values.at(-1), 3)} over ${last + 1} steps`);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", "M" + points.map((point) => `${x(point.step).toFixed(1)} ${y(point.value).toFixed(1)}`).join("L"));
  svg.append(path);
  const range = `${number(values[0], 3)} → ${number(values.at(-1), 3)}`;
  return el("figure", {}, el("figcaption", {}, title, " ", el("span", { className: "note" }, range)), svg);
}

function pairItem(pair) {
  const item = el("li");
  if (pair.picture) item.append(el("img", { src: pair.picture, alt: `Picture ${pair.image}` }));
  const texts = el("div");
  for (const caption of pair.captions) {
    const facts = [caption.ratio === null ? "imported" : `h = ${number(caption.ratio, 2)}`];
    if (caption.score !== null) facts.push(`mean score ${number(100 * caption.score, 1)}`);
    texts.append(el("p", { className: "facts" }, facts.join(" · ")), el("p", { className: "caption" }, caption.text));
  }
  if (pair.inverted) texts.append(el("p", { className: "note" }, "Inverted: the caption at the higher ratio scores higher."));
  item.append(texts);
  return item;
}

function show(status) {
  const remark = STATES[status.state] ? ` (${STATES[status.state]})` : "";
  $("state").textContent = `${status.state}${remark}: ${status.rounds_done} of ${status.rounds} rounds done. ${status.hardware}`;
  $("stages").replaceChildren(...status.stages.map((stage) => stageRow(stage, status.rounds > 1)));
  const failures = status.failures.map((each) => el("li", {}, `${number(each.rows)} rows of ${each.stage}: ${each.kind}`));
  $("failures").replaceChildren(...(failures.length ? failures : [el("li", {}, "No row failed.")]));
  const nodes = status.nodes.map((node) => {
    const gpus = node.gpus ? `, ${node.gpus} GPUs ${node.accelerators.join(", ")}` : "";
    return el("li", {}, `${node.host}: ${node.cpus} CPUs${gpus}${node.memory_gib ? `, ${number(node.memory_gib, 1)} GiB` : ""}`);
  });
  $("nodes").replaceChildren(...(nodes.length ? nodes : [el("li", {}, "None is recorded.")]));
  const training = status.training;
  $("training").textContent = training ? `Round ${training.round}: step ${number(training.step)}${training.steps ? " of " + number(training.steps) : ""}.` : "No training has begun.";
  const curves = training ? Object.entries(CURVES).filter(([name]) => training.curves[name]) : [];
  $("curves").replaceChildren(...curves.map(([name, title]) => curve(title, training.curves[name])));
  $("pairs").replaceChildren(...status.pairs.map(pairItem));
}

let timer = null;
async function look() {
  clearTimeout(timer);
  showError(null);
  let working = true;
  try {
    const status = await json("/page/status");
    show(status);
    working = status.state === "running";
  } catch (error) {
    showError(error);
    working = false;
  }
  if (working && $("follow").checked) timer = setTimeout(look, 5000);
}

async function begin() {
  try {
    navigation(await json("/page/info"));
  } catch (error) {
    return showError(error);
  }
  await look();
}
$("refresh").addEventListener("click", look);
$("follow").addEventListener("change", look);
begin();
