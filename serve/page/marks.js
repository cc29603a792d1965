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
  const absent = (state.last ?? state).picture?.absent; // null where the contents of the picture are not known
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
