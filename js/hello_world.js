// SPDX-License-Identifier: MIT
//
// A server waits for one message and prints it; with --remote, a client sends "Hello World!".
'use strict';

const program = require('./program');

const USAGE = `usage: node hello_world.js --local IP [--remote IP] [--port N] [--protocol udp|tcp]

  --local IP      the address of the machnet sidecar here
  --remote IP     send "Hello World!" to the server there; without it, be the server
  --port N        the server's port (default ${program.PORT})
  --protocol P    udp or tcp (default: MACHNET_PROTOCOL, else udp)`;

async function main(loadMachnet, options) {
  const machnet = loadMachnet();
  const channel = machnet.attach({ protocol: options.protocol });
  try {
    if (options.remote !== undefined) {
      const flow = channel.connect(options.local, options.remote, options.port);
      channel.send(flow, 'Hello World!');
      console.error(`sent to ${flow.destination}`);
    } else {
      channel.listen(options.local, options.port);
      console.error(`listening on ${options.local}:${options.port}`);
      const { data, flow } = await channel.receive();
      console.error(`received from ${flow.source}`);
      console.log(data.toString());
    }
  } finally {
    channel.close();
  }
}

program.run(USAGE, {}, main);
