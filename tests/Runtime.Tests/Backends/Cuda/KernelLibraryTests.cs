using TenantLora.Runtime.Backends.Cuda;

namespace TenantLora.Runtime.Tests.Backends.Cuda;

public sealed class KernelLibraryTests : IDisposable
{
    private readonly string folder = Directory.CreateTempSubdirectory("kernels-").FullName;

    public void Dispose() => Directory.Delete(folder, recursive: true);

    [Fact]
    public void What_was_made_once_is_kept()
    {
        var path = Path.Combine(folder, "deeper", "one.cubin");
        Assert.Equal([1, 2, 3], KernelLibrary.Cached(path, () => [1, 2, 3]));
        Assert.Equal([1, 2, 3], KernelLibrary.Cached(path, () => throw new InvalidOperationException("Made twice.")));
        Assert.Single(Directory.GetFiles(Path.GetDirectoryName(path)!));
    }

    /// <summary>Cut off, changed in a bit, emptied, of another program: it is made anew, and kept again.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void A_damaged_file_is_made_anew(int damage)
    {
        var path = Path.Combine(folder, "one.cubin");
        var code = Enumerable.Range(0, 1000).Select(i => (byte)i).ToArray();
        KernelLibrary.Cached(path, () => code);
        var bytes = File.ReadAllBytes(path);
        bytes[500] ^= (byte)(damage == 1 ? 1 : 0);
        File.WriteAllBytes(path, damage switch { 0 => bytes[..700], 1 => bytes, 2 => [], _ => code });

        Assert.Equal([7, 8], KernelLibrary.Cached(path, () => [7, 8]));
        Assert.Equal([7, 8], KernelLibrary.Cached(path, () => throw new InvalidOperationException("Made twice.")));
    }

    [Fact]
    public void A_folder_that_cannot_be_written_only_costs_time()
    {
        var file = Path.Combine(folder, "a-file");
        File.WriteAllText(file, "");
        Assert.Equal([1], KernelLibrary.Cached(Path.Combine(file, "one.cubin"), () => [1]));
    }
}
