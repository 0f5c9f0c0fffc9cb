// Talks REST to the server the page came from. Every failure becomes an ApiError that a person can read.

const TIMEOUT_MS = 40_000;

/** A refused or failed request. `errors` has {pointer, detail, code, line?, column?}. */
export class ApiError extends Error {
  constructor({ title, detail, status = 0, code = "", trace_id = "", errors = [], ...more }) {
    super(detail || title);
    this.title = title || "The request failed";
    this.detail = detail || "";
    this.status = status;
    this.code = code;
    this.traceId = trace_id;
    this.errors = errors;
    this.more = more;
  }
}

async function request(method, path, { body, signal } = {}) {
  const options = { method, headers: { Accept: "application/json" }, signal: signal ?? AbortSignal.timeout(TIMEOUT_MS) };
  if (body instanceof FormData) options.body = body;
  else if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const slow = error.name === "TimeoutError";
    throw new ApiError({
      title: slow ? "The server did not answer in time" : "The server cannot be reached",
      detail: slow ? "Try again; what was asked may still take effect." : "Is the dashboard's process running?",
      code: slow ? "timeout" : "unreachable",
    });
  }
  const text = await response.text();
  let data = null;
  try {
    data = text ? JSON.parse(text) : null;
  } catch {
    data = null;
  }
  if (response.ok && data !== null) return data;
  throw new ApiError({ title: response.statusText, status: response.status, ...(data ?? { detail: "It sent no JSON." }) });
}

export const get = (path, options) => request("GET", path, options);
export const post = (path, body, options) => request("POST", path, { ...options, body });
