// SPDX-License-Identifier: MIT
//
// The JavaScript wrapper against a real sidecar: node api.js WRAPPER IP PROTOCOL PORT
'use strict';

const assert = require('node:assert/strict');
const test = require('node:test');
const { Worker, isMainThread, workerData } = require('node:worker_threads');

const [, , wrapper, ip, protocol, portText] = isMainThread ? process.argv : workerData;
const machnet = require(wrapper);
const PORT = Number(portText);
const failsWith = (code) => (error) => error instanceof machnet.MachnetError && error.code === code;

// Two channels of one sidecar, and a flow from the second to the first.
async function pair(port) {
  const server = machnet.attach({ protocol });
  const client = machnet.attach({ protocol });
  server.listen(ip, port);
  const flow = client.connect(ip, ip, port);
  client.send(flow, 'first');
  const { data, flow: back } = await server.receive({ timeoutMs: 20000 });
  assert.equal(data.toString(), 'first');
  return { server, client, flow, back };
}

function main() {
  let port = PORT;

  test('messages of any size up to 8 MiB arrive as they were, in order', async () => {
    const { server, client, flow } = await pair(port++);
    const largest = Buffer.alloc(machnet.MSG_MAX_BYTES);
    for (let at = 0; at < largest.length; at += 4099) {
      largest[at] = at % 251;
    }
    const words = new Uint16Array([1, 2, 0xffff]);
    const sent = ['Grüße', words, new Uint8Array([7, 8, 9]).buffer, largest, 'behind'];
    const ids = new Set();
    for (const data of sent) {
      ids.add(client.send(flow, data));
      const message = await server.receive({ timeoutMs: 20000 });
      const bytes = ArrayBuffer.isView(data)
        ? Buffer.from(data.buffer, data.byteOffset, data.byteLength)
        : Buffer.from(data);
      assert.ok(message.data.equals(bytes), `${bytes.length} bytes`);
      assert.equal(message.flow.source, flow.source);
      assert.equal(message.flow.destination, `${ip}:${port - 1}`);
    }
    assert.equal(ids.size, sent.length);
    if (protocol === 'udp') {
      assert.throws(() => client.send(flow, ''), failsWith('EINVAL')); // it has no empty messages
    } else {
      client.send(flow, '');
      assert.equal((await server.receive({ timeoutMs: 20000 })).data.length, 0);
    }
    assert.ok([...ids].every((id) => typeof id === 'bigint' && id > 0n));
    client.close();
    server.close();
  });

  test('what is received answers', async () => {
    const { server, client, flow, back } = await pair(port++);
    assert.equal(client.recv(), null);
    server.send(back, 'answer');
    const message = client.recvWait(20e6);
    assert.equal(message.data.toString(), 'answer');
    assert.equal(String(message.flow), `${flow.destination} -> ${flow.source}`);
    client.send(message.flow, 'and back');
    assert.equal(server.recvWait().data.toString(), 'and back');
    client.close();
    server.close();
  });

  test('waiting ends by a message, a time, a signal or a close', async () => {
    const { server, client, flow } = await pair(port++);
    assert.equal(server.recvWait(1000), null);
    assert.equal(server.recvWait(0), null);
    await assert.rejects(server.receive({ timeoutMs: 5 }), failsWith('ETIMEDOUT'));
    await assert.rejects(server.receive({ signal: AbortSignal.timeout(5) }), {
      name: 'TimeoutError',
    });
    await assert.rejects(server.receive({ signal: AbortSignal.abort() }), { name: 'AbortError' });
    const waiting = [server.receive(), server.receive()];
    client.send(flow, 'one');
    client.send(flow, 'two');
    assert.deepEqual(
      (await Promise.all(waiting)).map(({ data }) => data.toString()),
      ['one', 'two'],
    );
    const last = server.receive();
    server.close();
    await assert.rejects(last, failsWith('EBADF'));
    assert.throws(() => server.recv(), failsWith('EBADF'));
    server.close();
    client.close();
  });

  test('a loop over messages ends with the channel', async () => {
    const { server, client, flow } = await pair(port++);
    const seen = [];
    client.send(flow, 'a');
    client.send(flow, 'b');
    for await (const { data } of server) {
      seen.push(data.toString());
      if (seen.length === 2) {
        setImmediate(() => server.close());
      }
    }
    assert.deepEqual(seen, ['a', 'b']);
    client.close();
  });

  test('failures carry the name of the errno', async () => {
    const { server, client, flow } = await pair(port++);
    const free = 9;
    assert.throws(() => client.connect(ip, ip, free), failsWith('ECONNREFUSED'));
    assert.throws(() => client.connect('10.99.99.99', ip, free), failsWith('EADDRNOTAVAIL'));
    assert.throws(() => server.listen(ip, port - 1), failsWith('EADDRINUSE'));
    assert.throws(() => server.unlisten(ip, free), failsWith('ENOENT'));
    assert.throws(
      () => client.send(flow, Buffer.alloc(machnet.MSG_MAX_BYTES + 1)),
      failsWith('EMSGSIZE'),
    );
    const unknown = new machnet.Flow(flow.srcIp, flow.dstIp, 1, 2);
    assert.throws(
      () => client.send(unknown, 'x'),
      (error) => failsWith('ENOTCONN')(error) && error.flow === unknown,
    );
    assert.throws(() => client.closeFlow(unknown), failsWith('ENOTCONN'));
    try {
      client.connect(ip, ip, free);
      assert.fail('connected to nobody');
    } catch (error) {
      assert.ok(error instanceof Error);
      assert.equal(error.errno, -111);
      assert.equal(error.syscall, 'connect');
      assert.match(error.message, /^ECONNREFUSED: connection refused, connect .*:9$/);
    }
    server.unlisten(ip, port - 1);
    assert.throws(() => client.connect(ip, ip, port - 1), failsWith('ECONNREFUSED'));
    client.close();
    server.close();
  });

  test('a flow that was closed is known as such', async () => {
    const { server, client, flow, back } = await pair(port++);
    assert.equal(client.flowError(flow), null);
    client.send(flow, 'last');
    client.closeFlow(flow);
    assert.equal((await server.receive({ timeoutMs: 20000 })).data.toString(), 'last');
    while (server.flowError(back) === null) {
      assert.equal(server.recvWait(1000), null);
    }
    assert.equal(server.flowError(back), 'ENOTCONN');
    assert.throws(() => server.send(back, 'x'), failsWith('ENOTCONN'));
    client.close();
    server.close();
  });

  test('wrong arguments are named', () => {
    const channel = machnet.attach();
    const flow = new machnet.Flow(1, 2, 3, 4);
    const wrong = [
      [
        () => channel.listen('10.0.0.256', 1),
        TypeError,
        /localIp must be an IPv4 address.*'10\.0\.0\.256'/,
      ],
      [() => channel.listen(undefined, 1), TypeError, /not undefined/],
      [() => channel.connect(ip, '::1', 1), TypeError, /remoteIp .*'::1'/],
      [() => channel.connect(ip, ip, 65536), RangeError, /from 1 to 65535, not 65536/],
      [() => channel.connect(ip, ip, '888'), RangeError, /not '888'/],
      [
        () => channel.listen(ip, 1, { protocol: 'sctp' }),
        TypeError,
        /'udp', 'tcp' or 'stream', not 'sctp'/,
      ],
      [() => machnet.attach({ protocol: 'toString' }), TypeError, /not 'toString'/],
      [() => channel.send('10.0.0.1', 'x'), TypeError, /flow must be .*'10\.0\.0\.1'/],
      [() => channel.send(flow, 5), TypeError, /data must be .*not 5/],
      [() => channel.recvWait(-1), RangeError, /timeoutUs must be .*not -1/],
      [() => channel.recvWait(NaN), RangeError, /not NaN/],
    ];
    for (const [call, kind, message] of wrong) {
      assert.throws(call, (error) => error instanceof kind && message.test(error.message));
    }
    channel.close();
  });

  test('bytes of a stream', async () => {
    const server = machnet.attach();
    const client = machnet.attach({ protocol: 'stream' });
    server.listen(ip, port, { protocol: 'stream' });
    const flow = client.connect(ip, ip, port++);
    assert.equal(client.write(flow, 'bytes'), 5);
    assert.equal((await server.receive({ timeoutMs: 20000 })).data.toString(), 'bytes');
    client.close();
    server.close();
  });

  test('a worker has channels of its own', async () => {
    const server = machnet.attach({ protocol });
    server.listen(ip, port);
    const worker = new Worker(__filename, {
      workerData: [null, null, wrapper, ip, protocol, port++],
    });
    const ended = new Promise((resolve) => worker.on('exit', resolve));
    assert.equal((await server.receive({ timeoutMs: 20000 })).data.toString(), 'from a worker');
    assert.equal(await ended, 0);
    server.close();
  });
}

if (isMainThread) {
  main();
} else {
  const channel = machnet.attach({ protocol });
  channel.send(channel.connect(ip, ip, PORT), 'from a worker');
  channel.close();
}
