// SPDX-License-Identifier: MIT
//
// libmachnet_shim.so: where it is, its functions and structs.
using System;
using System.Collections.Generic;
using System.IO;
using System.Runtime.InteropServices;

namespace Machnet
{
    /// <summary>struct MachnetMsgHdr.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct MsgHdr
    {
        internal uint MsgSize;
        internal Flow Flow;
        internal IntPtr Iov;
        internal UIntPtr IovLen;
        internal ushort Flags;
    }

    /// <summary>struct MachnetIovec.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct Iovec
    {
        internal IntPtr Base;
        internal UIntPtr Len;
    }

    internal static class Native
    {
        internal const int MsgMaxBytes = 8 * 1024 * 1024;

        // MACHNET_NO_EINTR: the runtime stops its threads by signals, which must not end a wait.
        internal const ushort NoEintr = 0x100;

        private const string FileName = "libmachnet_shim.so";
        private const int RtldNow = 2;
        private const int RtldGlobal = 0x100;

        // The library is loaded from where it was found, and the imports are led to it: in .NET by a
        // resolver; Mono has none, but looks through all that the process has loaded.
#if NET
        private const string Shim = "machnet_shim";
#else
        private const string Shim = "__Internal";
#endif

        private static readonly object Lock = new object();
        private static IntPtr handle;

        internal static string LoadedFrom { get; private set; }

        [DllImport(Shim, EntryPoint = "machnet_init", SetLastError = true)]
        internal static extern int Init();

        [DllImport(Shim, EntryPoint = "machnet_attach", SetLastError = true)]
        internal static extern IntPtr Attach();

        [DllImport(Shim, EntryPoint = "machnet_detach", SetLastError = true)]
        internal static extern int Detach(IntPtr ctx);

        [DllImport(Shim, EntryPoint = "machnet_fd", SetLastError = true)]
        internal static extern int Fd(IntPtr ctx);

        [DllImport(Shim, EntryPoint = "machnet_version")]
        internal static extern IntPtr Version();

        [DllImport(Shim, EntryPoint = "machnet_listen_proto", SetLastError = true)]
        internal static extern int Listen(IntPtr ctx, string ip, ushort port, int protocol);

        [DllImport(Shim, EntryPoint = "machnet_unlisten", SetLastError = true)]
        internal static extern int Unlisten(IntPtr ctx, string ip, ushort port);

        [DllImport(Shim, EntryPoint = "machnet_connect_proto", SetLastError = true)]
        internal static extern int Connect(
            IntPtr ctx, string localIp, string remoteIp, ushort port, out Flow flow, int protocol);

        [DllImport(Shim, EntryPoint = "machnet_close", SetLastError = true)]
        internal static extern int Close(IntPtr ctx, Flow flow);

        [DllImport(Shim, EntryPoint = "machnet_flow_error", SetLastError = true)]
        internal static extern int FlowError(IntPtr ctx, Flow flow);

        [DllImport(Shim, EntryPoint = "machnet_send", SetLastError = true)]
        internal static extern int Send(IntPtr ctx, Flow flow, IntPtr data, UIntPtr bytes, out ulong msgId);

        [DllImport(Shim, EntryPoint = "machnet_recvmsg", SetLastError = true)]
        internal static extern int Recv(IntPtr ctx, ref MsgHdr header);

        [DllImport(Shim, EntryPoint = "machnet_recv_wait", SetLastError = true)]
        internal static extern int RecvWait(IntPtr ctx, ref MsgHdr header, long timeoutUs);

        [DllImport("libdl.so.2", EntryPoint = "dlopen")]
        private static extern IntPtr DlOpen(string path, int flags);

        [DllImport("libdl.so.2", EntryPoint = "dlsym")]
        private static extern IntPtr DlSym(IntPtr handle, string name);

        [DllImport("libdl.so.2", EntryPoint = "dlerror")]
        private static extern IntPtr DlError();

        /// <summary>
        /// To be called before any method that calls one of the functions above. Throws a
        /// DllNotFoundException.
        /// </summary>
        internal static void Load()
        {
            lock (Lock)
            {
                if (handle != IntPtr.Zero)
                {
                    return;
                }
                string path;
                IntPtr opened = Open(out path);
                if (DlSym(opened, "machnet_recv_wait") == IntPtr.Zero)
                {
                    throw new DllNotFoundException(
                        path + " is not machnet's library, or an old one: it has no machnet_recv_wait");
                }
#if NET
                NativeLibrary.SetDllImportResolver(
                    typeof(Native).Assembly, (name, assembly, search) => name == Shim ? opened : IntPtr.Zero);
#endif
                LoadedFrom = path;
                handle = opened;
            }
        }

        private static IntPtr Open(out string path)
        {
            List<string> places = Candidates();
            foreach (string place in places)
            {
                bool bySystem = place == FileName;
                if (!bySystem && !File.Exists(place))
                {
                    continue;
                }
                IntPtr handle = DlOpen(place, RtldNow | RtldGlobal);
                if (handle != IntPtr.Zero)
                {
                    path = place;
                    return handle;
                }
                if (!bySystem)
                {
                    throw new DllNotFoundException("cannot load " + place + ": " + Marshal.PtrToStringAnsi(DlError()));
                }
            }
            string hint = string.IsNullOrEmpty(Environment.GetEnvironmentVariable("MACHNET_LIB"))
                ? "build it with ./build_shim.sh, or say in MACHNET_LIB where it is"
                : "MACHNET_LIB names it";
            string where = string.Join(", ", places);
            throw new DllNotFoundException(FileName + " not found (" + hint + "); looked for: " + where);
        }

        // In this order. What MACHNET_LIB names is not second-guessed. `dotnet run` puts the program
        // under the project's folder; then that folder and the repository's root count too.
        private static List<string> Candidates()
        {
            string named = Environment.GetEnvironmentVariable("MACHNET_LIB");
            if (!string.IsNullOrEmpty(named))
            {
                string file = Directory.Exists(named) ? Path.Combine(named, FileName) : named;
                return new List<string> { Path.GetFullPath(file) };
            }
            string own = AppDomain.CurrentDomain.BaseDirectory;
            var places = new List<string> { Path.Combine(own, FileName) };
            for (var folder = new DirectoryInfo(own); folder != null; folder = folder.Parent)
            {
                if (File.Exists(Path.Combine(folder.FullName, "HelloWorld.csproj")))
                {
                    places.Add(Path.Combine(folder.FullName, FileName));
                    places.Add(Path.GetFullPath(Path.Combine(folder.FullName, "..", "..", FileName)));
                    break;
                }
            }
            places.Add(FileName);
            return places;
        }
    }
}
