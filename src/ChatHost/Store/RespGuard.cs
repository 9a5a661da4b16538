using System.Net;
using System.Net.Sockets;
using StackExchange.Redis;
using StackExchange.Redis.Configuration;

namespace TenantLora.ChatHost.Store;

/// <summary>
/// Reads along what Redis says, before the client does, and ends the connection where it is nothing that our commands are answered with. The client
/// goes into arrays by recursion, so that a few bytes of nested ones would end the process; and it waits for as many bytes as an answer announces.
/// </summary>
internal sealed class RespGuard
{
    private const int MostLine = 64 << 10, MostBulk = 16 << 20, MostElements = 1 << 16, Deepest = 4;
    private readonly long[] left = new long[Deepest];       // elements still to come of each open array
    private int depth, line;                                // open arrays; bytes of the line so far, its end too
    private byte type;
    private long number, skip;                              // of the line, as far as it has come; bytes of a bulk string still to come, its end too
    private bool isNegative;

    /// <summary>The next bytes, in pieces of any size.</summary>
    /// <exception cref="InvalidDataException">They are no answer to take.</exception>
    public void Check(ReadOnlySpan<byte> bytes)
    {
        while (bytes.Length > 0)
        {
            if (skip > 0)
            {
                var some = (int)Math.Min(skip, bytes.Length);
                bytes = bytes[some..];
                if ((skip -= some) == 0) Done();
                continue;
            }
            Next(bytes[0]);
            bytes = bytes[1..];
        }
    }

    private void Next(byte b)
    {
        if (line++ == 0)
        {
            if (b is not ((byte)'+' or (byte)'-' or (byte)':' or (byte)'$' or (byte)'*')) throw Refused("an unknown type");
            (type, number, isNegative) = (b, 0, false);
        }
        else if (b == '\n') EndLine();
        else if (line > MostLine) throw Refused("an endless line");
        else if (type is (byte)'$' or (byte)'*' && b != '\r')
        {
            if (b == '-' && line == 2) isNegative = true;
            else if (!char.IsAsciiDigit((char)b) || (number = (number * 10) + b - '0') > MostBulk) throw Refused("a length that is none or too large");
        }
    }

    private void EndLine()
    {
        line = 0;
        switch (type)
        {
            case (byte)'$' when !isNegative:
                skip = number + 2;
                break;
            case (byte)'*' when !isNegative && number > 0:
                if (number > MostElements || depth == Deepest) throw Refused("arrays that are too long or too deep");
                left[depth++] = number;
                break;
            default:
                Done();
                break;
        }
    }

    /// <summary>An element is complete, and with it perhaps the arrays that it is the last of.</summary>
    private void Done()
    {
        while (depth > 0 && --left[depth - 1] == 0) depth--;
    }

    private static InvalidDataException Refused(string what) => new($"Redis said {what}.");

    /// <summary>Puts a guard into each connection. TLS comes after this, so one with TLS has none: there the server has shown who it is.</summary>
    public sealed class Connections : Tunnel
    {
        public override ValueTask<Stream?> BeforeAuthenticateAsync(EndPoint endpoint, ConnectionType connectionType, Socket? socket, CancellationToken cancellationToken) =>
            new(socket is null ? null : new Guarded(new NetworkStream(socket)));
    }

    private sealed class Guarded(Stream inner) : Stream
    {
        private readonly RespGuard guard = new();

        public override bool CanRead => true;

        public override bool CanSeek => false;

        public override bool CanWrite => true;

        public override long Length => throw new NotSupportedException();

        public override long Position { get => throw new NotSupportedException(); set => throw new NotSupportedException(); }

        public override async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
        {
            var read = await inner.ReadAsync(buffer, cancellationToken).ConfigureAwait(false);
            guard.Check(buffer.Span[..read]);
            return read;
        }

        public override Task<int> ReadAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken) => ReadAsync(buffer.AsMemory(offset, count), cancellationToken).AsTask();

        public override int Read(byte[] buffer, int offset, int count)
        {
            var read = inner.Read(buffer, offset, count);
            guard.Check(buffer.AsSpan(offset, read));
            return read;
        }

        public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default) => inner.WriteAsync(buffer, cancellationToken);

        public override Task WriteAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken) => inner.WriteAsync(buffer, offset, count, cancellationToken);

        public override void Write(byte[] buffer, int offset, int count) => inner.Write(buffer, offset, count);

        public override void Flush() => inner.Flush();

        public override Task FlushAsync(CancellationToken cancellationToken) => inner.FlushAsync(cancellationToken);

        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();

        protected override void Dispose(bool disposing)
        {
            if (disposing) inner.Dispose();
            base.Dispose(disposing);
        }
    }
}
