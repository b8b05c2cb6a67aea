// The official TypeScript SDK 1.x: callTool, and tasks by experimental.tasks.callToolStream.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CallToolResultSchema,
  CreateMessageRequestSchema,
  ElicitRequestSchema,
} from "@modelcontextprotocol/sdk/types.js";
import { fill } from "./cells.mjs";

const client = new Client({ name: "driver", version: "1" }, { capabilities: { elicitation: {}, sampling: {} } });
client.setRequestHandler(ElicitRequestSchema, async () => ({ action: "accept", content: { name: "Ada" } }));
client.setRequestHandler(CreateMessageRequestSchema, async () => ({
  role: "assistant",
  model: "m",
  content: { type: "text", text: "a haiku" },
}));
await client.connect(new StreamableHTTPClientTransport(new URL(process.argv[2])));
await client.listTools();

const progress = [];
const tasks = client.experimental.tasks;

function stream(name, args) {
  return tasks.callToolStream({ name, arguments: args }, CallToolResultSchema, { task: { ttl: 60000 } });
}

await fill({
  progress,
  call: (name, args) =>
    client.callTool({ name, arguments: args }, undefined, { onprogress: (state) => progress.push(state) }),
  task: async (name, args) => {
    for await (const message of stream(name, args)) {
      if (message.type === "result") return message.result;
      if (message.type === "error") throw message.error;
    }
  },
  cancel: async (begun) => {
    for await (const message of stream("wait", {})) {
      if (message.type === "taskCreated") {
        await begun();
        await tasks.cancelTask(message.task.taskId);
        return;
      }
    }
  },
});
