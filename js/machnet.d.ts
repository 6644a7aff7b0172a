// SPDX-License-Identifier: MIT
//
// machnet for Node.js. What fails throws a MachnetError, with `code` as in the C interface; wrong
// arguments throw a TypeError or a RangeError that names the value.

/// <reference types="node" />

/**
 * Transports: `udp` is machnet's own reliable messages (between machnet hosts), `tcp` messages with
 * their length in front, `stream` the bytes of a TCP connection.
 */
export type Protocol = 'udp' | 'tcp' | 'stream';

/** What `send` takes; a string goes as UTF-8. */
export type Data = string | NodeJS.ArrayBufferView | ArrayBuffer;

/** A failed call: `code` is the name of an errno, `errno` its number, negative as in Node.js. */
export class MachnetError extends Error {
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;
  /** The flow that it is about; of a receiving call: the flow that has ended. */
  readonly flow?: Flow;
}

/**
 * A connection by its addresses (numbers, in host byte order), source first: `connect` gives this
 * side as the source, a message its sender. Every call takes either.
 */
export class Flow {
  constructor(srcIp: number, dstIp: number, srcPort: number, dstPort: number);
  readonly srcIp: number;
  readonly dstIp: number;
  readonly srcPort: number;
  readonly dstPort: number;
  /** As in `10.0.0.2:888`. */
  readonly source: string;
  readonly destination: string;
  toString(): string;
}

export interface Message {
  /** A copy, which is the caller's. */
  readonly data: Buffer;
  /** Sender first; the handle for an answer. */
  readonly flow: Flow;
}

export interface ProtocolOptions {
  /** Default: the channel's. */
  protocol?: Protocol;
}

export interface AttachOptions {
  /** Of `listen` and `connect` where they are not told another. Default: MACHNET_PROTOCOL, else udp. */
  protocol?: Protocol;
}

export interface ReceiveOptions {
  /** Milliseconds until ETIMEDOUT. Default: no limit. */
  timeoutMs?: number;
  /** Rejects with the signal's reason. */
  signal?: AbortSignal;
}

/** A connection of one thread to the sidecar; `attach` makes it. A worker attaches its own. */
export class Channel {
  private constructor();

  /**
   * Takes connections; their flows show up with their first message.
   * EADDRNOTAVAIL: not an address of the sidecar ('0.0.0.0' is all of them); EADDRINUSE.
   */
  listen(localIp: string, port: number, options?: ProtocolOptions): void;

  /** Takes no more of them. ENOENT: this channel does not listen there. */
  unlisten(localIp: string, port: number): void;

  /**
   * Connects. Blocks until the peer has answered, 10 s at most.
   * ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, EADDRNOTAVAIL.
   */
  connect(localIp: string, remoteIp: string, port: number, options?: ProtocolOptions): Flow;

  /**
   * Sends a message and never blocks: the data is copied. Returns its number, unique in the channel.
   * EAGAIN: no room now, nothing was sent; EMSGSIZE: it can never fit; EINVAL: it is empty, over udp;
   * ENOTCONN, or the errno with which the flow has ended; EPIPE: the sidecar is gone.
   */
  send(flow: Flow, data: Data): bigint;

  /** Sends bytes on a `stream` flow, as many as there is room for. Returns how many. */
  write(flow: Flow, data: Data): number;

  /**
   * The next message of any flow, or null when there is none; never blocks.
   * With `flow`: that flow has ended (ECONNRESET, ETIMEDOUT, ...), which is reported once, behind
   * its last message. EPIPE: the sidecar is gone.
   */
  recv(): Message | null;

  /**
   * The same, but waits, and the event loop with it. null after `timeoutUs` microseconds; without
   * a number it waits for ever. EINTR: a signal that the program handles came in.
   */
  recvWait(timeoutUs?: number): Message | null;

  /**
   * The same, but the event loop goes on. Several may be waiting: they are served in turn. ETIMEDOUT
   * after `timeoutMs`; EBADF when the channel is closed meanwhile.
   */
  receive(options?: ReceiveOptions): Promise<Message>;

  /**
   * Messages until the channel is closed. The end of a flow by an error is thrown as by `receive`;
   * a new loop goes on behind it.
   */
  [Symbol.asyncIterator](): AsyncIterator<Message, undefined>;

  /**
   * null while the flow lives; 'ENOTCONN' after the peer has closed it, or when there is no such
   * flow; else the name of the errno with which it ended.
   */
  flowError(flow: Flow): string | null;

  /** Gives a flow up: what was sent still goes out. ENOTCONN: there is no such flow. */
  closeFlow(flow: Flow): void;

  /** A descriptor that polls readable (level-triggered) when `recv` may have something. */
  readonly fd: number;

  /** Gives the channel back: what was sent still goes out. Again: nothing. */
  close(): void;
}

/**
 * A new channel of the sidecar at MACHNET_SOCKET, else at the default socket.
 * ECONNREFUSED: there is no sidecar; EACCES: it does not want us; EPROTO: it is of another version;
 * EDQUOT, ENOSPC: there are too many.
 */
export function attach(options?: AttachOptions): Channel;

/** Bytes of the largest message. */
export const MSG_MAX_BYTES: number;

/**
 * Where libmachnet_shim.so was found: MACHNET_LIB (a file or its folder), else beside machnet.js, in
 * the folder above, or where the system's loader looks.
 */
export function libraryPath(): string;

/** The library's version. */
export function version(): string;
