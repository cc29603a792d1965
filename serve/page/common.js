"use strict";
const $ = (id) => document.getElementById(id);
const KEY = "jsfree-key";

/** An error whose message says what is wrong and what to do. */
class Problem extends Error {}

/** An element with attributes, properties and children; all text becomes text nodes. */
function el(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name in node && name !== "role") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function showError(error) {
  const box = $("error");
  box.hidden = !error;
  box.textContent = error ? error.message : "";
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: "Bearer " + key } : {};
}

/** Ask for a key; resolves to false if the visitor gives none. */
let asking = null;
function askKey(why) {
  asking ??= new Promise((resolve) => {
    $("key-why").textContent = why;
    $("key").value = "";
    const dialog = $("key-dialog");
    dialog.returnValue = "";
    const closed = () => {
      dialog.removeEventListener("close", closed);
      asking = null;
      const key = dialog.returnValue === "use" ? $("key").value.trim() : "";
      if (key) sessionStorage.setItem(KEY, key);
      resolve(Boolean(key));
    };
    dialog.addEventListener("close", closed);
    dialog.showModal();
    $("key").focus();
  });
  return asking;
}
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("key-dialog").close("use");
});
$("key-cancel").addEventListener("click", () => $("key-dialog").close(""));

/** A response; asks for a key where one is wanted. Raises a Problem for every other failure. */
async function request(path, options = {}) {
  for (;;) {
    let response;
    const sent = sessionStorage.getItem(KEY);
    try {
      response = await fetch(path, { ...options, headers: { ...options.headers, ...headers() } });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer. Check that it runs and that you are connected, then try again.");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      if (sent !== sessionStorage.getItem(KEY)) continue;
      const known = sessionStorage.getItem(KEY);
      sessionStorage.removeItem(KEY);
      const why = known
        ? "The server refused this key. Enter another one, or ask the operator for one."
        : "This server wants a key. It is kept in this tab until you close it.";
      if (await askKey(why)) continue;
      throw new Problem("Without a key the server does not answer. Press the button again to enter one.");
    }
    throw new Problem(await described(response));
  }
}

async function described(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    message = "the server answered with status " + response.status;
  }
  message = message.charAt(0).toUpperCase() + message.slice(1) + ".";
  const wait = response.headers.get("retry-after");
  if (response.status === 429) message += wait ? ` Try again in ${wait} s.` : " Try again soon.";
  return message;
}

const json = async (path, options) => (await request(path, options)).json();
/** A number with so many decimals; an empty text for null. */
function number(value, digits = 0) {
  if (value === null || value === undefined) return "";
  const text = value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return (/[1-9]/.test(text) ? text : text.replace("-", "")).replace("-", "−");
}

/** Mark the page that is shown, and open the report with the key where there is one. */
function navigation(info) {
  $("run").textContent = info.run + ": " + info.models.join(", ");
  $("report").hidden = !info.report;
  $("report").addEventListener("click", async (event) => {
    if (!sessionStorage.getItem(KEY)) return;
    event.preventDefault();
    try {
      const file = await (await request("/page/report")).blob();
      const link = el("a", { href: URL.createObjectURL(file), download: "report.html" });
      link.click();
      URL.revokeObjectURL(link.href);
    } catch (error) {
      showError(error);
    }
  });
}
$(location.pathname === "/runs" ? "nav-runs" : "nav-compare").setAttribute("aria-current", "page");
