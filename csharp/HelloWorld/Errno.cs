// SPDX-License-Identifier: MIT
using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;

namespace Machnet
{
    /// <summary>A call of libmachnet_shim.so failed.</summary>
    public sealed class MachnetException : Exception
    {
        internal MachnetException(int errno, string what, Flow? flow = null)
            : base(Errno.Name(errno) + ": " + Errno.Text(errno) + ", " + what)
        {
            Number = errno;
            Flow = flow;
        }

        /// <summary>The name of the errno, as in "ECONNREFUSED".</summary>
        public string Code
        {
            get { return Errno.Name(Number); }
        }

        /// <summary>The errno.</summary>
        public int Number { get; }

        /// <summary>The flow that it is about; of Receive: the flow that has ended. Else null.</summary>
        public Flow? Flow { get; }
    }

    /// <summary>Linux's numbers of errors (x86, ARM, RISC-V), as far as machnet answers with them.</summary>
    internal static class Errno
    {
        internal const int EBADF = 9;
        internal const int EMSGSIZE = 90;

        private static readonly Dictionary<int, string> Names = new Dictionary<int, string>
        {
            { 1, "EPERM" }, { 2, "ENOENT" }, { 4, "EINTR" }, { 5, "EIO" }, { EBADF, "EBADF" },
            { 11, "EAGAIN" }, { 12, "ENOMEM" }, { 13, "EACCES" }, { 14, "EFAULT" }, { 16, "EBUSY" },
            { 17, "EEXIST" }, { 22, "EINVAL" }, { 23, "ENFILE" }, { 24, "EMFILE" }, { 28, "ENOSPC" },
            { 32, "EPIPE" }, { 71, "EPROTO" }, { 75, "EOVERFLOW" }, { EMSGSIZE, "EMSGSIZE" },
            { 93, "EPROTONOSUPPORT" }, { 95, "EOPNOTSUPP" }, { 98, "EADDRINUSE" }, { 99, "EADDRNOTAVAIL" },
            { 100, "ENETDOWN" }, { 101, "ENETUNREACH" }, { 103, "ECONNABORTED" }, { 104, "ECONNRESET" },
            { 105, "ENOBUFS" }, { 106, "EISCONN" }, { 107, "ENOTCONN" }, { 108, "ESHUTDOWN" },
            { 110, "ETIMEDOUT" }, { 111, "ECONNREFUSED" }, { 113, "EHOSTUNREACH" }, { 114, "EALREADY" },
            { 115, "EINPROGRESS" }, { 122, "EDQUOT" }, { 125, "ECANCELED" },
        };

        [DllImport("libdl.so.2", EntryPoint = "strerror")]
        private static extern IntPtr StrError(int errno);

        internal static string Name(int errno)
        {
            string name;
            return Names.TryGetValue(errno, out name) ? name : "E" + errno;
        }

        internal static string Text(int errno)
        {
            return Marshal.PtrToStringAnsi(StrError(errno));
        }
    }
}
