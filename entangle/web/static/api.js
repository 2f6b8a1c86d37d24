// Requests to the server, and its event streams, which reconnect by themselves.

const link = document.getElementById("link");

export class Gone extends Error {}

export async function get(path) {
  let answer;
  try {
    answer = await fetch(path, { headers: { Accept: "application/json" } });
  } catch {
    link.textContent = "not connected";
    throw new Error("The server does not answer. Is “entangle ui” still running?");
  }
  link.textContent = "";
  if (answer.status === 404) throw new Gone((await answer.json().catch(() => ({}))).error ?? "There is no such thing.");
  if (answer.status === 401) throw new Error("This page has no token. Open the address that “entangle ui” has printed.");
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `The server answered ${answer.status}.`);
  return answer.json();
}

// Listen to server-sent events, with a handler for each name. Returns a function that stops it.
export function listen(path, handlers) {
  const source = new EventSource(path);
  for (const [name, handle] of Object.entries(handlers)) source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  source.addEventListener("open", () => (link.textContent = ""));
  source.addEventListener("error", () => (link.textContent = source.readyState === EventSource.CLOSED ? "not connected" : "connecting …"));
  return () => {
    source.close();
    link.textContent = "";
  };
}
