using System.Diagnostics;
using TenantLora.Tests;

namespace TenantLora.Runtime.Tests.Backends.Cuda;

/// <summary>
/// The .cu files compiled by g++ and run on the Cpu, a thread of a block being a fiber (tests/Kernels): their arithmetic and indices against plain
/// loops, on a machine without a GPU. Races and speed show on a GPU alone.
/// </summary>
public sealed class KernelEmulationTests
{
    [Theory]
    [InlineData("chain")]
    [InlineData("chain", "SHARED_LIMIT=101376")]                // what a GeForce card has
    [InlineData("chain", "SHARED_LIMIT=166912")]                // an A100
    [InlineData("chain", "EMU_REVERSE")]                        // threads in another order
    [InlineData("chain", "EMU_LAZY")]                           // copies that land when they are awaited
    [InlineData("finish")]
    [InlineData("lora_prefill")]
    [InlineData("lora_prefill", "EMU_LAZY")]
    [InlineData("embed")]
    [InlineData("draw")]
    [InlineData("attend_decode")]
    [InlineData("attend_prefill")]
    public async Task A_kernel_file_gives_what_plain_loops_give(string name, string define = "SHARED_LIMIT=232448")
    {
        var program = Path.Combine(Directory.CreateTempSubdirectory("kernels-").FullName, name);
        try
        {
            var (built, log) = await Run("g++", "-O2", "-std=c++17", "-w", "-D" + define, "-I", Repo.Path("src", "Runtime", "Backends", "Cuda", "Kernels"), Repo.Path("tests", "Kernels", name + ".cpp"), "-o", program);
            Assert.True(built == 0, log);
            var (result, output) = await Run(program);
            Assert.True(result == 0, output);
        }
        finally
        {
            Directory.Delete(Path.GetDirectoryName(program)!, recursive: true);
        }
    }

    private static async Task<(int ExitCode, string Output)> Run(string file, params string[] arguments)
    {
        var start = new ProcessStartInfo(file, arguments) { RedirectStandardOutput = true, RedirectStandardError = true };
        Process? process = null;
        try
        {
            process = Process.Start(start);
        }
        catch (System.ComponentModel.Win32Exception) when (file == "g++")
        {
            if (Environment.GetEnvironmentVariable("TENANTLORA_REQUIRE_ALL") == "1") Assert.Fail("g++ is not there.");
            Assert.Skip("g++ is not there.");
        }
        using (process)
        {
            var (output, errors) = (process!.StandardOutput.ReadToEndAsync(), process.StandardError.ReadToEndAsync());
            await process.WaitForExitAsync(TestContext.Current.CancellationToken);
            return (process.ExitCode, await output + await errors);
        }
    }
}
