namespace TenantLora.Runtime.Models;

/// <summary>
/// How far a long upload is, said now and then: when a second has gone by and a tenth has come since the last word or the beginning. One that is
/// over within a second says nothing.
/// </summary>
/// <param name="total">Bytes to come.</param>
/// <param name="say">Given whole percents.</param>
internal sealed class UploadProgress(long total, TimeProvider clock, Action<int> say)
{
    private long since = clock.GetTimestamp();
    private int said;

    /// <summary>So many bytes are there.</summary>
    public void At(long bytes)
    {
        var percent = (int)(bytes * 100.0 / total);
        if (percent < said + 10 || clock.GetElapsedTime(since) < TimeSpan.FromSeconds(1)) return;
        (since, said) = (clock.GetTimestamp(), percent);
        say(percent);
    }
}
