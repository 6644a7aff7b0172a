// SPDX-License-Identifier: MIT
//
// Uses every declaration of machnet.d.ts; `npm run check` compiles it, nothing runs it.
import * as machnet from './machnet';

export async function everything(): Promise<string> {
  const channel: machnet.Channel = machnet.attach({ protocol: 'tcp' });
  channel.listen('10.0.0.2', 888);
  channel.listen('10.0.0.2', 80, { protocol: 'stream' });
  channel.unlisten('10.0.0.2', 80);
  const flow: machnet.Flow = channel.connect('10.0.0.2', '10.0.0.3', 888, { protocol: 'tcp' });
  const id: bigint = channel.send(flow, 'text') + channel.send(flow, Buffer.from('bytes'));
  const count: number = channel.write(flow, new Float64Array(3)) + channel.fd;
  const message: machnet.Message | null =
    channel.recv() ?? channel.recvWait(1000) ?? channel.recvWait();
  const awaited: machnet.Message = await channel.receive({
    timeoutMs: 5,
    signal: AbortSignal.timeout(5),
  });
  for await (const { data, flow: sender } of channel) {
    channel.send(
      new machnet.Flow(sender.srcIp, sender.dstIp, sender.srcPort, sender.dstPort),
      data,
    );
  }
  try {
    channel.closeFlow(flow);
  } catch (error) {
    if (error instanceof machnet.MachnetError && error.flow !== undefined) {
      return error.code + error.errno + error.syscall + error.flow.source + error.flow.destination;
    }
  }
  const ended: string | null = channel.flowError(awaited.flow);
  channel.close();
  return [
    machnet.libraryPath(),
    machnet.version(),
    machnet.MSG_MAX_BYTES,
    id,
    count,
    message?.data,
    ended,
  ].join();
}

// @ts-expect-error a transport that there is not
machnet.attach({ protocol: 'sctp' });
// @ts-expect-error only attach makes channels
new machnet.Channel();
// @ts-expect-error a number is no data
export const wrong = (channel: machnet.Channel, flow: machnet.Flow) => channel.send(flow, 5);
// @ts-expect-error what is received may be nothing
export const careless = (channel: machnet.Channel) => channel.recv().data;
