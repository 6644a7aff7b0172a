// SPDX-License-Identifier: MIT
//
// A server waits for one message and prints it; with --remote, a client sends "Hello World!".
using System;
using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Threading;
using Machnet;

namespace HelloWorld
{
    internal sealed class UsageException : Exception
    {
        internal UsageException(string message)
            : base(message)
        {
        }
    }

    internal sealed class Options
    {
        internal const int DefaultPort = 31580;

        internal string Local;
        internal string Remote;
        internal int Port = DefaultPort;
        internal Protocol? Protocol;
        internal bool Help;

        internal static Options Parse(string[] args)
        {
            var options = new Options();
            for (int i = 0; i < args.Length; i++)
            {
                string name = args[i];
                if (name == "--help" || name == "-h")
                {
                    options.Help = true;
                    return options;
                }
                string value = null;
                int equals = name.IndexOf('=');
                if (equals > 0)
                {
                    value = name.Substring(equals + 1);
                    name = name.Substring(0, equals);
                }
                else if (i + 1 < args.Length)
                {
                    value = args[i + 1];
                    i++;
                }
                options.Set(name, value);
            }
            if (options.Local == null)
            {
                throw new UsageException("--local is missing: the IP address of the sidecar here");
            }
            return options;
        }

        private static string Address(string name, string value)
        {
            IPAddress address;
            // IPAddress takes "1" and "0x7f.1" too.
            bool isDotted = value.Split('.').Length == 4 && IPAddress.TryParse(value, out address)
                && address.AddressFamily == AddressFamily.InterNetwork && address.ToString() == value;
            if (!isDotted)
            {
                throw new UsageException(name + " must be an IPv4 address such as 10.0.0.2, not '" + value + "'");
            }
            return value;
        }

        private void Set(string name, string value)
        {
            if (name != "--local" && name != "--remote" && name != "--port" && name != "--protocol")
            {
                throw new UsageException("unknown argument '" + name + "'");
            }
            if (value == null)
            {
                throw new UsageException(name + " wants a value");
            }
            switch (name)
            {
                case "--local":
                    Local = Address(name, value);
                    break;
                case "--remote":
                    Remote = Address(name, value);
                    break;
                case "--port":
                    if (!int.TryParse(value, out Port) || Port < 1 || Port > 65535)
                    {
                        throw new UsageException("--port must be a number from 1 to 65535, not '" + value + "'");
                    }
                    break;
                default:
                    if (value != "udp" && value != "tcp")
                    {
                        throw new UsageException("--protocol must be udp or tcp, not '" + value + "'");
                    }
                    Protocol = value == "udp" ? Machnet.Protocol.Udp : Machnet.Protocol.Tcp;
                    break;
            }
        }
    }

    internal static class Program
    {
        private static readonly string Usage = string.Join(
            "\n",
            "usage: dotnet run --local IP [--remote IP] [--port N] [--protocol udp|tcp]",
            "",
            "  --local IP      the address of the machnet sidecar here",
            "  --remote IP     send \"Hello World!\" to the server there; without it, be the server",
            "  --port N        the server's port (default " + Options.DefaultPort + ")",
            "  --protocol P    udp or tcp (default: MACHNET_PROTOCOL, else udp)");

        internal static int Main(string[] args)
        {
            try
            {
                Options options = Options.Parse(args);
                if (options.Help)
                {
                    Console.WriteLine(Usage);
                    return 0;
                }
                using (Channel channel = Channel.Attach(options.Protocol))
                {
                    if (options.Remote != null)
                    {
                        Send(channel, options);
                    }
                    else
                    {
                        Receive(channel, options);
                    }
                }
                return 0;
            }
            catch (UsageException error)
            {
                Console.Error.WriteLine(Usage + "\n" + error.Message);
                return 2;
            }
            catch (Exception error) when (error is MachnetException || error is DllNotFoundException)
            {
                Console.Error.WriteLine(error.Message);
                return 1;
            }
        }

        private static void Send(Channel channel, Options options)
        {
            Flow flow = channel.Connect(options.Local, options.Remote, options.Port);
            channel.Send(flow, Encoding.UTF8.GetBytes("Hello World!"));
            Console.Error.WriteLine("sent to " + flow.Destination);
        }

        private static void Receive(Channel channel, Options options)
        {
            channel.Listen(options.Local, options.Port);
            Console.Error.WriteLine("listening on " + options.Local + ":" + options.Port);
            Message message = channel.Receive(Timeout.InfiniteTimeSpan);
            Console.Error.WriteLine("received from " + message.Flow.Source);
            Console.WriteLine(Encoding.UTF8.GetString(message.Data));
        }
    }
}
