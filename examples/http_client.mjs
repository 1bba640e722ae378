// A client of LIFL by HTTP, in JavaScript: docs/http.md.  `takePart` runs in a browser as it does in Node 18 or later.
//
//     node examples/http_client.mjs http://HOST:PORT $STATE/http.header JOB CLIENT
//
// It takes part until the job is over.  What it "trains" is the model, all float32, plus one, with a weight of 1.

/** Take part in a job until it is over; `train(tensors)` changes a map of Float32Arrays by their names. */
export async function takePart(address, authorization, job, client, train, log = console.log) {
  const base = `${address}/v1/jobs/${job}/clients/${client}`;
  const ask = (path, init = {}) => fetch(`${base}/${path}`, { ...init, headers: { Authorization: authorization } });
  for (;;) {
    const selected = await ask("selection?wait_s=60");
    if (selected.status === 204) continue; // not yet: ask again
    if (selected.status === 410) return log(await selected.json());
    if (!selected.ok) throw new Error(await selected.text());
    const { round } = await selected.json();
    const model = await ask(`rounds/${round}/model`);
    if (!model.ok) continue; // the round is over
    const file = await model.arrayBuffer();
    train(tensorsOf(file));
    for (;;) {
      const answer = await ask(`rounds/${round}/update?weight=1`, { method: "PUT", body: file });
      log(await answer.json());
      if (answer.status !== 503) break;
      await new Promise((done) => setTimeout(done, 1000 * answer.headers.get("Retry-After"))); // no room now
    }
  }
}

/** Return the tensors of a safetensors file, as views of its bytes. */
export function tensorsOf(file) {
  const begin = 8 + Number(new DataView(file).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 8, begin - 8)));
  const found = {};
  for (const [name, { dtype, data_offsets: [first, last] }] of Object.entries(header)) {
    if (dtype !== "F32") throw new Error(`${name} is ${dtype}`);
    found[name] = new Float32Array(file, begin + first, (last - first) / 4);
  }
  return found;
}

/** "Train": add one to each number. */
export const plusOne = (tensors) => Object.values(tensors).forEach((numbers) => numbers.forEach((x, i) => (numbers[i] = x + 1)));

if (globalThis.process?.argv[1]?.endsWith("http_client.mjs")) {
  const { readFileSync } = await import("node:fs");
  const [address, file, job, client] = process.argv.slice(2);
  const authorization = readFileSync(file, "utf8").split(":")[1].trim();
  await takePart(address, authorization, job, client, plusOne);
}
