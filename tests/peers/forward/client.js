// @fluent-org/logger for Node: client.js PORT MODE COUNT [KEY]. Ends well if every event was acknowledged.
const { FluentClient } = require("@fluent-org/logger");

const [port, eventMode, count, sharedKey] = process.argv.slice(2);

async function main() {
  const client = new FluentClient("node", {
    eventMode,
    ack: { ackTimeout: 15000 },
    socket: { host: "127.0.0.1", port: Number(port), timeout: 15000 },
    ...(sharedKey ? { security: { clientHostname: "client", sharedKey } } : {}),
  });
  const sent = [];
  for (let number = 0; number < Number(count); number++) {
    sent.push(client.emit(eventMode, { message: `${eventMode} ${number}` }));
  }
  await Promise.all(sent);
  await client.disconnect();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
