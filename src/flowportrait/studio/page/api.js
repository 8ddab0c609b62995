// Requests to the studio's server. Every refused request throws an Error with the server's sentence.

export const session = (() => {
  let token = sessionStorage.getItem("session");
  if (!token) {
    token = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("session", token);
  }
  return token;
})();

export const videosPath = `/api/sessions/${session}/videos`;

export async function call(method, path, body) {
  const options = { method };
  if (body instanceof Blob) {
    options.headers = { "Content-Type": "application/octet-stream" };
    options.body = body;
  } else if (body !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The studio does not answer: is it still running in the terminal?");
  }
  const text = await response.text();
  let answer;
  try { answer = JSON.parse(text); } catch { answer = { detail: `The studio answered with an error (${response.status}).` }; }
  if (!response.ok) throw new Error(answer.detail || `The studio answered with an error (${response.status}).`);
  return answer;
}

export const upload = (kind, file) =>
  call("PUT", `/api/files?kind=${kind}&name=${encodeURIComponent(file.name)}`, file);
