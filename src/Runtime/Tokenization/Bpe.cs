using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// Byte pair encoding (Sennrich et al. 2016) as HF's <c>tokenizers</c> does it: a word becomes one symbol per character, then the
/// neighbouring pair of the lowest rank is merged, leftmost first, until none is left. Immutable.
/// </summary>
internal sealed class Bpe
{
    private const int DirectIds = 0x250;                       // covers the byte-level alphabet (up to U+0143) without hashing

    private readonly Dictionary<string, int>.AlternateLookup<ReadOnlySpan<char>> lookup;
    private readonly Dictionary<(int Left, int Right), (int Rank, int Id)> merges;
    private readonly int[] direct = new int[DirectIds];         // id of a one-character token, −1: none
    private readonly int[]? bytes;                              // ids of <0x00> … <0xFF>, −1: missing; null: no byte fallback
    private readonly int unknown;                               // −1: unknown characters are dropped
    private readonly bool fuseUnknown;
    private readonly bool wholeWordsFirst;

    /// <param name="vocabulary">Token text to id.</param>
    /// <param name="merges">A pair of ids to its rank and to the id of the merged token.</param>
    /// <param name="byteFallback">A character without a token becomes the tokens <c>&lt;0xNN&gt;</c> of its UTF-8 bytes, if all exist.</param>
    /// <param name="unknown">The id that stands for a character nothing else stands for; −1 drops such characters.</param>
    /// <param name="fuseUnknown">Neighbouring unknown characters become one token.</param>
    /// <param name="wholeWordsFirst">A word that is a token is taken as it is, even where merges would not lead there (<c>ignore_merges</c>).</param>
    public Bpe(Dictionary<string, int> vocabulary, Dictionary<(int, int), (int, int)> merges, bool byteFallback, int unknown, bool fuseUnknown, bool wholeWordsFirst)
    {
        this.merges = merges;
        this.unknown = unknown;
        this.fuseUnknown = fuseUnknown;
        this.wholeWordsFirst = wholeWordsFirst;
        lookup = vocabulary.GetAlternateLookup<ReadOnlySpan<char>>();
        for (var c = 0; c < DirectIds; c++) direct[c] = vocabulary.GetValueOrDefault(((char)c).ToString(), -1);
        if (byteFallback) bytes = [.. Enumerable.Range(0, 256).Select(b => vocabulary.GetValueOrDefault($"<0x{b:X2}>", -1))];
    }

    /// <summary>Appends the ids of one word to <paramref name="output"/>. O(n log n) for any word.</summary>
    public void Encode(ReadOnlySpan<char> word, Scratch scratch, List<int> output)
    {
        if (word.IsEmpty) return;
        if (wholeWordsFirst && lookup.TryGetValue(word, out var whole))
        {
            output.Add(whole);
            return;
        }
        var symbols = scratch.Symbols;
        symbols.Clear();
        Spell(word, symbols);
        Merge(CollectionsMarshal.AsSpan(symbols), scratch.Queue);
        foreach (var symbol in symbols)
            if (symbol.Id >= 0) output.Add(symbol.Id);
    }

    private void Spell(ReadOnlySpan<char> word, List<Symbol> symbols)
    {
        var held = false;                                       // an unknown that waits for the next known character
        Span<byte> utf8 = stackalloc byte[4];
        for (int i = 0, length; i < word.Length; i += length)
        {
            length = char.IsHighSurrogate(word[i]) && i + 1 < word.Length ? 2 : 1;
            var character = word.Slice(i, length);
            var id = word[i] < DirectIds ? direct[word[i]] : lookup.TryGetValue(character, out var found) ? found : -1;
            if (id >= 0)
            {
                if (held) Append(unknown, symbols);
                held = false;
                Append(id, symbols);
                continue;
            }
            if (bytes is not null && Spelled(character, utf8, symbols)) continue;      // a held unknown stays held here, as in HF's
            if (unknown < 0) continue;
            if (held && !fuseUnknown) Append(unknown, symbols);
            held = true;
        }
        if (held) Append(unknown, symbols);
    }

    private bool Spelled(ReadOnlySpan<char> character, Span<byte> utf8, List<Symbol> symbols)
    {
        var count = System.Text.Encoding.UTF8.GetBytes(character, utf8);
        foreach (var b in utf8[..count])
            if (bytes![b] < 0) return false;
        foreach (var b in utf8[..count]) Append(bytes![b], symbols);
        return true;
    }

    private static void Append(int id, List<Symbol> symbols) => symbols.Add(new Symbol(id, symbols.Count - 1, symbols.Count + 1));

    /// <summary>A merged-away symbol keeps its place with id −1, so positions stay valid in the queue.</summary>
    private void Merge(Span<Symbol> symbols, PriorityQueue<int, long> queue)
    {
        queue.Clear();
        for (var i = 0; i + 1 < symbols.Length; i++) Offer(symbols, i, i + 1, queue);
        while (queue.TryDequeue(out var merged, out var key))
        {
            var position = (int)key;
            ref var left = ref symbols[position];
            if (left.Id < 0 || left.Next >= symbols.Length) continue;
            ref var right = ref symbols[left.Next];
            // Either side may have been merged since this was queued.
            if (!merges.TryGetValue((left.Id, right.Id), out var merge) || merge.Id != merged) continue;

            left.Id = merged;
            left.Next = right.Next;
            right.Id = -1;
            if (left.Next < symbols.Length)
            {
                symbols[left.Next].Previous = position;
                Offer(symbols, position, left.Next, queue);
            }
            if (left.Previous >= 0) Offer(symbols, left.Previous, position, queue);
        }
    }

    /// <summary>Ordered by rank, then by position: one number, since comparing pairs is what a long word would spend its time on.</summary>
    private void Offer(Span<Symbol> symbols, int left, int right, PriorityQueue<int, long> queue)
    {
        if (merges.TryGetValue((symbols[left].Id, symbols[right].Id), out var merge)) queue.Enqueue(merge.Id, (long)merge.Rank << 32 | (uint)left);
    }

    internal struct Symbol(int id, int previous, int next)
    {
        public int Id = id;
        public int Previous = previous;
        public int Next = next;
    }

    /// <summary>Memory that words of one text share.</summary>
    internal sealed class Scratch
    {
        public List<Symbol> Symbols { get; } = [];

        public PriorityQueue<int, long> Queue { get; } = new();
    }
}
