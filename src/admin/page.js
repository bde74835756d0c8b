"use strict";
// Asks for the status every other second and shows it. Everything is set as text: names come from a configuration,
// errors from other machines.
const EVERY = 2000, KEEP = 10 * 60 * 1000;
const history = [];
let before = null;

const by = (id) => document.getElementById(id);
const number = (n) => Math.round(n).toLocaleString("en");
const rate = (n) => (n > 0 && n < 9.95 ? n.toFixed(1) : number(n));
const sum = (object) => Object.values(object).reduce((a, b) => a + b, 0);

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (n >= 1023.5 && unit < units.length - 1) { n /= 1024; unit++; }
  return (unit === 0 ? n : n.toPrecision(3)) + " " + units[unit];
}

function seconds(s) {
  if (s < 9.95) return s.toFixed(1) + " s";
  if (s < 120) return s.toFixed(0) + " s";
  if (s < 7200) return (s / 60).toFixed(0) + " min";
  if (s < 172800) return (s / 3600).toFixed(1) + " h";
  return (s / 86400).toFixed(0) + " d";
}

// titles: a leading "<" puts the column to the left. rows: [problem, cells].
function table(id, titles, rows) {
  const cell = (kind, title, text) => {
    const element = document.createElement(kind);
    element.textContent = text;
    if (title.startsWith("<")) element.className = "text";
    return element;
  };
  const head = document.createElement("tr");
  head.append(...titles.map((title) => cell("th", title, title.replace("<", ""))));
  const body = rows.map(([problem, cells]) => {
    const row = document.createElement("tr");
    if (problem) row.className = "bad";
    row.append(...cells.map((text, at) => cell("td", titles[at], problem && at === 0 ? "! " + text : text)));
    return row;
  });
  by(id).replaceChildren(head, ...body);
}

function line(name, points) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  element.setAttribute("class", name);
  element.setAttribute("points", points.map(([x, y]) => x.toFixed(1) + "," + y.toFixed(1)).join(" "));
  return element;
}

function draw(now) {
  const top = Math.max(1, ...history.map((look) => Math.max(look.in, look.out)));
  const point = (key) => (look) => [600 - (600 * (now - look.at)) / KEEP, 116 - (112 * look[key]) / top];
  by("rates").replaceChildren(line("in", history.map(point("in"))), line("out", history.map(point("out"))));
  const minutes = Math.min(10, Math.ceil((now - history[0].at) / 60000) || 1);
  by("span").textContent = "the last " + minutes + " min since this page was opened, top " + rate(top);
}

function show(status, now) {
  const node = status.nodes[0];
  const same = before !== null && before.node.pid === node.pid && now > before.at;
  const per = (value, old) => (same && old !== undefined ? Math.max(0, value - old) / ((now - before.at) / 1000) : NaN);
  const shown = (value) => (Number.isNaN(value) ? "–" : rate(value));
  const received = (n) => Object.values(n.inputs).reduce((a, input) => a + input.messages, 0);
  const arrived = (n) => Object.values(n.outputs).reduce((a, output) => a + output.acknowledged, 0);

  document.title = (node.faults.length ? "! " : "") + node.name + " – twinlog";
  by("name").textContent = node.name;
  by("about").textContent = node.role + ", " + node.stage + ", up " + seconds(node.uptime_seconds) + ", version " + node.version;
  by("verdict").className = node.faults.length ? "bad" : "";
  by("verdict").textContent = node.safe_to_drain
    ? "Safe to drain: yes: " + node.safe_to_drain_reason + "."
    : "Safe to drain: no: " + node.safe_to_drain_reason + ".";
  by("faults").replaceChildren(...node.faults.map((fault) => {
    const item = document.createElement("li");
    item.textContent = "! " + fault;
    return item;
  }));

  table("inputs", ["<input", "<listens on", "received", "per second", "bytes", "kernel drops", "connections", "bad", "silent for"],
    Object.entries(node.inputs).map(([name, input]) => {
      const old = same ? before.node.inputs[name] : undefined;
      return [old !== undefined && input.kernel_drops > old.kernel_drops, [
        name, input.listen.join(" "), number(input.messages), shown(per(input.messages, old?.messages)), bytes(input.bytes),
        number(input.kernel_drops), number(input.connections), number(sum(input.rejected)),
        input.silent_seconds === null ? "–" : seconds(input.silent_seconds)]];
    }));
  table("outputs", ["<output", "<to", "per second", "sent", "unacked", "backlog", "oldest", "retries", "<state", "<last error"],
    Object.entries(node.outputs).map(([name, output]) => {
      const old = same ? before.node.outputs[name] : undefined;
      const down = !output.connected && output.backlog_messages > 0;
      return [down || sum(output.lost) > 0, [
        name, (output.target ?? output.to[0] ?? "–") + (output.to.length > 1 ? " (+" + (output.to.length - 1) + ")" : ""),
        shown(per(output.sent, old?.sent)), number(output.sent), number(output.in_flight), number(output.backlog_messages),
        output.lag_seconds > 0 ? seconds(output.lag_seconds) : "–", number(output.retries),
        down ? "down" : output.connected ? "ok" : "idle", output.last_error ?? ""]];
    }));
  table("journals", ["<journal", "<state", "size", "of", "undelivered", "oldest", "segments", "not yet on disk"],
    node.journals.map((journal) => [journal.state !== "writing", [
      journal.journal, journal.state_reason ?? journal.state, bytes(journal.bytes), bytes(journal.max_bytes),
      number(journal.messages), journal.oldest_seconds > 0 ? seconds(journal.oldest_seconds) : "–",
      number(journal.segments), bytes(journal.appended - journal.durable)]]));

  const rates = { at: now, in: per(received(node), same ? received(before.node) : undefined),
    out: per(arrived(node), same ? arrived(before.node) : undefined) };
  by("rate-in").textContent = shown(rates.in);
  by("rate-out").textContent = shown(rates.out);
  if (!Number.isNaN(rates.in)) history.push(rates);
  while (history.length > 0 && now - history[0].at > KEEP) history.shift();
  if (history.length > 0) draw(now);
  before = { node, at: now };
}

async function look() {
  try {
    const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error("it answers " + answer.status);
    show(await answer.json(), performance.now());
  } catch (error) {
    by("verdict").className = "bad";
    by("verdict").textContent = "The node does not answer: " + error.message + ". What is below is old.";
  }
  setTimeout(look, EVERY);
}

look();
