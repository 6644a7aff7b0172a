// SPDX-License-Identifier: MIT
//
// machnet for C#: a thin wrapper around libmachnet_shim.so, on .NET 8 (and later) and on Mono.
using System;
using System.Net;
using System.Net.Sockets;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Machnet
{
    /// <summary>Transports.</summary>
    public enum Protocol
    {
        /// <summary>machnet's own reliable messages, between machnet hosts.</summary>
        Udp = 0,

        /// <summary>Messages over TCP, each with its length in front.</summary>
        Tcp = 1,

        /// <summary>The bytes of a TCP connection.</summary>
        Stream = 2,
    }

    /// <summary>
    /// A connection by its addresses, in host byte order, source first: Connect gives this side as the
    /// source, a message its sender. Every call takes either.
    /// </summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Flow : IEquatable<Flow>
    {
        private readonly uint srcIp;
        private readonly uint dstIp;
        private readonly ushort srcPort;
        private readonly ushort dstPort;

        public Flow(IPEndPoint source, IPEndPoint destination)
        {
            srcIp = Number(source.Address);
            dstIp = Number(destination.Address);
            srcPort = (ushort)source.Port;
            dstPort = (ushort)destination.Port;
        }

        public IPEndPoint Source
        {
            get { return new IPEndPoint(Address(srcIp), srcPort); }
        }

        public IPEndPoint Destination
        {
            get { return new IPEndPoint(Address(dstIp), dstPort); }
        }

        internal bool IsZero
        {
            get { return srcIp == 0 && dstIp == 0; }
        }

        public bool Equals(Flow other)
        {
            return srcIp == other.srcIp && dstIp == other.dstIp && srcPort == other.srcPort && dstPort == other.dstPort;
        }

        public override bool Equals(object other)
        {
            return other is Flow && Equals((Flow)other);
        }

        public override int GetHashCode()
        {
            return (int)(srcIp ^ (dstIp << 7) ^ (dstIp >> 25) ^ ((uint)srcPort << 16) ^ dstPort);
        }

        public override string ToString()
        {
            return Source + " -> " + Destination;
        }

        private static uint Number(IPAddress address)
        {
            if (address.AddressFamily != AddressFamily.InterNetwork)
            {
                throw new ArgumentException("an IPv4 address is needed, not " + address);
            }
            byte[] bytes = address.GetAddressBytes();
            return ((uint)bytes[0] << 24) | ((uint)bytes[1] << 16) | ((uint)bytes[2] << 8) | bytes[3];
        }

        private static IPAddress Address(uint ip)
        {
            return new IPAddress(new[] { (byte)(ip >> 24), (byte)(ip >> 16), (byte)(ip >> 8), (byte)ip });
        }
    }

    /// <summary>A received message.</summary>
    public sealed class Message
    {
        internal Message(byte[] data, Flow flow)
        {
            Data = data;
            Flow = flow;
        }

        /// <summary>A copy, which is the caller's.</summary>
        public byte[] Data { get; }

        /// <summary>Sender first; the handle for an answer.</summary>
        public Flow Flow { get; }
    }

    /// <summary>
    /// A connection of one thread to the sidecar. What fails throws a MachnetException; Dispose gives
    /// the channel back: what was sent still goes out.
    /// </summary>
    public sealed class Channel : IDisposable
    {
        private const int BufferBytes = 64 * 1024;
        private const string SocketDefault = "/var/run/machnet/machnet_ctrl.sock"; // MN_CTRL_SOCKET

        // What recvmsg writes to: a piece and its buffer, where the garbage collector moves nothing.
        private IntPtr iov;
        private IntPtr buffer;
        private int bufferBytes;
        private IntPtr context;

        private Channel(IntPtr context, Protocol protocol)
        {
            this.context = context;
            Protocol = protocol;
            iov = Marshal.AllocHGlobal(Marshal.SizeOf(typeof(Iovec)));
            Grow(BufferBytes);
        }

        /// <summary>The transport of Listen and Connect where they are not told another.</summary>
        public Protocol Protocol { get; set; }

        /// <summary>The library's version.</summary>
        public static string Version
        {
            get
            {
                Native.Load();
                return VersionOfLoaded();
            }
        }

        /// <summary>
        /// Where libmachnet_shim.so was found: MACHNET_LIB (a file or its folder), else beside the
        /// program, in the project's folder, in the repository's root, or where the system looks.
        /// </summary>
        public static string LibraryPath
        {
            get
            {
                Native.Load();
                return Native.LoadedFrom;
            }
        }

        /// <summary>A descriptor that polls readable (level-triggered) when there may be a message.</summary>
        public int Fd
        {
            get { return Check(Native.Fd(Context), "fd"); }
        }

        private IntPtr Context
        {
            get
            {
                if (context == IntPtr.Zero)
                {
                    throw new ObjectDisposedException("Machnet.Channel");
                }
                return context;
            }
        }

        /// <summary>
        /// A new channel of the sidecar at MACHNET_SOCKET, else at the default socket; null: the
        /// transport that MACHNET_PROTOCOL names, else Udp. ECONNREFUSED: there is no sidecar; EACCES: it
        /// does not want us; EPROTO: it is of another version; EDQUOT, ENOSPC: there are too many.
        /// </summary>
        public static Channel Attach(Protocol? protocol = null)
        {
            Native.Load();
            return AttachLoaded(protocol);
        }

        // Mono looks for what is imported when it compiles the method that calls it: hence methods that
        // are compiled only after the library was loaded.
        [MethodImpl(MethodImplOptions.NoInlining)]
        private static string VersionOfLoaded()
        {
            return Marshal.PtrToStringAnsi(Native.Version());
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static Channel AttachLoaded(Protocol? protocol)
        {
            string socket = Environment.GetEnvironmentVariable("MACHNET_SOCKET");
            string where = string.IsNullOrEmpty(socket) ? SocketDefault + "; MACHNET_SOCKET names another" : socket;
            Check(Native.Init(), "no connection to the sidecar (" + where + ")");
            IntPtr context = Native.Attach();
            if (context == IntPtr.Zero)
            {
                throw new MachnetException(Marshal.GetLastWin32Error(), "no channel from the sidecar (" + where + ")");
            }
            return new Channel(context, protocol ?? DefaultProtocol());
        }

        /// <summary>
        /// Takes connections; their flows show up with their first message. EADDRNOTAVAIL: not an address
        /// of the sidecar ("0.0.0.0" is all of them); EADDRINUSE.
        /// </summary>
        public void Listen(string localIp, int port, Protocol? protocol = null)
        {
            int number = (int)(protocol ?? Protocol) | Native.NoEintr;
            Check(Native.Listen(Context, localIp, Port(port), number), "listen " + localIp + ":" + port);
        }

        /// <summary>Takes no more of them. ENOENT: this channel does not listen there.</summary>
        public void Unlisten(string localIp, int port)
        {
            Check(Native.Unlisten(Context, localIp, Port(port)), "unlisten " + localIp + ":" + port);
        }

        /// <summary>
        /// Connects and waits for the peer's answer, 10 s at most. ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH,
        /// ENETUNREACH, EADDRNOTAVAIL.
        /// </summary>
        public Flow Connect(string localIp, string remoteIp, int port, Protocol? protocol = null)
        {
            Flow flow;
            int number = (int)(protocol ?? Protocol) | Native.NoEintr;
            int rc = Native.Connect(Context, localIp, remoteIp, Port(port), out flow, number);
            Check(rc, "connect " + localIp + " -> " + remoteIp + ":" + port);
            return flow;
        }

        /// <summary>
        /// Sends a message and never blocks: the data is copied. Returns its number, unique in the channel.
        /// EAGAIN: no room now, nothing was sent; EMSGSIZE: it can never fit; EINVAL: it is empty, over Udp;
        /// ENOTCONN, or the errno with which the flow has ended; EPIPE: the sidecar is gone.
        /// </summary>
        public ulong Send(Flow flow, byte[] data)
        {
            ulong id;
            Submit(flow, new ArraySegment<byte>(data), out id);
            return id;
        }

        /// <summary>The same with a part of an array.</summary>
        public ulong Send(Flow flow, ArraySegment<byte> data)
        {
            ulong id;
            Submit(flow, data, out id);
            return id;
        }

        /// <summary>Sends bytes on a Stream flow, as many as there is room for. Returns how many.</summary>
        public int Write(Flow flow, ArraySegment<byte> data)
        {
            ulong id;
            return Submit(flow, data, out id);
        }

        /// <summary>
        /// The next message of any flow, or null when there is none; never blocks. An exception with a
        /// Flow: that flow has ended (ECONNRESET, ETIMEDOUT, ...), which is reported once, behind its last
        /// message. EPIPE: the sidecar is gone.
        /// </summary>
        public Message Receive()
        {
            for (;;)
            {
                MsgHdr header = Header();
                int rc = Native.Recv(Context, ref header);
                if (rc >= 0)
                {
                    return rc == 0 ? null : Taken(ref header);
                }
                MakeRoom(ref header, Marshal.GetLastWin32Error());
            }
        }

        /// <summary>The same, but waits: null after the timeout (Timeout.InfiniteTimeSpan: for ever).</summary>
        public Message Receive(TimeSpan timeout)
        {
            MsgHdr header = Header();
            // A tick is 100 ns; what is left of a microsecond counts as one.
            long timeoutUs = timeout < TimeSpan.Zero ? -1 : (timeout.Ticks + 9) / 10;
            int rc = Native.RecvWait(Context, ref header, timeoutUs);
            if (rc >= 0)
            {
                return rc == 0 ? null : Taken(ref header);
            }
            MakeRoom(ref header, Marshal.GetLastWin32Error());
            return Receive();
        }

        /// <summary>
        /// null while the flow lives; "ENOTCONN" after the peer has closed it, or when there is no such
        /// flow; else the name of the errno with which it ended.
        /// </summary>
        public string FlowError(Flow flow)
        {
            int errno = Check(Native.FlowError(Context, flow), "flow_error " + flow, flow);
            return errno == 0 ? null : Errno.Name(errno);
        }

        /// <summary>Gives a flow up: what was sent still goes out. ENOTCONN: there is no such flow.</summary>
        public void CloseFlow(Flow flow)
        {
            Check(Native.Close(Context, flow), "close " + flow, flow);
        }

        public void Dispose()
        {
            if (context == IntPtr.Zero)
            {
                return;
            }
            int rc = Native.Detach(context);
            int errno = Marshal.GetLastWin32Error();
            context = IntPtr.Zero;
            Marshal.FreeHGlobal(iov);
            Marshal.FreeHGlobal(buffer);
            if (rc < 0)
            {
                throw new MachnetException(errno, "detach");
            }
        }

        private static int Check(int rc, string what, Flow? flow = null)
        {
            if (rc < 0)
            {
                throw new MachnetException(Marshal.GetLastWin32Error(), what, flow);
            }
            return rc;
        }

        // machnet_attach has refused any other name.
        private static Protocol DefaultProtocol()
        {
            switch (Environment.GetEnvironmentVariable("MACHNET_PROTOCOL"))
            {
                case "tcp":
                    return Protocol.Tcp;
                case "stream":
                    return Protocol.Stream;
                default:
                    return Protocol.Udp;
            }
        }

        private static ushort Port(int port)
        {
            if (port < 1 || port > 65535)
            {
                throw new ArgumentOutOfRangeException("port", port, "must be from 1 to 65535");
            }
            return (ushort)port;
        }

        private int Submit(Flow flow, ArraySegment<byte> data, out ulong id)
        {
            GCHandle pin = GCHandle.Alloc(data.Array, GCHandleType.Pinned);
            try
            {
                IntPtr begin = IntPtr.Add(pin.AddrOfPinnedObject(), data.Offset);
                int rc = Native.Send(Context, flow, begin, (UIntPtr)data.Count, out id);
                return rc < 0 ? Check(rc, "send of " + data.Count + " bytes, " + flow, flow) : rc;
            }
            finally
            {
                pin.Free();
            }
        }

        private MsgHdr Header()
        {
            return new MsgHdr { Iov = iov, IovLen = (UIntPtr)1, Flags = Native.NoEintr };
        }

        private Message Taken(ref MsgHdr header)
        {
            var data = new byte[header.MsgSize];
            Marshal.Copy(buffer, data, 0, data.Length);
            return new Message(data, header.Flow);
        }

        // A message that is larger than the buffer has stayed where it is; anything else is thrown.
        private void MakeRoom(ref MsgHdr header, int errno)
        {
            bool larger = header.MsgSize > bufferBytes && header.MsgSize <= Native.MsgMaxBytes;
            if (errno == Errno.EMSGSIZE && larger)
            {
                Grow((int)header.MsgSize);
                return;
            }
            if (header.Flow.IsZero)
            {
                throw new MachnetException(errno, "receive");
            }
            throw new MachnetException(errno, "receive: the flow " + header.Flow + " has ended", header.Flow);
        }

        private void Grow(int bytes)
        {
            Marshal.FreeHGlobal(buffer);
            buffer = IntPtr.Zero;
            buffer = Marshal.AllocHGlobal(bytes);
            bufferBytes = bytes;
            Marshal.StructureToPtr(new Iovec { Base = buffer, Len = (UIntPtr)bytes }, iov, false);
        }
    }
}
