// The official TypeScript client 2.x; under 2025-11-25 with the requester of ext-tasks, which only polls.

import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { createTaskSessionFromClient, resultFromTaskOutcome } from "@modelcontextprotocol/ext-tasks/client";
import { fill } from "./cells.mjs";

const client = new Client(
  { name: "driver", version: "1" },
  { capabilities: { elicitation: {}, sampling: {} }, versionNegotiation: { mode: "auto" } },
);
client.setRequestHandler("elicitation/create", async () => ({ action: "accept", content: { name: "Ada" } }));
client.setRequestHandler("sampling/createMessage", async () => ({
  role: "assistant",
  model: "m",
  content: { type: "text", text: "a haiku" },
}));
await client.connect(new StreamableHTTPClientTransport(new URL(process.argv[2])));
await client.listTools();

const progress = [];
const abort = new AbortController();
const limits = {};
let task;
const cancel = async (begun) => {
  const call = client.callTool({ name: "wait", arguments: {} }, { signal: abort.signal });
  call.catch(() => {});
  await begun();
  abort.abort("leave");
};

let session;
try {
  session = createTaskSessionFromClient(client, { endpointId: "driver" });
} catch (error) {
  console.error(error);
  limits.task = limits["question, task"] = "its task requester needs a raw dispatcher of the host";
}
if (session) {
  task = async (name, args) => {
    const execution = await session.callTool(name, args);
    const { outcome } = await execution.settle();
    return resultFromTaskOutcome(outcome);
  };
}

await fill({
  progress,
  limits,
  task,
  cancel,
  call: (name, args) => client.callTool({ name, arguments: args }, { onprogress: (state) => progress.push(state) }),
});
