using System.Collections.Concurrent;
using TenantLora.ChatHost.Store;

namespace TenantLora.ChatHost.Tests.Store;

public sealed class SqliteAdapterStoreTests : AdapterStoreTests
{
    private readonly string folder = Directory.CreateTempSubdirectory("store-").FullName;

    private protected override Database Open() => Database.Open(folder, null);

    public override void Dispose()
    {
        base.Dispose();
        Directory.Delete(folder, recursive: true);
    }

    [Fact]
    public void A_store_that_a_newer_version_has_changed_is_left_alone()
    {
        using (var database = Open()) database.Change((t, _) => Dapper.SqlMapper.Execute(t.Connection!, "INSERT INTO migrations VALUES (99)", transaction: t));
        Assert.Contains("newer", Assert.Throws<InvalidDataException>(Open).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_store_of_the_first_version_is_brought_up_to_date()
    {
        using (var database = Open())
            database.Change((t, _) => Dapper.SqlMapper.Execute(t.Connection!, """
                ALTER TABLE versions DROP COLUMN stored_bytes; ALTER TABLE adapters DROP COLUMN pinned; DROP TABLE usage_batches; DELETE FROM migrations WHERE number > 0;
                INSERT INTO adapters (tenant, name, changed, created_at, next_version) VALUES ('a', 'x', 1, 0, 2);
                INSERT INTO versions VALUES ('a', 'x', 1, 'sha256:0', 'lora', 8, 1000, 1000, NULL, '[]', 0, 'me');
                """, transaction: t));
        using var again = Open();
        var store = new AdapterStore(again, TimeProvider.System);
        Assert.Equal((1000L, 0L), (store.StoredBytes("a"), store.Find("a", "x")!.Pinned));
    }

    [Fact]
    public void A_file_that_is_no_database_is_named()
    {
        var folder = Directory.CreateTempSubdirectory("store-").FullName;
        File.WriteAllText(Path.Combine(folder, "tenantlora.db"), string.Concat(Enumerable.Repeat("not a database ", 100)));
        Assert.Contains("tenantlora.db", Assert.Throws<InvalidDataException>(() => Database.Open(folder, null)).Message, StringComparison.Ordinal);
        Directory.Delete(folder, recursive: true);
    }
}

public sealed class PostgresAdapterStoreTests(PostgresServer server) : AdapterStoreTests
{
    private string? database;

    private protected override Database Open() => Database.Open("unused", database ??= server.NewDatabase());

    [Fact]
    public async Task A_host_lives_on_it()
    {
        await using var host = await TestHost.StartRealAsync($"Database={server.NewDatabase()}");
        using var admin = host.Client();
        for (var i = 1; i <= 2; i++)
        {
            using var answer = await admin.PostAsync("/v1/chat/completions", TestHost.Json("""{"model":"harbor","max_tokens":2,"messages":[{"role":"user","content":"Hi"}]}"""));
            Assert.True(answer.IsSuccessStatusCode);
            using var usage = await admin.GetAsync("/api/tenants/harbor/usage");
            Assert.Equal(i, (await TestHost.ReadAsync(usage)).GetProperty("adapters")[0].GetProperty("requests").GetInt32());
        }
        Assert.False(File.Exists(Path.Combine(host.Data, "tenantlora.db")));
    }
}

/// <summary>The same on every database.</summary>
public abstract class AdapterStoreTests : IDisposable
{
    private readonly List<Database> opened = [];

    private protected abstract Database Open();

    private AdapterStore Store()
    {
        opened.Add(Open());
        return new AdapterStore(opened[^1], TimeProvider.System);
    }

    public virtual void Dispose()
    {
        opened.ForEach(d => d.Dispose());
        GC.SuppressFinalize(this);
    }

    private static StoredVersion Version(string tenant, string name, int content) =>
        new(tenant, name, 0, $"sha256:{content:d64}", "prolora", 16, 1000, 4000, content % 2 == 0 ? "base" : null, "[]", 0, "somebody", 1100);

    private static long Add(AdapterStore store, string tenant, string name, int content) => store.AddVersion(Version(tenant, name, content), activates: false).Version.Number;

    [Fact]
    public void Versions_count_up_and_the_same_bytes_are_the_version_that_exists()
    {
        var store = Store();
        Assert.Equal((1L, 2L), (Add(store, "a", "x", 1), Add(store, "a", "x", 2)));
        var (again, created) = store.AddVersion(Version("a", "x", 1), activates: true);
        Assert.Equal((1L, false), (again.Number, created));
        Assert.Equal((1L, 1L), (Add(store, "b", "x", 1), Add(store, "a", "y", 1)));       // other tenants' and adapters' are theirs

        Assert.Null(store.Find("a", "x")!.Active);
        Assert.Equal([2L, 1], store.VersionsOf("a", "x").Select(v => v.Number));
        var found = store.VersionsOf("a", "x")[0];
        Assert.Equal(("prolora", 16L, 1000L, 4000L, "base", "[]", "somebody"), (found.Kind, found.Rank, found.Bytes, found.ExpandedBytes, found.BaseModel, found.Findings, found.CreatedBy));
        Assert.True(found.CreatedAt > 1_700_000_000_000);
        Assert.Equal(new Dictionary<string, long> { ["x"] = 2, ["y"] = 1 }, store.CountVersions("a"));
        Assert.Equal(2, store.Digests().Count);
        Assert.Null(store.Find("c", "x"));
        Assert.Empty(store.VersionsOf("c", "x"));
    }

    [Fact]
    public void Aliases_move_by_compare_and_set_and_every_move_is_noted()
    {
        var store = Store();
        for (var i = 1; i <= 3; i++) Add(store, "a", "x", i);
        long Etag() => store.Find("a", "x")!.Changed;

        var first = Etag();
        Assert.Equal(Change.Conflict, store.RollBack("a", "x", first, "me", null));
        Assert.Equal(Change.NoVersion, store.Activate("a", "x", first, 4, "me", null));
        Assert.Equal(Change.Done, store.Activate("a", "x", first, 1, "me", "it is good"));
        Assert.Equal(Change.Stale, store.Activate("a", "x", first, 2, "me", null));
        Assert.Equal(Change.NotFound, store.Activate("b", "x", Etag(), 1, "me", null));
        Assert.Equal(Change.Done, store.Activate("a", "x", Etag(), 2, "me", null));
        Assert.Equal(Change.Done, store.SetCanary("a", "x", Etag(), 3, 10, "me", null));
        var adapter = store.Find("a", "x")!;
        Assert.Equal((2L, 1L, 3L, 10L), (adapter.Active, adapter.Previous, adapter.Canary, adapter.Share));
        Assert.Equal(Change.Conflict, store.DeleteVersion("a", "x", 2, "me"));
        Assert.Equal(Change.Conflict, store.DeleteVersion("a", "x", 3, "me"));
        Assert.Equal(Change.Done, store.RollBack("a", "x", Etag(), "me", "worse"));
        adapter = store.Find("a", "x")!;
        Assert.Equal((1L, 2L, null, null), (adapter.Active, adapter.Previous, adapter.Canary, adapter.Share));
        Assert.Equal(Change.Done, store.SetCanary("a", "x", Etag(), 3, 50, "me", null));
        Assert.Equal(Change.Done, store.EndCanary("a", "x", Etag(), "me"));
        Assert.Equal(Change.Done, store.SetCanary("a", "x", Etag(), 3, 50, "me", null));
        Assert.Equal(Change.Done, store.Activate("a", "x", Etag(), 3, "me", null));      // a trial that went well
        Assert.Equal((3L, 1L, null), (store.Find("a", "x")!.Active, store.Find("a", "x")!.Previous, store.Find("a", "x")!.Canary));
        Assert.Equal(Change.Done, store.RollBack("a", "x", Etag(), "me", null));
        var unmoved = Etag();
        Assert.Equal(Change.Done, store.Activate("a", "x", Etag(), 1, "me", null));      // it is already
        Assert.Equal(unmoved, Etag());

        var notes = store.Audit("a", long.MaxValue, 100);
        Assert.Equal(["upload", "upload", "upload", "activate", "activate", "canary", "rollback", "canary", "canary_end", "canary", "activate", "rollback"], notes.Reverse().Select(n => n.Action));
        Assert.Equal((null, "v1", "it is good", "me", "x"), (notes[^4].OldValue, notes[^4].NewValue, notes[^4].Why, notes[^4].Who, notes[^4].Adapter));
        Assert.Equal(("v1", "v2"), (notes[^5].OldValue, notes[^5].NewValue));
        Assert.Equal((null, "v3 10 %"), (notes[^6].OldValue, notes[^6].NewValue));
        Assert.Equal(("v2", "v1", "worse"), (notes[^7].OldValue, notes[^7].NewValue, notes[^7].Why));
        Assert.Equal(notes.Skip(4).Take(2), store.Audit("a", notes[3].Id, 2));
        Assert.Empty(store.Audit("b", long.MaxValue, 100));
    }

    [Fact]
    public void What_is_deleted_is_gone_and_its_numbers_do_not_come_back()
    {
        var store = Store();
        for (var i = 1; i <= 3; i++) Add(store, "a", "x", i);
        store.Activate("a", "x", store.Find("a", "x")!.Changed, 1, "me", null);
        store.Activate("a", "x", store.Find("a", "x")!.Changed, 3, "me", null);
        Assert.Equal(Change.Done, store.DeleteVersion("a", "x", 1, "me"));
        Assert.Equal(Change.NoVersion, store.DeleteVersion("a", "x", 1, "me"));
        Assert.Null(store.Find("a", "x")!.Previous);
        Assert.Equal(Change.Done, store.DeleteAdapter("a", "x", "me"));
        Assert.Equal(Change.NotFound, store.DeleteAdapter("a", "x", "me"));
        Assert.Null(store.Find("a", "x"));
        Assert.Empty(store.List("a", "", 10));
        Assert.Empty(store.Digests());
        Assert.Equal(4, Add(store, "a", "x", 1));
        Assert.Null(store.Find("a", "x")!.Active);
    }

    [Fact]
    public void The_first_of_the_configuration_is_active_and_later_ones_are_not()
    {
        var store = Store();
        store.AddVersion(Version("a", "x", 1), activates: true);
        store.AddVersion(Version("a", "x", 2), activates: true);
        Assert.Equal(1, store.Find("a", "x")!.Active);
    }

    [Fact]
    public async Task Of_hosts_that_race_for_a_tenants_last_bytes_one_wins()
    {
        var stores = new[] { Store(), Store() };
        stores[0].AddVersion(Version("a", "x", 1), activates: false, quota: 3300);
        stores[0].AddVersion(Version("a", "y", 1), activates: false, quota: 3300);            // the same bytes count once
        stores[0].AddVersion(Version("b", "x", 1), activates: false, quota: 1100);            // and for each tenant
        Assert.Equal((1100L, 1100L, 0L), (stores[1].StoredBytes("a"), stores[1].StoredBytes("b"), stores[1].StoredBytes("c")));
        var refused = 0;
        await Task.WhenAll(Enumerable.Range(0, 8).Select(i => Task.Run(() =>
        {
            try
            {
                stores[i % 2].AddVersion(Version("a", $"n{i}", 10 + i), activates: false, quota: 3300);
            }
            catch (QuotaExceededException e)
            {
                Assert.Equal((1100L, 3300L), (e.More, e.Quota));
                Interlocked.Increment(ref refused);
            }
        })));
        Assert.Equal((6, 3300L, 4), (refused, stores[0].StoredBytes("a"), stores[0].List("a", "", 100).Count));
        var (_, created) = stores[0].AddVersion(Version("a", "x", 1), activates: false, quota: 3300);
        Assert.False(created);
        Assert.Throws<QuotaExceededException>(() => stores[0].AddVersion(Version("a", "x", 99), activates: false, quota: 1));
        Assert.True(stores[0].AddVersion(Version("a", "x", 99), activates: true).Created);       // the operator's own
    }

    [Fact]
    public void Pins_are_noted_counted_and_end_with_their_adapter()
    {
        var store = Store();
        foreach (var (name, content) in new[] { ("x", 1), ("y", 2), ("z", 1) }) store.AddVersion(Version("a", name, content), activates: true);
        Add(store, "a", "idle", 5);
        Assert.Equal(Change.NoVersion, store.Pin("a", "idle", true, 5000, "me"));
        Assert.Equal(Change.NotFound, store.Pin("b", "x", true, 5000, "me"));
        Assert.Equal(Change.Conflict, store.Pin("a", "x", true, 999, "me"));
        Assert.Equal(Change.Done, store.Pin("a", "x", true, 1000, "me"));
        Assert.Equal(Change.Done, store.Pin("a", "z", true, 1000, "me"));            // the same bytes
        Assert.Equal(Change.Conflict, store.Pin("a", "y", true, 1999, "me"));
        Assert.Equal(1, store.Find("a", "x")!.Pinned);
        Assert.Equal(Change.Done, store.Pin("a", "x", false, 0, "me"));
        Assert.Equal(Change.Done, store.DeleteAdapter("a", "z", "me"));
        store.AddVersion(Version("a", "z", 7), activates: true);
        Assert.Equal((0L, 0L), (store.Find("a", "x")!.Pinned, store.Find("a", "z")!.Pinned));
        Assert.Equal(["unpin", "pin", "pin"], store.Audit("a", long.MaxValue, 100).Where(n => n.Action.EndsWith("pin", StringComparison.Ordinal)).Select(n => n.Action));
    }

    [Fact]
    public void Lists_come_in_pages_by_name()
    {
        var store = Store();
        foreach (var name in new[] { "d", "a", "c", "b", "e" }) Add(store, "t", name, 1);
        Add(store, "u", "f", 1);
        Assert.Equal(["a", "b"], store.List("t", "", 2).Select(a => a.Name));
        Assert.Equal(["c", "d"], store.List("t", "b", 2).Select(a => a.Name));
        Assert.Equal(["e"], store.List("t", "d", 2).Select(a => a.Name));
    }

    [Fact]
    public void Another_host_sees_what_has_changed_and_nothing_twice()
    {
        var (here, there) = (Store(), Store());
        Add(here, "a", "x", 1);
        Add(here, "a", "y", 2);
        var (generation, adapters, versions, keys) = there.ChangedSince(-1);
        Assert.Equal(["x", "y"], adapters.Select(a => a.Name).Order());
        Assert.Equal(2, versions.Sum(g => g.Count()));
        Assert.Empty(keys);

        Assert.Empty(there.ChangedSince(generation).Adapters);
        here.Activate("a", "y", here.Find("a", "y")!.Changed, 1, "me", null);
        here.DeleteAdapter("a", "x", "me");
        var key = here.AddKey("a", "00ff", "admin", "mine", "me");
        (generation, adapters, versions, keys) = there.ChangedSince(generation);
        Assert.Equal([("x", true, null), ("y", false, (long?)1)], adapters.Select(a => (a.Name, a.DeletedAt is not null, a.Active)).Order());
        Assert.Single(versions);
        Assert.Equal([(key.Id, "00ff", null)], keys.Select(k => (k.Id, k.Hash, k.RevokedAt)));
        Assert.Equal(Change.NotFound, here.RevokeKey("b", key.Id, "me"));
        Assert.Equal(Change.Done, here.RevokeKey("a", key.Id, "me"));
        Assert.NotNull(Assert.Single(there.ChangedSince(generation).Keys).RevokedAt);
        Assert.Empty(here.Keys("a"));
    }

    /// <summary>Of those who saw the same, one wins; and no number, no note and no generation comes twice.</summary>
    [Fact]
    public async Task Writers_on_two_hosts_lose_nothing()
    {
        var stores = new[] { Store(), Store() };
        for (var i = 1; i <= 4; i++) Add(stores[0], "a", "x", i);
        var (won, numbers) = (new ConcurrentBag<long>(), new ConcurrentBag<long>());
        await Task.WhenAll(Enumerable.Range(0, 4).Select(writer => Task.Run(() =>
        {
            var store = stores[writer % 2];
            for (var i = 0; i < 15; i++)
            {
                var etag = store.Find("a", "x")!.Changed;
                if (store.Activate("a", "x", etag, 1 + ((writer + i) % 4), $"w{writer}", null) == Change.Done && store.Find("a", "x")!.Changed != etag) won.Add(etag);
                numbers.Add(Add(store, "a", "busy", 100 + (writer * 1000) + i));
            }
        })));
        Assert.Equal(60, numbers.Distinct().Count());
        Assert.Equal(60, stores[0].VersionsOf("a", "busy").Count);
        var notes = stores[1].Audit("a", long.MaxValue, 1000);
        Assert.Equal(Enumerable.Range(1, notes.Count).Select(n => (long)n), notes.Reverse().Select(n => n.Id));
        Assert.Equal(64, notes.Count(n => n.Action == "upload"));
        // Each activation begins where the one before it ended.
        var moves = notes.Reverse().Where(n => n.Action == "activate").ToArray();
        Assert.Equal(moves.SkipLast(1).Select(m => m.NewValue), moves.Skip(1).Select(m => m.OldValue));
    }
}
