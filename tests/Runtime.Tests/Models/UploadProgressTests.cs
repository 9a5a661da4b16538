using TenantLora.Runtime.Backends.Cpu;
using TenantLora.Runtime.Models;
using TenantLora.Tests;

namespace TenantLora.Runtime.Tests.Models;

public class UploadProgressTests
{
    [Theory]
    [InlineData(0.03, "")]                                              // over in 0.96 s
    [InlineData(0.1, "31 62 93")]                                       // a word a second
    [InlineData(2, "12 25 37 50 62 75 87 100")]                         // a word every tenth
    public void It_is_said_at_most_once_a_second_and_every_tenth(double secondsPerLayer, string expected)
    {
        var clock = new Clock();
        var said = new List<int>();
        var progress = new UploadProgress(32_000_000_000, clock, said.Add);

        for (var layer = 1; layer <= 32; layer++)
        {
            clock.Now += TimeSpan.FromSeconds(secondsPerLayer);
            progress.At(layer * 1_000_000_000L);
        }

        Assert.Equal(expected, string.Join(' ', said));
    }

    [Theory]
    [InlineData("llama"), InlineData("qwen2"), InlineData("qwen3")]
    public void Weights_tell_after_each_layer_how_much_is_there_and_in_the_end_it_is_all(string name)
    {
        var directory = Repo.Fixture("models", name);
        var config = ModelConfig.Load(directory);
        using var files = WeightFiles.Open(directory);
        using var backend = new CpuBackend(1);
        var told = new List<long>();

        using var weights = ModelWeights.Load(config, files.Get, backend, told.Add);

        Assert.Equal(config.Layers + 1, told.Count);
        Assert.Equal(told.Distinct().Order(), told);
        Assert.Equal(files.Bytes, told[^1]);
    }

    private sealed class Clock : TimeProvider
    {
        public TimeSpan Now { get; set; }

        public override long TimestampFrequency => TimeSpan.TicksPerSecond;

        public override long GetTimestamp() => Now.Ticks;
    }
}
