// Requests to the server that this page came from, and what goes wrong with them in plain words.

const KEY = "prm_ray.key";

/** A request that got no useful answer; `message` is for people. `status` is 0 where no answer came at all. */
export class RequestError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function keepKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

export async function ask(path, body, signal) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key()) headers.Authorization = `Bearer ${key()}`;
  const request = { method: body === undefined ? "GET" : "POST", headers, signal, cache: "no-store" };
  if (body !== undefined) request.body = JSON.stringify(body);
  if (!/^[\x21-\x7e]*$/.test(key())) throw new RequestError("An API key has only letters, digits and signs.", 401);
  let response;
  try {
    response = await fetch(url(path), request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server does not answer. Your text is still here: try again once it runs.", 0);
  }
  let reply;
  try {
    reply = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(`The server answered ${response.status} with something that is no JSON.`, response.status);
  }
  if (!response.ok) throw new RequestError(explain(response, reply), response.status);
  return reply;
}

/** The request as a shell command that does the same. The key is not in it, only the name of a variable that has it. */
export function curl(path, body) {
  const parts = [`curl -sS ${quote(url(path))}`, "-H 'Content-Type: application/json'"];
  if (key()) parts.push('-H "Authorization: Bearer $PRM_RAY_KEY"');
  parts.push(`-d ${quote(JSON.stringify(body))}`);
  return parts.join(" \\\n  ");
}

/** Relative to the page, so that it also works behind a proxy that puts the server below a path. */
function url(path) {
  return new URL(path, document.baseURI).href;
}

function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function explain(response, reply) {
  const said = String(reply?.error?.message ?? "it does not say why").replace(/(; try again( later)?)?\.?$/, "");
  const seconds = Number(response.headers.get("Retry-After"));
  const later = seconds > 0 ? ` Try again in ${seconds} s.` : " Try again in a moment.";
  const lines = {
    401: key() ? "The server does not know this API key." : "This server wants an API key.",
    408: `The request came too slowly: ${said}.`,
    413: `That is too much for one request: ${said}.`,
    429: `The server asks to wait: ${said}.${later}`,
    502: `No answer could be made: ${said}.`,
    503: `The server is not ready: ${said}.${later}`,
    504: `It took too long: ${said}.`,
  };
  if (lines[response.status]) return lines[response.status];
  if (response.status >= 500) return `The server failed: ${said}.`;
  return `The server refused the request (${response.status}): ${said}.`;
}
