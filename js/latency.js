// SPDX-License-Identifier: MIT
//
// Round trips of one message at a time: the server sends back what it gets, the client measures.
'use strict';

const { performance } = require('node:perf_hooks');
const program = require('./program');

const USAGE = `usage: node latency.js --local IP [--remote IP] [--size BYTES] [--count N] [--warmup N]
                       [--port N] [--protocol udp|tcp] [--json]

  --local IP      the address of the machnet sidecar here
  --remote IP     measure against the server there; without it, be the server (until it is stopped)
  --size BYTES    of a message, 4 to 8388608 (default 64)
  --count N       round trips that count (default 10000)
  --warmup N      round trips before them (default 1000)
  --port N        the server's port (default ${program.PORT})
  --protocol P    udp or tcp (default: MACHNET_PROTOCOL, else udp)
  --json          the result as one JSON object; times in microseconds`;

const MORE = {
  size: { type: 'string', default: '64' },
  count: { type: 'string', default: '10000' },
  warmup: { type: 'string', default: '1000' },
  json: { type: 'boolean' },
};
const PERCENTILES = { p50: 0.5, p90: 0.9, p99: 0.99, p999: 0.999 };
const ANSWER_US = 10e6; // longer than any retransmission that succeeds

function serve(channel, options) {
  channel.listen(options.local, options.port);
  console.error(`listening on ${options.local}:${options.port}`);
  for (;;) {
    try {
      const message = channel.recvWait();
      channel.send(message.flow, message.data);
    } catch (error) {
      // A client that went away is no reason to stop.
      if (error.flow === undefined) {
        throw error;
      }
      console.error(error.message);
    }
  }
}

function roundTrip(channel, flow, payload, number) {
  payload.writeUInt32BE(number);
  const begin = performance.now();
  channel.send(flow, payload);
  const answer = channel.recvWait(ANSWER_US);
  const end = performance.now();
  if (answer === null) {
    throw new Error(`no answer within ${ANSWER_US / 1e6} s`);
  }
  if (answer.data.length !== payload.length || answer.data.readUInt32BE() !== number) {
    throw new Error(`answer ${number} is not what was sent`);
  }
  return (end - begin) * 1e3;
}

function summary(samplesUs) {
  const sorted = samplesUs.slice().sort();
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  const round = (us) => Math.round(us * 1e3) / 1e3;
  const result = { min_us: round(sorted[0]) };
  for (const [name, share] of Object.entries(PERCENTILES)) {
    result[`${name}_us`] = round(at(share));
  }
  result.max_us = round(sorted[sorted.length - 1]);
  result.mean_us = round(sorted.reduce((sum, us) => sum + us, 0) / sorted.length);
  return result;
}

function measure(channel, options) {
  const flow = channel.connect(options.local, options.remote, options.port);
  const payload = Buffer.alloc(options.size);
  const samplesUs = new Float64Array(options.count);
  for (let i = 0; i < options.warmup; i++) {
    roundTrip(channel, flow, payload, i);
  }
  for (let i = 0; i < options.count; i++) {
    samplesUs[i] = roundTrip(channel, flow, payload, i);
  }
  const result = { count: options.count, size_bytes: options.size, ...summary(samplesUs) };
  if (options.json) {
    console.log(JSON.stringify(result));
    return;
  }
  console.log(`${result.count} round trips of ${result.size_bytes} bytes with ${flow.destination}`);
  for (const [name, value] of Object.entries(result)) {
    if (name.endsWith('_us')) {
      console.log(`  ${name.slice(0, -3).padEnd(5)} ${value.toFixed(1).padStart(10)} us`);
    }
  }
}

async function main(loadMachnet, options) {
  options.size = program.integer('size', options.size, 4, 8 * 1024 * 1024);
  options.count = program.integer('count', options.count, 1, 1e8);
  options.warmup = program.integer('warmup', options.warmup, 0, 1e8);
  const channel = loadMachnet().attach({ protocol: options.protocol });
  try {
    if (options.remote === undefined) {
      serve(channel, options);
    } else {
      measure(channel, options);
    }
  } finally {
    channel.close();
  }
}

program.run(USAGE, MORE, main);
