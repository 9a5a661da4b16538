using System.Data;
using System.Data.Common;
using System.Security.Cryptography;
using Dapper;
using Microsoft.Data.Sqlite;
using Npgsql;

namespace TenantLora.ChatHost.Store;

/// <summary>
/// Where the host keeps what must outlive it: a SQLite file in the data folder, or PostgreSQL where a connection string is configured. One schema and
/// the same statements on both. Readers never wait for writers; writers go one at a time.
/// </summary>
internal sealed class Database : IDisposable
{
    // Never edit one that has been released: add another.
    private static readonly string[] Migrations =
    [
        """
        CREATE TABLE generation (one BIGINT PRIMARY KEY, value BIGINT NOT NULL, secret TEXT);
        INSERT INTO generation (one, value) VALUES (1, 0);
        CREATE TABLE keys (id TEXT PRIMARY KEY, hash TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, role TEXT NOT NULL, label TEXT NOT NULL, created_at BIGINT NOT NULL, changed BIGINT NOT NULL, revoked_at BIGINT);
        CREATE INDEX keys_changed ON keys (changed);
        CREATE TABLE adapters (tenant TEXT NOT NULL, name TEXT NOT NULL, changed BIGINT NOT NULL, created_at BIGINT NOT NULL, next_version BIGINT NOT NULL, active BIGINT, previous BIGINT, canary BIGINT, share BIGINT,
            deleted_at BIGINT, PRIMARY KEY (tenant, name));
        CREATE INDEX adapters_changed ON adapters (changed);
        CREATE TABLE versions (tenant TEXT NOT NULL, name TEXT NOT NULL, number BIGINT NOT NULL, digest TEXT NOT NULL, kind TEXT NOT NULL, rank BIGINT NOT NULL, bytes BIGINT NOT NULL, expanded_bytes BIGINT NOT NULL,
            base_model TEXT, findings TEXT NOT NULL, created_at BIGINT NOT NULL, created_by TEXT NOT NULL, PRIMARY KEY (tenant, name, number), UNIQUE (tenant, name, digest));
        CREATE INDEX versions_digest ON versions (digest);
        CREATE TABLE usage (tenant TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, hour BIGINT NOT NULL, requests BIGINT NOT NULL, errors BIGINT NOT NULL, cancelled BIGINT NOT NULL, prompt_tokens BIGINT NOT NULL,
            completion_tokens BIGINT NOT NULL, PRIMARY KEY (tenant, name, version, hour));
        CREATE TABLE usage_buckets (tenant TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, hour BIGINT NOT NULL, measure TEXT NOT NULL, bucket BIGINT NOT NULL, count BIGINT NOT NULL,
            PRIMARY KEY (tenant, name, version, hour, measure, bucket));
        CREATE TABLE audit (tenant TEXT NOT NULL, id BIGINT NOT NULL, at BIGINT NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL, adapter TEXT, old_value TEXT, new_value TEXT, why TEXT, PRIMARY KEY (tenant, id));
        """,
        // Of versions from before this, the tensors' bytes: their files have a header and a config more.
        """
        ALTER TABLE versions ADD COLUMN stored_bytes BIGINT NOT NULL DEFAULT 0;
        UPDATE versions SET stored_bytes = bytes;
        ALTER TABLE adapters ADD COLUMN pinned BIGINT NOT NULL DEFAULT 0;
        """,
        """
        CREATE TABLE usage_batches (host TEXT PRIMARY KEY, number BIGINT NOT NULL, at BIGINT NOT NULL);
        """,
    ];

    private readonly Func<DbConnection> connect;
    private readonly SemaphoreSlim? writer;         // SQLite has one; waiting here is fair and costs no polling
    private readonly bool isPostgres;

    static Database() => DefaultTypeMap.MatchNamesWithUnderscores = true;

    private Database(Func<DbConnection> connect, bool isPostgres)
    {
        (this.connect, this.isPostgres) = (connect, isPostgres);
        if (!isPostgres) writer = new SemaphoreSlim(1);
    }

    /// <summary>Opens it and brings its schema up to date.</summary>
    /// <param name="folder">Of the SQLite file.</param>
    /// <param name="postgres">A connection string; null: SQLite.</param>
    /// <exception cref="InvalidDataException">It cannot be opened, or a newer version of this program has changed it.</exception>
    public static Database Open(string folder, string? postgres)
    {
        Func<DbConnection> connect;
        if (postgres is null)
        {
            Directory.CreateDirectory(folder);
            // FULL: what was acknowledged is there after a power failure too.
            var file = new SqliteConnectionStringBuilder { DataSource = Path.Combine(folder, "tenantlora.db"), DefaultTimeout = 30 }.ToString();
            connect = () =>
            {
                var connection = new SqliteConnection(file);
                connection.Open();
                connection.Execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 30000");
                return connection;
            };
        }
        else
            connect = () =>
            {
                var connection = new NpgsqlConnection(postgres);
                connection.Open();
                return connection;
            };
        var database = new Database(connect, postgres is not null);
        try
        {
            database.Write(database.Migrate);
        }
        catch (Exception e) when (e is DbException or ArgumentException)
        {
            database.Dispose();
            throw new InvalidDataException($"The store ({(postgres is null ? Path.Combine(folder, "tenantlora.db") : "PostgreSQL")}) cannot be opened: {e.Message}", e);
        }
        return database;
    }

    /// <summary>Known to all hosts on this store and to nobody else.</summary>
    public byte[] Secret() => Convert.FromHexString(Read(c => c.QuerySingle<string>("SELECT secret FROM generation")));

    /// <summary>Reads on one connection.</summary>
    public T Read<T>(Func<DbConnection, T> read)
    {
        using var connection = connect();
        return read(connection);
    }

    /// <summary>
    /// One transaction, all or nothing, and alone: it sees all that was committed before, from whichever host. The number that <paramref name="change"/>
    /// is given is higher than that of every change before it, and is what rows note as when they changed.
    /// </summary>
    public T Change<T>(Func<DbTransaction, long, T> change) =>
        Write(transaction =>
        {
            var generation = transaction.Connection!.QuerySingle<long>("UPDATE generation SET value = value + 1 WHERE one = 1 RETURNING value", transaction: transaction);
            return change(transaction, generation);
        });

    /// <summary>One transaction that no host needs to hear of.</summary>
    public T Write<T>(Func<DbTransaction, T> change)
    {
        writer?.Wait();
        try
        {
            using var connection = connect();
            // On PostgreSQL the generation's row is what writers wait for, before they have read anything.
            using var transaction = connection is SqliteConnection sqlite ? sqlite.BeginTransaction(deferred: false) : connection.BeginTransaction(IsolationLevel.ReadCommitted);
            var result = change(transaction);
            transaction.Commit();
            return result;
        }
        finally
        {
            writer?.Release();
        }
    }

    private bool Migrate(DbTransaction transaction)
    {
        var connection = transaction.Connection!;
        if (isPostgres) connection.Execute("SELECT pg_advisory_xact_lock(7341900)", transaction: transaction);        // hosts that start together
        connection.Execute("CREATE TABLE IF NOT EXISTS migrations (number BIGINT PRIMARY KEY)", transaction: transaction);
        var done = connection.QuerySingle<long>("SELECT COUNT(*) FROM migrations", transaction: transaction);
        if (done > Migrations.Length) throw new InvalidDataException($"The store has been brought to version {done} by a newer TenantLora; this one knows {Migrations.Length}.");
        for (var number = (int)done; number < Migrations.Length; number++)
        {
            connection.Execute(Migrations[number], transaction: transaction);
            connection.Execute("INSERT INTO migrations VALUES (@number)", new { number }, transaction);
        }
        connection.Execute("UPDATE generation SET secret = @secret WHERE secret IS NULL", new { secret = Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(32)) }, transaction);
        return true;
    }

    public void Dispose()
    {
        writer?.Dispose();
        if (!isPostgres) SqliteConnection.ClearAllPools();
    }
}
