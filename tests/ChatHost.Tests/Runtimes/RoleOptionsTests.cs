using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Options;

namespace TenantLora.ChatHost.Tests.Runtimes;

/// <summary>What a role needs and what has no meaning for it, all of it named at once.</summary>
public sealed class RoleOptionsTests
{
    private static string[] Wrong(params string[] args)
    {
        var error = Assert.Throws<OptionsValidationException>(() => Program.Build(args));
        return [.. error.Failures];
    }

    [Fact]
    public void A_web_host_needs_runtimes_and_a_key_and_has_no_device() => Assert.Equal(
        [
            "TenantLora:Device: has no meaning for a host of role Web; leave it out.",
            "TenantLora:CacheTokens: has no meaning for a host of role Web; leave it out.",
            "TenantLora:AdaptersFrom: has no meaning for a host of role Web; leave it out.",
            "TenantLora:ServiceKey: expected 32 to 1024 characters, found nothing.",
            "TenantLora:Runtimes: expected addresses of one or more Runtime hosts, like http://runtime:8080, found none.",
        ],
        Wrong("--TenantLora:Role=Web", "--TenantLora:Device=cuda", "--TenantLora:CacheTokens=4096", "--TenantLora:AdaptersFrom=http://web"));

    [Fact]
    public void A_runtime_host_needs_a_key_and_the_web_side_and_has_no_tenants() => Assert.Equal(
        [
            "TenantLora:Tenants: has no meaning for a host of role Runtime; leave it out.",
            "TenantLora:Demo: has no meaning for a host of role Runtime; leave it out.",
            "TenantLora:Database: has no meaning for a host of role Runtime; leave it out.",
            "TenantLora:Redis: has no meaning for a host of role Runtime; leave it out.",
            "TenantLora:Runtimes: has no meaning for a host of role Runtime; leave it out.",
            "TenantLora:ServiceKey: expected 32 to 1024 characters, found 31.",
            "TenantLora:AdaptersFrom: expected the web side's address, like http://web:8080, found ftp://web.",
            "TenantLora:AdapterDiskMegabytes: expected 1 or more, found 0.",
        ],
        Wrong("--TenantLora:Role=Runtime", $"--TenantLora:ServiceKey={new string('k', 31)}", "--TenantLora:Tenants:acme:Name=Acme", "--TenantLora:Redis=localhost:6379", "--TenantLora:Database=Host=db", "--TenantLora:Demo=false",
            "--TenantLora:Runtimes:0=http://a", "--TenantLora:AdaptersFrom=ftp://web", "--TenantLora:AdapterDiskMegabytes=0"));

    [Fact]
    public void A_host_that_does_all_has_nobody_to_share_a_key_with() => Assert.Equal(
        [
            "TenantLora:AdaptersFrom: has no meaning for a host of role All; leave it out.",
            "TenantLora:Runtimes: has no meaning for a host of role All; leave it out.",
            "TenantLora:ServiceKey: has no meaning for a host of role All; leave it out.",
        ],
        Wrong($"--TenantLora:ServiceKey={Pair.ServiceKey}", "--TenantLora:Runtimes:0=http://a", "--TenantLora:AdaptersFrom=http://web"));

    [Theory]
    [InlineData("Wbe")]
    [InlineData("7")]
    public void A_role_that_there_is_not_is_named(string role)
    {
        var says = StartFailure.Explain(Assert.ThrowsAny<Exception>(() => Program.Build([$"--TenantLora:Role={role}"])));
        Assert.Contains("TenantLora:Role", says, StringComparison.Ordinal);
        Assert.Contains(role, says, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("http://user:secret@runtime", "found http://user:secret@runtime")]
    [InlineData("runtime:8080", "found runtime:8080")]
    [InlineData("http://runtime?x=1", "found http://runtime?x=1")]
    public void A_runtimes_address_is_one_of_http(string address, string says) =>
        Assert.Contains(says, Assert.Single(Wrong("--TenantLora:Role=Web", $"--TenantLora:ServiceKey={Pair.ServiceKey}", $"--TenantLora:Runtimes:0={address}")), StringComparison.Ordinal);

    [Fact]
    public void The_same_runtime_twice_would_be_asked_twice() =>
        Assert.Contains("each address once, found http://a 2 times", Assert.Single(Wrong("--TenantLora:Role=Web", $"--TenantLora:ServiceKey={Pair.ServiceKey}", "--TenantLora:Runtimes:0=http://a", "--TenantLora:Runtimes:1=http://A/")), StringComparison.OrdinalIgnoreCase);

    [Fact]
    public void The_key_may_be_a_secret_in_a_file_and_other_files_there_are_none_of_the_hosts()
    {
        var folder = Directory.CreateTempSubdirectory("secrets-");
        File.WriteAllText(Path.Combine(folder.FullName, "TenantLora__ServiceKey"), Pair.ServiceKey + "\n");
        File.WriteAllText(Path.Combine(folder.FullName, "Urls"), "http://*:1");
        Directory.CreateDirectory(Path.Combine(folder.FullName, "kubernetes.io"));
        var app = Program.Build(["--TenantLora:Role=Web", "--TenantLora:Runtimes:0=http://a", $"--secrets={folder.FullName}"]);
        Assert.Equal(Pair.ServiceKey, app.Services.GetRequiredService<IOptions<TenantLoraOptions>>().Value.ServiceKey);
        Assert.NotEqual("http://*:1", app.Configuration["urls"]);
        ((IDisposable)app).Dispose();
        folder.Delete(recursive: true);
    }
}
