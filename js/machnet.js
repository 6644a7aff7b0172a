// SPDX-License-Identifier: MIT
//
// machnet for Node.js: a thin wrapper around libmachnet_shim.so. See machnet.d.ts for what each
// call does, docs/languages.md for how to begin.
'use strict';

const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const util = require('node:util');
const koffi = require('koffi');

const LIBRARY = 'libmachnet_shim.so';
const SOCKET_DEFAULT = '/var/run/machnet/machnet_ctrl.sock'; // MN_CTRL_SOCKET
const MSG_MAX_BYTES = 8 * 1024 * 1024;
const BUFFER_BYTES = 64 * 1024; // of a new channel; it grows with the messages
const PROTOCOLS = { udp: 0, tcp: 1, stream: 2 };
const NO_EINTR = 0x100; // beside a protocol: a signal (of a child's end, say) does not end the call

// struct MachnetMsgHdr and struct MachnetIovec on 64-bit machines: machnet.h asserts these offsets.
const HDR_BYTES = 40;
const HDR_FLOW = 4;
const HDR_IOV = 16;
const HDR_IOVLEN = 24;
const IOV_BYTES = 16;
const FLOW_BYTES = 12;

const FlowStruct = koffi.struct({
  srcIp: 'uint32_t',
  dstIp: 'uint32_t',
  srcPort: 'uint16_t',
  dstPort: 'uint16_t',
});
const ContextPointer = koffi.pointer(koffi.opaque());

const PROTOTYPES = {
  machnet_init: ['int', []],
  machnet_attach: [ContextPointer, []],
  machnet_detach: ['int', [ContextPointer]],
  machnet_fd: ['int', [ContextPointer]],
  machnet_version: ['str', []],
  machnet_listen_proto: ['int', [ContextPointer, 'str', 'uint16_t', 'int']],
  machnet_unlisten: ['int', [ContextPointer, 'str', 'uint16_t']],
  machnet_connect_proto: ['int', [ContextPointer, 'str', 'str', 'uint16_t', 'void *', 'int']],
  machnet_close: ['int', [ContextPointer, FlowStruct]],
  machnet_flow_error: ['int', [ContextPointer, FlowStruct]],
  machnet_send: ['int', [ContextPointer, FlowStruct, 'void *', 'size_t', 'void *']],
  machnet_recvmsg: ['int', [ContextPointer, 'void *']],
  machnet_recv_wait: ['int', [ContextPointer, 'void *', 'int64_t']],
};

class MachnetError extends Error {
  constructor(errno, syscall, text, flow) {
    const code = errnoName(errno);
    const known = util.getSystemErrorMap().get(-errno);
    super(`${code}: ${known ? known[1] : `error ${errno}`}, ${text ?? syscall}`);
    this.name = 'MachnetError';
    this.code = code;
    this.errno = -errno; // negative, as everywhere in Node.js
    this.syscall = syscall;
    if (flow !== undefined) {
      this.flow = flow;
    }
  }
}

function errnoName(errno) {
  for (const [name, number] of Object.entries(os.constants.errno)) {
    if (number === errno) {
      return name;
    }
  }
  return `E${errno}`;
}

class Flow {
  constructor(srcIp, dstIp, srcPort, dstPort) {
    this.srcIp = srcIp;
    this.dstIp = dstIp;
    this.srcPort = srcPort;
    this.dstPort = dstPort;
  }

  get source() {
    return `${dotted(this.srcIp)}:${this.srcPort}`;
  }

  get destination() {
    return `${dotted(this.dstIp)}:${this.dstPort}`;
  }

  toString() {
    return `${this.source} -> ${this.destination}`;
  }
}

function dotted(ip) {
  return [ip >>> 24, (ip >>> 16) & 255, (ip >>> 8) & 255, ip & 255].join('.');
}

// ---- the library --------------------------------------------------------------------------------

// Where the library may be, in this order. What MACHNET_LIB names is not second-guessed.
function candidates() {
  const named = process.env.MACHNET_LIB;
  if (named) {
    const isFolder = fs.statSync(named, { throwIfNoEntry: false })?.isDirectory();
    return [path.resolve(isFolder ? path.join(named, LIBRARY) : named)];
  }
  return [path.join(__dirname, LIBRARY), path.join(__dirname, '..', LIBRARY), LIBRARY];
}

function open(candidate) {
  if (candidate !== LIBRARY && !fs.existsSync(candidate)) {
    return null;
  }
  try {
    return koffi.load(candidate);
  } catch (error) {
    if (candidate === LIBRARY && /No such file/.test(error.message)) {
      return null;
    }
    throw new Error(`cannot load ${candidate}: ${error.message}`);
  }
}

function bind(library, where) {
  const bound = { path: where };
  for (const [name, [result, parameters]] of Object.entries(PROTOTYPES)) {
    try {
      bound[name] = library.func(name, result, parameters);
    } catch (error) {
      throw new Error(`${where} is not machnet's library, or an old one: ${error.message}`);
    }
  }
  return bound;
}

let loaded = null;

function library() {
  if (loaded === null) {
    const places = candidates();
    for (const place of places) {
      const found = open(place);
      if (found !== null) {
        loaded = bind(found, place);
        return loaded;
      }
    }
    const hint = process.env.MACHNET_LIB
      ? 'MACHNET_LIB names it'
      : 'build it with ./build_shim.sh, or say in MACHNET_LIB where it is';
    throw new Error(`${LIBRARY} not found (${hint}); looked for: ${places.join(', ')}`);
  }
  return loaded;
}

// ---- arguments ----------------------------------------------------------------------------------

function checkIp(value, what) {
  if (typeof value !== 'string' || !net.isIPv4(value)) {
    throw new TypeError(
      `${what} must be an IPv4 address such as '10.0.0.2', not ${util.inspect(value)}`,
    );
  }
}

function checkPort(value) {
  if (!Number.isInteger(value) || value < 1 || value > 65535) {
    throw new RangeError(`port must be a number from 1 to 65535, not ${util.inspect(value)}`);
  }
}

function protocolNumber(value) {
  if (!Object.hasOwn(PROTOCOLS, value)) {
    throw new TypeError(`protocol must be 'udp', 'tcp' or 'stream', not ${util.inspect(value)}`);
  }
  return PROTOCOLS[value];
}

function checkFlow(value) {
  const isFlow = value !== null && typeof value === 'object';
  if (!isFlow || !Number.isInteger(value.srcIp) || !Number.isInteger(value.dstPort)) {
    throw new TypeError(
      `flow must be what connect or a message has given, not ${util.inspect(value)}`,
    );
  }
}

function bytesOf(data) {
  if (typeof data === 'string') {
    return Buffer.from(data);
  }
  if (ArrayBuffer.isView(data)) {
    return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  }
  if (data instanceof ArrayBuffer) {
    return new Uint8Array(data);
  }
  throw new TypeError(
    `data must be a string, a Buffer, a typed array or an ArrayBuffer, not ${util.inspect(data)}`,
  );
}

// Microseconds for C, where a negative number means for ever.
function waitMicroseconds(value) {
  if (value === undefined || value === Infinity) {
    return -1;
  }
  if (typeof value !== 'number' || !(value >= 0)) {
    throw new RangeError(
      `timeoutUs must be a number of microseconds from 0 on, not ${util.inspect(value)}`,
    );
  }
  return Math.min(Math.ceil(value), Number.MAX_SAFE_INTEGER);
}

// ---- channels -----------------------------------------------------------------------------------

// The memory that recvmsg writes to: a header, one piece, and the piece's buffer. C has their
// addresses, so they live as long as the channel.
class Inbox {
  constructor() {
    const memory = new ArrayBuffer(HDR_BYTES + IOV_BYTES);
    this.header = new Uint8Array(memory, 0, HDR_BYTES);
    this.iov = new BigUint64Array(memory, HDR_BYTES, IOV_BYTES / 8);
    this.size = new Uint32Array(memory, 0, 1);
    this.ips = new Uint32Array(memory, HDR_FLOW, 2);
    this.ports = new Uint16Array(memory, HDR_FLOW + 8, 2);
    new BigUint64Array(memory, HDR_IOV, 1)[0] = koffi.address(this.iov);
    new BigUint64Array(memory, HDR_IOVLEN, 1)[0] = 1n;
    this.grow(BUFFER_BYTES);
  }

  grow(bytes) {
    this.buffer = Buffer.allocUnsafeSlow(bytes);
    this.iov[0] = koffi.address(this.buffer);
    this.iov[1] = BigInt(bytes);
  }

  get flow() {
    return new Flow(this.ips[0], this.ips[1], this.ports[0], this.ports[1]);
  }

  get hasFlow() {
    return this.ips[0] !== 0 || this.ips[1] !== 0;
  }

  get data() {
    return Buffer.from(this.buffer.subarray(0, this.size[0]));
  }
}

class Channel {
  #lib;
  #ctx;
  #inbox = new Inbox();
  #msgId = new BigUint64Array(1);
  #poll = null;
  #waiters = [];
  #protocol;

  constructor(lib, ctx, protocol) {
    this.#lib = lib;
    this.#ctx = ctx;
    this.#protocol = protocolNumber(protocol);
  }

  #context(syscall) {
    if (this.#ctx === null) {
      throw new MachnetError(
        os.constants.errno.EBADF,
        syscall,
        `${syscall}: the channel is closed`,
      );
    }
    return this.#ctx;
  }

  #transport(options) {
    const number =
      options.protocol === undefined ? this.#protocol : protocolNumber(options.protocol);
    return number | NO_EINTR;
  }

  listen(localIp, port, options = {}) {
    checkIp(localIp, 'localIp');
    checkPort(port);
    const protocol = this.#transport(options);
    if (this.#lib.machnet_listen_proto(this.#context('listen'), localIp, port, protocol) < 0) {
      throw new MachnetError(koffi.errno(), 'listen', `listen ${localIp}:${port}`);
    }
  }

  unlisten(localIp, port) {
    checkIp(localIp, 'localIp');
    checkPort(port);
    if (this.#lib.machnet_unlisten(this.#context('unlisten'), localIp, port) < 0) {
      throw new MachnetError(koffi.errno(), 'unlisten', `unlisten ${localIp}:${port}`);
    }
  }

  connect(localIp, remoteIp, port, options = {}) {
    checkIp(localIp, 'localIp');
    checkIp(remoteIp, 'remoteIp');
    checkPort(port);
    const protocol = this.#transport(options);
    const ctx = this.#context('connect');
    const out = new ArrayBuffer(FLOW_BYTES);
    const raw = new Uint8Array(out);
    if (this.#lib.machnet_connect_proto(ctx, localIp, remoteIp, port, raw, protocol) < 0) {
      throw new MachnetError(koffi.errno(), 'connect', `connect ${localIp} -> ${remoteIp}:${port}`);
    }
    const [srcIp, dstIp] = new Uint32Array(out, 0, 2);
    const [srcPort, dstPort] = new Uint16Array(out, 8, 2);
    return new Flow(srcIp, dstIp, srcPort, dstPort);
  }

  #send(flow, data) {
    checkFlow(flow);
    const bytes = bytesOf(data);
    const rc = this.#lib.machnet_send(
      this.#context('send'),
      flow,
      bytes,
      bytes.byteLength,
      this.#msgId,
    );
    if (rc < 0) {
      throw new MachnetError(
        koffi.errno(),
        'send',
        `send of ${bytes.byteLength} bytes, ${flow}`,
        flow,
      );
    }
    return rc;
  }

  send(flow, data) {
    this.#send(flow, data);
    return this.#msgId[0];
  }

  write(flow, data) {
    return this.#send(flow, data);
  }

  // What the answer of recvmsg and recv_wait means; undefined: the buffer was too small, ask again.
  #received(rc, syscall) {
    const inbox = this.#inbox;
    if (rc > 0) {
      return { data: inbox.data, flow: inbox.flow };
    }
    if (rc === 0) {
      return null;
    }
    const errno = koffi.errno();
    const larger = inbox.size[0] > inbox.buffer.length && inbox.size[0] <= MSG_MAX_BYTES;
    if (errno === os.constants.errno.EMSGSIZE && larger) {
      inbox.grow(inbox.size[0]);
      return undefined;
    }
    if (!inbox.hasFlow) {
      throw new MachnetError(errno, syscall);
    }
    const flow = inbox.flow;
    throw new MachnetError(errno, syscall, `${syscall}: the flow ${flow} has ended`, flow);
  }

  recv() {
    for (;;) {
      const rc = this.#lib.machnet_recvmsg(this.#context('recv'), this.#inbox.header);
      const result = this.#received(rc, 'recv');
      if (result !== undefined) {
        return result;
      }
    }
  }

  recvWait(timeoutUs) {
    const limit = waitMicroseconds(timeoutUs);
    const rc = this.#lib.machnet_recv_wait(this.#context('recv'), this.#inbox.header, limit);
    // A message that was too large is there already.
    return this.#received(rc, 'recv') ?? (rc === 0 ? null : this.recv());
  }

  get fd() {
    const fd = this.#lib.machnet_fd(this.#context('fd'));
    if (fd < 0) {
      throw new MachnetError(koffi.errno(), 'fd');
    }
    return fd;
  }

  receive(options = {}) {
    const { signal, timeoutMs } = options;
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      if (this.#waiters.length === 0) {
        const message = this.recv();
        if (message !== null) {
          resolve(message);
          return;
        }
      }
      const waiter = { resolve, reject };
      const leave = (reason) => {
        this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
        this.#watch();
        waiter.done();
        reject(reason);
      };
      const onAbort = () => leave(signal.reason);
      const onTimeout = () => leave(new MachnetError(os.constants.errno.ETIMEDOUT, 'receive'));
      const timer = timeoutMs === undefined ? undefined : setTimeout(onTimeout, timeoutMs);
      signal?.addEventListener('abort', onAbort, { once: true });
      waiter.done = () => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
      };
      this.#waiters.push(waiter);
      this.#watch();
    });
  }

  // The event loop looks at the descriptor only while somebody waits: so a program can end.
  #watch() {
    if (this.#waiters.length > 0 && this.#poll === null) {
      this.#poll = koffi.node.poll(this.fd, { readable: true }, () => this.#onReadable());
    } else if (this.#waiters.length === 0 && this.#poll !== null) {
      this.#poll.close();
      this.#poll = null;
    }
  }

  #onReadable() {
    while (this.#waiters.length > 0) {
      let message;
      let failure;
      try {
        message = this.recv();
      } catch (error) {
        failure = error;
      }
      if (message === null) {
        return;
      }
      const waiter = this.#waiters.shift();
      waiter.done();
      if (failure === undefined) {
        waiter.resolve(message);
      } else {
        waiter.reject(failure);
      }
    }
    this.#watch();
  }

  [Symbol.asyncIterator]() {
    return {
      next: async () => {
        if (this.#ctx === null) {
          return { done: true, value: undefined };
        }
        try {
          return { done: false, value: await this.receive() };
        } catch (error) {
          if (this.#ctx === null && error.code === 'EBADF') {
            return { done: true, value: undefined };
          }
          throw error;
        }
      },
      return: async () => ({ done: true, value: undefined }),
    };
  }

  flowError(flow) {
    checkFlow(flow);
    const rc = this.#lib.machnet_flow_error(this.#context('flow_error'), flow);
    if (rc < 0) {
      throw new MachnetError(koffi.errno(), 'flow_error', `flow_error ${flow}`, flow);
    }
    return rc === 0 ? null : errnoName(rc);
  }

  closeFlow(flow) {
    checkFlow(flow);
    if (this.#lib.machnet_close(this.#context('close'), flow) < 0) {
      throw new MachnetError(koffi.errno(), 'close', `close ${flow}`, flow);
    }
  }

  close() {
    if (this.#ctx === null) {
      return;
    }
    const ctx = this.#ctx;
    this.#ctx = null;
    const waiters = this.#waiters;
    this.#waiters = [];
    this.#watch();
    for (const waiter of waiters) {
      waiter.done();
      waiter.reject(
        new MachnetError(os.constants.errno.EBADF, 'receive', 'receive: the channel is closed'),
      );
    }
    if (this.#lib.machnet_detach(ctx) < 0) {
      throw new MachnetError(koffi.errno(), 'detach');
    }
  }
}

function attach(options = {}) {
  if (options.protocol !== undefined) {
    protocolNumber(options.protocol);
  }
  const lib = library();
  const where = process.env.MACHNET_SOCKET || `${SOCKET_DEFAULT}; MACHNET_SOCKET names another`;
  if (lib.machnet_init() < 0) {
    throw new MachnetError(koffi.errno(), 'init', `no connection to the sidecar (${where})`);
  }
  const ctx = lib.machnet_attach();
  if (ctx === null) {
    throw new MachnetError(koffi.errno(), 'attach', `no channel from the sidecar (${where})`);
  }
  // What else MACHNET_PROTOCOL may say, machnet_attach has refused.
  return new Channel(lib, ctx, options.protocol ?? (process.env.MACHNET_PROTOCOL || 'udp'));
}

module.exports = {
  attach,
  Channel,
  Flow,
  MachnetError,
  MSG_MAX_BYTES,
  libraryPath: () => library().path,
  version: () => library().machnet_version(),
};
