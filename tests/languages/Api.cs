// SPDX-License-Identifier: MIT
//
// The C# wrapper against a real sidecar: Api.exe IP PROTOCOL PORT. Prints the name of each check that
// holds; the first that does not ends it.
using System;
using System.Collections.Generic;
using System.Net;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading;
using Machnet;

internal static class Api
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(20);

    private static string ip;
    private static Protocol protocol;
    private static int port;

    private static int Main(string[] args)
    {
        ip = args[0];
        protocol = (Protocol)Enum.Parse(typeof(Protocol), args[1], true);
        port = int.Parse(args[2]);
        foreach (Action check in new Action[] { Layout, Sizes, Answers, Waiting, Failures, Closed, Threads, Collector })
        {
            check();
            Console.WriteLine(check.Method.Name);
        }
        return 0;
    }

    private static void Hold(bool condition, string what)
    {
        if (!condition)
        {
            throw new Exception("does not hold: " + what);
        }
    }

    private static void Fails(string code, Action call)
    {
        try
        {
            call();
        }
        catch (MachnetException error) when (error.Code == code)
        {
            Hold(error.Message.StartsWith(code + ": "), error.Message);
            return;
        }
        throw new Exception("no " + code);
    }

    private static void Throws<T>(Action call)
        where T : Exception
    {
        try
        {
            call();
        }
        catch (T)
        {
            return;
        }
        throw new Exception("no " + typeof(T).Name);
    }

    // Two channels of one sidecar, and a flow from the second to the first.
    private static void Pair(Action<Channel, Channel, Flow> body)
    {
        using (Channel server = Channel.Attach(protocol), client = Channel.Attach(protocol))
        {
            server.Listen(ip, ++port);
            body(server, client, client.Connect(ip, ip, port));
        }
    }

    private static void Layout()
    {
        Hold(Marshal.SizeOf(typeof(Flow)) == 12, "bytes of a Flow");
        Hold(Channel.Version.Split('.').Length == 3, Channel.Version);
        var source = new IPEndPoint(IPAddress.Parse("10.1.2.3"), 40000);
        var flow = new Flow(source, new IPEndPoint(IPAddress.Parse("255.0.0.1"), 65535));
        Hold(flow.ToString() == "10.1.2.3:40000 -> 255.0.0.1:65535", flow.ToString());
        var same = new Flow(flow.Source, flow.Destination);
        Hold(flow.Equals(same) && flow.GetHashCode() == same.GetHashCode(), "equal flows are equal");
        Hold(!flow.Equals(new Flow(flow.Destination, flow.Source)), "the other direction is another");
    }

    private static void Sizes()
    {
        Pair((server, client, flow) =>
        {
            var ids = new HashSet<ulong>();
            foreach (int size in new[] { 1, 2, 64, 65536, 65537, 8 * 1024 * 1024, 3 })
            {
                var data = new byte[size];
                for (int i = 0; i < size; i += 4099)
                {
                    data[i] = (byte)(i % 251);
                }
                ids.Add(client.Send(flow, data));
                Message message = server.Receive(Patience);
                Hold(message.Data.Length == size, size + " bytes, not " + message.Data.Length);
                for (int i = 0; i < size; i++)
                {
                    Hold(message.Data[i] == data[i], "byte " + i);
                }
                Hold(message.Flow.Equals(flow), message.Flow + " is " + flow);
            }
            Hold(ids.Count == 7 && !ids.Contains(0), "numbers are unique and never 0");
            if (protocol == Protocol.Udp)
            {
                Fails("EINVAL", () => client.Send(flow, new byte[0]));
            }
            else
            {
                client.Send(flow, new byte[0]);
                Hold(server.Receive(Patience).Data.Length == 0, "an empty message");
            }
            client.Send(flow, new ArraySegment<byte>(Encoding.ASCII.GetBytes("part of it"), 5, 2));
            Hold(Encoding.ASCII.GetString(server.Receive(Patience).Data) == "of", "a part of an array");
        });
    }

    private static void Answers()
    {
        Pair((server, client, flow) =>
        {
            client.Send(flow, new byte[] { 1 });
            server.Send(server.Receive(Patience).Flow, new byte[] { 2, 3 });
            Message answer = client.Receive(Patience);
            Hold(answer.Data.Length == 2, "the answer");
            Hold(answer.Flow.Equals(new Flow(flow.Destination, flow.Source)), "the answer's flow");
            client.Send(answer.Flow, new byte[3]);
            Hold(server.Receive(Timeout.InfiniteTimeSpan).Data.Length == 3, "on the flow as it was received");
        });
    }

    private static void Waiting()
    {
        Pair((server, client, flow) =>
        {
            Hold(server.Receive() == null, "nothing there");
            Hold(server.Receive(TimeSpan.Zero) == null, "nothing at once");
            Hold(server.Receive(TimeSpan.FromMilliseconds(2)) == null, "nothing in time");
            Hold(server.Fd >= 0, "a descriptor");
            client.Send(flow, new byte[1]);
            Hold(server.Receive(Patience) != null, "a message");
        });
    }

    private static void Failures()
    {
        Pair((server, client, flow) =>
        {
            Fails("ECONNREFUSED", () => client.Connect(ip, ip, 9));
            Fails("EADDRNOTAVAIL", () => client.Connect("10.99.99.99", ip, 9));
            Fails("EINVAL", () => client.Connect("nonsense", ip, 9));
            Fails("EADDRINUSE", () => server.Listen(ip, port));
            Fails("ENOENT", () => server.Unlisten(ip, 9));
            Fails("EMSGSIZE", () => client.Send(flow, new byte[8 * 1024 * 1024 + 1]));
            Fails("ENOTCONN", () => client.CloseFlow(new Flow(flow.Source, new IPEndPoint(IPAddress.Parse(ip), 1))));
            Throws<ArgumentOutOfRangeException>(() => client.Connect(ip, ip, 65536));
            server.Unlisten(ip, port);
            Fails("ECONNREFUSED", () => client.Connect(ip, ip, port));
        });
    }

    private static void Closed()
    {
        Pair((server, client, flow) =>
        {
            client.Send(flow, new byte[1]);
            Hold(client.FlowError(flow) == null, "it lives");
            client.CloseFlow(flow);
            Flow back = server.Receive(Patience).Flow;
            while (server.FlowError(back) == null)
            {
                Hold(server.Receive(TimeSpan.FromMilliseconds(1)) == null, "nothing more");
            }
            Hold(server.FlowError(back) == "ENOTCONN", server.FlowError(back));
            Fails("ENOTCONN", () => server.Send(back, new byte[1]));
        });
        Channel channel = Channel.Attach();
        channel.Dispose();
        channel.Dispose();
        Throws<ObjectDisposedException>(() => channel.Receive());
    }

    private static void Threads()
    {
        using (Channel server = Channel.Attach(protocol))
        {
            server.Listen(ip, ++port);
            var thread = new Thread(() =>
            {
                using (Channel client = Channel.Attach(protocol))
                {
                    client.Send(client.Connect(ip, ip, port), new byte[7]);
                }
            });
            thread.Start();
            Hold(server.Receive(Patience).Data.Length == 7, "from another thread");
            thread.Join();
        }
    }

    // The collector stops threads by signals, also one that waits in C; and it moves arrays.
    private static void Collector()
    {
        Pair((server, client, flow) =>
        {
            bool[] stop = { false };
            var thread = new Thread(() =>
            {
                while (!Volatile.Read(ref stop[0]))
                {
                    GC.Collect();
                    Thread.Yield();
                }
            });
            thread.Start();
            for (int i = 0; i < 20; i++)
            {
                Hold(server.Receive(TimeSpan.FromMilliseconds(1)) == null, "nothing there");
                client.Send(flow, Encoding.ASCII.GetBytes("number " + i));
                Hold(Encoding.ASCII.GetString(server.Receive(Patience).Data) == "number " + i, "message " + i);
            }
            Volatile.Write(ref stop[0], true);
            thread.Join();
        });
    }
}
