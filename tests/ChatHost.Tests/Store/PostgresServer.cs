using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using TenantLora.ChatHost.Tests.Store;

[assembly: AssemblyFixture(typeof(PostgresServer))]

namespace TenantLora.ChatHost.Tests.Store;

/// <summary>A PostgreSQL of the tests' own: a fresh cluster in a temporary folder, from the system's binaries. Started when first asked for.</summary>
public sealed class PostgresServer : IDisposable
{
    private readonly Lock gate = new();
    private string? folder, bin;
    private int port, databases;

    /// <summary>A connection string to a database that nobody else uses; skips the test where there is no PostgreSQL.</summary>
    public string NewDatabase()
    {
        lock (gate)
        {
            if (folder is null) Start();
            var name = $"tests{databases++}";
            Run("createdb", "-h", folder!, "-p", $"{port}", "-U", "postgres", name);
            return $"Host={folder};Port={port};Username=postgres;Database={name};Pooling=true";
        }
    }

    private void Start()
    {
        bin = Directory.Exists("/usr/lib/postgresql") ? Directory.GetDirectories("/usr/lib/postgresql").Select(d => Path.Combine(d, "bin")).LastOrDefault(d => File.Exists(Path.Combine(d, "initdb"))) : null;
        if (bin is null)
        {
            if (Environment.GetEnvironmentVariable("TENANTLORA_REQUIRE_ALL") == "1") Assert.Fail("PostgreSQL is not there.");
            Assert.Skip("PostgreSQL is not there.");
        }
        folder = Directory.CreateTempSubdirectory("postgres-").FullName;
        if (Environment.UserName == "root") Run("chown", "postgres", folder);
        using (var listener = new TcpListener(IPAddress.Loopback, 0))
        {
            listener.Start();
            port = ((IPEndPoint)listener.LocalEndpoint).Port;       // names its socket; it listens on no address
        }
        Run("initdb", "-D", Data, "-U", "postgres", "-A", "trust", "--no-sync");
        Again();
    }

    /// <summary>Stops at once, as a crash would: what was committed is there again later.</summary>
    public void Crash() => Run("pg_ctl", "-s", "-D", Data, "-m", "immediate", "stop");

    public void Again() => Run("pg_ctl", "-s", "-D", Data, "-w", "-l", Path.Combine(folder!, "log"), "-o", $"-k {folder} -p {port} -c listen_addresses='' -c fsync=off", "start");

    /// <summary>Ends all connections but this one.</summary>
    public void Cut() => Run("psql", "-q", "-h", folder!, "-p", $"{port}", "-U", "postgres", "-c", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname LIKE 'tests%'");

    /// <summary>All its processes stand still, or go on.</summary>
    public void Freeze(bool goesOn = false)
    {
        var first = File.ReadLines(Path.Combine(Data, "postmaster.pid")).First();
        foreach (var kill in new[] { new ProcessStartInfo("pkill", [goesOn ? "-CONT" : "-STOP", "-P", first]), new ProcessStartInfo("kill", [goesOn ? "-CONT" : "-STOP", first]) })
            using (var process = Process.Start(kill)!) process.WaitForExit();
    }

    private string Data => Path.Combine(folder!, "data");

    /// <summary>The server refuses to be root.</summary>
    private void Run(string program, params string[] arguments)
    {
        var path = program == "chown" ? program : Path.Combine(bin!, program);
        var start = Environment.UserName == "root" && program != "chown"
            ? new ProcessStartInfo("runuser", ["-u", "postgres", "--", path, .. arguments])
            : new ProcessStartInfo(path, arguments);
        start.WorkingDirectory = "/";
        // pg_ctl's server inherits what it writes to and would keep a pipe open.
        (start.RedirectStandardOutput, start.RedirectStandardError) = (program != "pg_ctl", program != "pg_ctl");
        using var process = Process.Start(start)!;
        var output = program == "pg_ctl" ? "" : process.StandardOutput.ReadToEnd() + process.StandardError.ReadToEnd();
        process.WaitForExit();
        if (process.ExitCode != 0) throw new InvalidOperationException($"{program}: {output}");
    }

    public void Dispose()
    {
        if (folder is null) return;
        Crash();
        Directory.Delete(folder, recursive: true);
    }
}
