using System.Text;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// The text of one growing sequence: give it each token as it is chosen and show what comes back. What comes back is whole characters,
/// never part of a stop string, and is never taken back. All of it together is <see cref="Tokenizer.Decode"/> of all tokens, cut before the
/// stop string that begins first. One per sequence; not for several threads.
/// </summary>
internal sealed class TextStream
{
    private readonly Tokenizer tokenizer;
    private readonly StopStrings stops;
    private readonly bool skipSpecial;
    private readonly DecoderStage decoder;
    private readonly StringBuilder held = new();                // decoded and not handed out
    private int searched;                                       // of held
    private int stop = -1;                                      // where in held the earliest stop string so far begins
    private int state;                                          // of the search

    /// <param name="stopStrings">Texts that end the sequence; empty ones are ignored.</param>
    /// <param name="skipSpecial">Special tokens have no text.</param>
    public TextStream(Tokenizer tokenizer, IReadOnlyList<string> stopStrings, bool skipSpecial = true)
    {
        this.tokenizer = tokenizer;
        this.skipSpecial = skipSpecial;
        stops = new StopStrings(stopStrings);
        decoder = tokenizer.StartDecoding(held);
    }

    /// <summary>A stop string was found; nothing more will come.</summary>
    public bool Stopped { get; private set; }

    /// <summary>The text that this token makes certain; often empty.</summary>
    public string Push(int token)
    {
        if (Stopped || tokenizer.Shown(token, skipSpecial) is not { } item) return "";
        decoder.Push(item);
        return HandOut();
    }

    /// <summary>No more tokens come: the text that was held because it might have become something else.</summary>
    public string Finish()
    {
        if (Stopped) return "";
        decoder.Finish();
        var text = HandOut();
        if (Stopped) return text;
        Stopped = stop >= 0;
        text += held.ToString(0, stop >= 0 ? stop : held.Length);
        held.Clear();
        searched = 0;
        return text;
    }

    private string HandOut()
    {
        if (held.Length == searched) return "";
        // Copied once: indexing a StringBuilder that was grown in chunks is not O(1).
        var fresh = held.ToString(searched, held.Length - searched);
        foreach (var character in fresh)
        {
            searched++;
            state = stops.Next(state, character);
            var longest = stops.LongestEnding(state);
            if (longest > 0 && (stop < 0 || searched - longest < stop)) stop = searched - longest;
            // Final once nothing that began earlier is still growing.
            if (stop >= 0 && searched - stops.Growing(state) >= stop) return Stop();
        }
        var certain = Math.Min(searched - stops.Growing(state), stop < 0 ? int.MaxValue : stop);
        var text = held.ToString(0, certain);
        held.Remove(0, certain);
        searched -= certain;
        if (stop >= 0) stop -= certain;
        return text;
    }

    private string Stop()
    {
        Stopped = true;
        var text = held.ToString(0, stop);
        held.Clear();
        return text;
    }
}

/// <summary>Finds several texts at once in a text that comes character by character (Aho and Corasick 1975). State 0 is the start. Immutable.</summary>
internal sealed class StopStrings
{
    private readonly List<Dictionary<char, int>> next = [[]];
    private readonly List<int> depth = [0];
    private readonly List<int> longest = [0];
    private readonly List<int> fallback = [0];                  // the state of the longest proper suffix that some text begins with

    public StopStrings(IReadOnlyList<string> texts)
    {
        foreach (var text in texts) Add(text);
        var queue = new Queue<int>(next[0].Values);
        while (queue.TryDequeue(out var state))
        {
            foreach (var (character, child) in next[state])
            {
                fallback[child] = Next(fallback[state], character);
                longest[child] = Math.Max(longest[child], longest[fallback[child]]);
                queue.Enqueue(child);
            }
        }
    }

    /// <summary>The state after one more character.</summary>
    public int Next(int state, char character)
    {
        int following;
        while (!next[state].TryGetValue(character, out following))
        {
            if (state == 0) return 0;
            state = fallback[state];
        }
        return following;
    }

    /// <summary>The length of the longest text that ends here; 0: none does.</summary>
    public int LongestEnding(int state) => longest[state];

    /// <summary>How many of the last characters may be the beginning of one of the texts, or all of it.</summary>
    public int Growing(int state) => depth[state];

    private void Add(string text)
    {
        var state = 0;
        foreach (var character in text)
        {
            if (!next[state].TryGetValue(character, out var child))
            {
                child = next.Count;
                next[state].Add(character, child);
                next.Add([]);
                depth.Add(depth[state] + 1);
                longest.Add(0);
                fallback.Add(0);
            }
            state = child;
        }
        if (text.Length > 0) longest[state] = text.Length;
    }
}
