using System.Globalization;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// A regular expression as tokenizer.json means it: Oniguruma's syntax over code points. .NET's own engine works on UTF-16 units
/// (<c>\p{L}</c> misses 𝔘), folds case otherwise and reads some escapes otherwise, and each such difference is another token; so this
/// small backtracking machine matches what tokenizers use and refuses the rest by name. Immutable; matching takes no recursion
/// on the length of the text.
/// </summary>
internal sealed class Pattern
{
    private const int MaxInstructions = 20_000;

    private readonly Instruction[] program;

    private Pattern(Instruction[] program) => this.program = program;

    /// <exception cref="FormatException">The expression is broken, or uses something that is not supported; the message names it.</exception>
    public static Pattern Parse(string expression) => new(new Parser(expression).Parse());

    /// <summary>Matches the string itself.</summary>
    public static Pattern Literal(string text)
    {
        var program = text.EnumerateRunes().Select(rune => new Instruction(Op.One, new CodePointSet().Add(rune.Value, rune.Value)));
        return new([.. program, new Instruction(Op.Done)]);
    }

    /// <summary>
    /// Cuts text[start..end) into matches and the stretches between them; together they cover it in order. Anchors and look-around see
    /// nothing outside. As in HF's, an empty match right behind the last match does not count.
    /// </summary>
    public void Cut(string text, int start, int end, List<(int Start, int End, bool IsMatch)> pieces)
    {
        var run = new Run(text, start, end);
        var (from, covered, lastMatchEnd) = (start, start, -1);
        while (from <= end)
        {
            var (at, stop) = (from, -1);
            for (; at <= end; at += at < end ? run.Width(at) : 1)
                if ((stop = run.Match(program, at)) >= 0) break;
            if (stop < 0) break;
            if (stop == at && at == lastMatchEnd)
            {
                from += from < end ? run.Width(from) : 1;
                continue;
            }
            if (covered != at) pieces.Add((covered, at, false));
            pieces.Add((at, stop, true));
            from = covered = lastMatchEnd = stop;
        }
        if (covered != end) pieces.Add((covered, end, false));
    }

    private enum Op
    {
        One,            // a code point of Set
        Many,           // Min to Max code points of Set, as many as there are, then fewer
        ManyPossessive, // the same without giving back
        Choice,         // goes on at Min, or failing that at Max
        Jump,           // goes on at Min
        Look,           // Sub matches here (or, if Negative, does not); takes nothing
        Behind,         // Sub matches Min code points earlier; takes nothing
        Atomic,         // Sub matches, once and for all
        LineStart, LineEnd, TextStart, TextEnd, TextEndOrNewline, WordBorder, NoWordBorder,
        Done,
    }

    private sealed record Instruction(Op Op, CodePointSet? Set = null, int Min = 0, int Max = 0, Instruction[]? Sub = null, bool Negative = false);

    /// <summary>One text being matched, and the choices that are still open.</summary>
    private struct Run(string text, int start, int end)
    {
        private static readonly CodePointSet Word = CodePointSet.Word();
        private (int Next, int Position, int Lowest)[] open = new (int, int, int)[16];
        private int count;

        public readonly int Width(int at) => char.IsHighSurrogate(text[at]) && at + 1 < end && char.IsLowSurrogate(text[at + 1]) ? 2 : 1;

        private readonly int CodePoint(int at) => Width(at) == 2 ? char.ConvertToUtf32(text[at], text[at + 1]) : text[at];

        private readonly int Before(int at) => at - 2 >= start && char.IsLowSurrogate(text[at - 1]) && char.IsHighSurrogate(text[at - 2]) ? at - 2 : at - 1;

        /// <summary>The end of the match that begins at a position, or −1.</summary>
        public int Match(Instruction[] program, int at)
        {
            var floor = count;
            var next = 0;
            while (true)
            {
                var step = program[next++];
                bool matched;
                switch (step.Op)
                {
                    case Op.Done:
                        count = floor;
                        return at;
                    case Op.One:
                        matched = at < end && step.Set!.Contains(CodePoint(at));
                        if (matched) at += Width(at);
                        break;
                    case Op.Many or Op.ManyPossessive:
                        matched = TakeMany(step, next, ref at);
                        break;
                    case Op.Choice:
                        Push(step.Max, at, at);
                        next = step.Min;
                        continue;
                    case Op.Jump:
                        next = step.Min;
                        continue;
                    case Op.Look:
                        matched = Match(step.Sub!, at) >= 0 != step.Negative;
                        break;
                    case Op.Behind:
                        matched = MatchesBehind(step, at) != step.Negative;
                        break;
                    case Op.Atomic:
                        var stop = Match(step.Sub!, at);
                        matched = stop >= 0;
                        if (matched) at = stop;
                        break;
                    default:
                        matched = HoldsAnchor(step.Op, at);
                        break;
                }
                if (matched) continue;
                if (count == floor) return -1;

                ref var last = ref open[count - 1];
                (next, at) = (last.Next, last.Position);
                if (at > last.Lowest) last.Position = Before(at);
                else count--;
            }
        }

        private bool TakeMany(Instruction step, int next, ref int at)
        {
            var lowest = step.Min == 0 ? at : -1;
            var position = at;
            for (var taken = 0; taken < step.Max && position < end && step.Set!.Contains(CodePoint(position));)
            {
                position += Width(position);
                if (++taken == step.Min) lowest = position;
            }
            if (lowest < 0) return false;
            if (position > lowest && step.Op == Op.Many) Push(next, Before(position), lowest);
            at = position;
            return true;
        }

        private bool MatchesBehind(Instruction step, int at)
        {
            for (var i = 0; i < step.Min; i++)
            {
                if (at == start) return false;
                at = Before(at);
            }
            return Match(step.Sub!, at) >= 0;
        }

        private readonly bool HoldsAnchor(Op anchor, int at) => anchor switch
        {
            Op.LineStart => at == start || (text[at - 1] == '\n' && at < end),
            Op.LineEnd => at == end || text[at] == '\n',
            Op.TextStart => at == start,
            Op.TextEnd => at == end,
            Op.TextEndOrNewline => at == end || (at == end - 1 && text[at] == '\n'),
            Op.WordBorder => IsWord(at) != IsWordBefore(at),
            _ => IsWord(at) == IsWordBefore(at),
        };

        private readonly bool IsWord(int at) => at < end && Word.Contains(CodePoint(at));

        private readonly bool IsWordBefore(int at) => at > start && Word.Contains(CodePoint(Before(at)));

        private void Push(int next, int position, int lowest)
        {
            if (count == open.Length) Array.Resize(ref open, 2 * count);
            open[count++] = (next, position, lowest);
        }
    }

    /// <summary>What a part of the expression can take: its instructions, and its widths in code points.</summary>
    private sealed record Part(List<Instruction> Code, int Narrowest, int? Width);

    private sealed class Parser(string expression)
    {
        private const int MaxDepth = 50;
        private int at;
        private int depth;
        private bool ignoreCase;

        public Instruction[] Parse()
        {
            var part = Alternatives();
            if (at < expression.Length) throw Unsupported("an unmatched )");
            return Finish(part);
        }

        private static Instruction[] Finish(Part part) => [.. part.Code, new Instruction(Op.Done)];

        private bool Take(char c)
        {
            if (at >= expression.Length || expression[at] != c) return false;
            at++;
            return true;
        }

        private bool Take(string text)
        {
            if (string.CompareOrdinal(expression, at, text, 0, text.Length) != 0) return false;
            at += text.Length;
            return true;
        }

        private FormatException Unsupported(string what) => new($"{what} at character {at} of the expression");

        private Part Alternatives()
        {
            if (++depth > MaxDepth) throw Unsupported("groups nested this deep");
            var outer = ignoreCase;
            var part = Sequence();
            while (Take('|'))
            {
                var other = Sequence();
                // Choice → first → Jump behind, → other
                List<Instruction> code = [new(Op.Choice, Min: 1, Max: part.Code.Count + 2), .. Shifted(part, 1), new(Op.Jump, Min: part.Code.Count + other.Code.Count + 2), .. Shifted(other, part.Code.Count + 2)];
                part = Checked(new Part(code, Math.Min(part.Narrowest, other.Narrowest), part.Width == other.Width ? part.Width : null));
            }
            ignoreCase = outer;
            depth--;
            return part;
        }

        private Part Sequence()
        {
            var part = new Part([], 0, 0);
            while (at < expression.Length && expression[at] is not ('|' or ')')) part = Joined(part, Repeated(Atom()));
            return part;
        }

        private Part Joined(Part first, Part second) =>
            Checked(new Part([.. first.Code, .. Shifted(second, first.Code.Count)], first.Narrowest + second.Narrowest, first.Width + second.Width));

        private Part Checked(Part part) => part.Code.Count <= MaxInstructions ? part : throw Unsupported("an expression of this size");

        private static IEnumerable<Instruction> Shifted(Part part, int by) => part.Code.Select(i => i.Op switch
        {
            Op.Choice => i with { Min = i.Min + by, Max = i.Max + by },
            Op.Jump => i with { Min = i.Min + by },
            _ => i,
        });

        private Part Repeated(Part atom)
        {
            while (true)
            {
                var (min, max) = (0, int.MaxValue);
                var counted = false;
                if (Take('+')) min = 1;
                else if (Take('?')) max = 1;
                else if (at < expression.Length && expression[at] == '{' && TryCounts(out min, out max)) counted = true;
                else if (!Take('*')) return atom;

                var lazy = Take('?');
                var possessive = !lazy && !counted && Take('+');
                if (lazy && counted && min == max) throw Unsupported("{n}?");
                if (counted && at < expression.Length && expression[at] == '+') throw Unsupported("a repeated {n,m}");
                atom = Checked(Repeat(atom, min, max, lazy, possessive));
            }
        }

        private Part Repeat(Part atom, int min, int max, bool lazy, bool possessive)
        {
            var narrowest = (int)Math.Min((long)atom.Narrowest * min, int.MaxValue);
            var width = min == max ? atom.Width * min : null;
            if (atom.Code is [{ Op: Op.One } one] && !lazy)
                return new Part([new Instruction(possessive ? Op.ManyPossessive : Op.Many, one.Set, min, max)], narrowest, width);
            if (max == int.MaxValue && atom.Narrowest == 0) throw Unsupported("an endless repeat of something that may be empty");
            if (Math.Max(min, max == int.MaxValue ? 0 : max) > 1000) throw Unsupported("a repeat of more than 1000");

            var part = new Part([], 0, 0);
            for (var i = 0; i < min; i++) part = Joined(part, atom);
            if (max == int.MaxValue) part = Joined(part, Star(atom, lazy));
            else
                for (var i = min; i < max; i++) part = Joined(part, Optional(atom, lazy));
            part = part with { Narrowest = narrowest, Width = width };
            return possessive ? Atomic(part) : part;
        }

        private static Instruction Choose(bool lazy, int body, int behind) => lazy ? new(Op.Choice, Min: behind, Max: body) : new(Op.Choice, Min: body, Max: behind);

        private static Part Star(Part atom, bool lazy) =>
            new([Choose(lazy, 1, atom.Code.Count + 2), .. Shifted(atom, 1), new Instruction(Op.Jump, Min: 0)], 0, null);

        private static Part Optional(Part atom, bool lazy) => new([Choose(lazy, 1, atom.Code.Count + 1), .. Shifted(atom, 1)], 0, null);

        /// <summary>{n}, {n,}, {n,m}, {,m}; anything else is a literal brace, as in Oniguruma.</summary>
        private bool TryCounts(out int min, out int max)
        {
            (min, max) = (0, int.MaxValue);
            var close = expression.IndexOf('}', at);
            if (close < 0) return false;
            var inner = expression[(at + 1)..close];
            var comma = inner.IndexOf(',', StringComparison.Ordinal);
            var (low, high) = comma < 0 ? (inner, inner) : (inner[..comma], inner[(comma + 1)..]);
            if (low.Length + high.Length == 0) return false;
            if (low.Length > 0 && !int.TryParse(low, NumberStyles.None, CultureInfo.InvariantCulture, out min)) return false;
            if (high.Length > 0 && !int.TryParse(high, NumberStyles.None, CultureInfo.InvariantCulture, out max)) return false;
            at = close + 1;
            if (max < min) throw Unsupported("a repeat whose most is below its least");
            return true;
        }

        private Part Atom()
        {
            if (Take('(')) return Group();
            if (Take('[')) return One(Class());
            if (Take('.')) return One(new CodePointSet().Add('\n', '\n').Negate());
            if (Take('^')) return Anchor(Op.LineStart);
            if (Take('$')) return Anchor(Op.LineEnd);
            if (expression[at] is '*' or '+' or '?') throw Unsupported("a repeat of nothing");
            if (!Take('\\')) return One(Cased(Single(NextCodePoint())));
            return expression[at..] switch
            {
                ['A', ..] => Escaped(Op.TextStart),
                ['z', ..] => Escaped(Op.TextEnd),
                ['Z', ..] => Escaped(Op.TextEndOrNewline),
                ['b', ..] => Escaped(Op.WordBorder),
                ['B', ..] => Escaped(Op.NoWordBorder),
                _ => One(EscapedSet(out var codePoint) is var set && codePoint >= 0 ? Cased(set) : set),
            };
        }

        private Part Escaped(Op anchor)
        {
            at++;
            return Anchor(anchor);
        }

        private static Part Anchor(Op anchor) => new([new Instruction(anchor)], 0, 0);

        private static Part One(CodePointSet set) => new([new Instruction(Op.One, set)], 1, 1);

        /// <summary>As Oniguruma does it, case is ignored for characters and classes, not for a \p{…} outside a class.</summary>
        private CodePointSet Cased(CodePointSet set) => ignoreCase ? set.IgnoreCase() : set;

        private static CodePointSet Single(int codePoint) => new CodePointSet().Add(codePoint, codePoint);

        private int NextCodePoint()
        {
            if (at >= expression.Length) throw Unsupported("an end of the expression");
            var width = char.IsSurrogatePair(expression, at) ? 2 : 1;
            at += width;
            return char.ConvertToUtf32(expression, at - width);
        }

        private Part Group()
        {
            if (!Take('?')) return Closed();
            if (Take(':')) return Closed();
            if (Take('>')) return Atomic(Closed());
            if (Take('=')) return Look(negative: false);
            if (Take('!')) return Look(negative: true);
            if (Take("<=")) return Behind(negative: false);
            if (Take("<!")) return Behind(negative: true);

            var outer = ignoreCase;
            if (Take("i:") || Take("-i:"))
            {
                ignoreCase = expression[at - 3] != '-';
                var inner = Closed();
                ignoreCase = outer;
                return inner;
            }
            if (!Take("i)")) throw Unsupported("(?" + expression[at..Math.Min(at + 2, expression.Length)] + "…");
            // Holds to the end of the enclosing group, alternatives included.
            ignoreCase = true;
            var rest = Alternatives();
            ignoreCase = outer;
            return rest;
        }

        private Part Closed()
        {
            var part = Alternatives();
            return Take(')') ? part : throw Unsupported("a group that does not end");
        }

        private static Part Atomic(Part body) => body with { Code = [new Instruction(Op.Atomic, Sub: Finish(body))] };

        private Part Look(bool negative) => new([new Instruction(Op.Look, Sub: Finish(Closed()), Negative: negative)], 0, 0);

        private Part Behind(bool negative)
        {
            var body = Closed();
            if (body.Width is not { } width) throw Unsupported("a look behind of varying width");
            return new Part([new Instruction(Op.Behind, Min: width, Sub: Finish(body), Negative: negative)], 0, 0);
        }

        /// <summary>Behind a backslash: one code point, or a named set.</summary>
        private CodePointSet EscapedSet(out int codePoint)
        {
            codePoint = -1;
            var c = NextCodePoint();
            switch (c)
            {
                case 's': return CodePointSet.WhiteSpace();
                case 'S': return CodePointSet.WhiteSpace().Negate();
                case 'd': return CodePointSet.Digit();
                case 'D': return CodePointSet.Digit().Negate();
                case 'w': return CodePointSet.Word();
                case 'W': return CodePointSet.Word().Negate();
                case 'h': return CodePointSet.HexDigit();
                case 'H': return CodePointSet.HexDigit().Negate();
                case 'p': return Property();
                case 'P': return Property().Negate();
                case 't': codePoint = '\t'; break;
                case 'n': codePoint = '\n'; break;
                case 'r': codePoint = '\r'; break;
                case 'f': codePoint = '\f'; break;
                case 'v': codePoint = '\v'; break;
                case 'a': codePoint = '\a'; break;
                case 'e': codePoint = 0x1B; break;
                case 'x' when Take('{'): codePoint = Hex(1, 8, '}'); break;
                case 'x': codePoint = Hex(1, 2, null); break;
                case 'u': codePoint = Hex(4, 4, null); break;
                default:
                    if (c < 128 && char.IsAsciiLetterOrDigit((char)c)) throw Unsupported($"\\{(char)c}");
                    codePoint = c;
                    break;
            }
            return Single(codePoint);
        }

        private int Hex(int least, int most, char? closing)
        {
            var end = at;
            while (end < expression.Length && end - at < most && char.IsAsciiHexDigit(expression[end])) end++;
            if (end - at < least || !int.TryParse(expression.AsSpan(at, end - at), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out var value) || value is < 0 or > 0x10FFFF)
                throw Unsupported("a character given by a broken number");
            at = end;
            if (closing is { } bracket && !Take(bracket)) throw Unsupported("several characters in one \\x{…}");
            return value;
        }

        private CodePointSet Property()
        {
            var close = Take('{') ? expression.IndexOf('}', at) : -1;
            if (close < 0) throw Unsupported("\\p without {…}");
            var name = expression[at..close];
            var negated = name.StartsWith('^');
            var set = CodePointSet.ByProperty(negated ? name[1..] : name) ?? throw Unsupported($"\\p{{{name}}}, which is no general category");
            at = close + 1;
            return negated ? set.Negate() : set;
        }

        /// <summary>Behind the opening bracket, to behind the closing one.</summary>
        private CodePointSet Class()
        {
            if (++depth > MaxDepth) throw Unsupported("classes nested this deep");
            var negated = Take('^');
            var set = new CodePointSet();
            CodePointSet? limited = null;
            if (at < expression.Length && expression[at] == ']') throw Unsupported("an empty class");
            while (!Take(']'))
            {
                if (at >= expression.Length) throw Unsupported("a class that does not end");
                if (Take("&&"))
                {
                    limited = limited is null ? set : new CodePointSet().Add(limited).Limit(set);
                    set = new CodePointSet();
                }
                else if (Take("[:")) set.Add(Posix());
                else if (Take('[')) set.Add(Class());
                else AddItem(set);
            }
            depth--;
            var whole = Cased(limited is null ? set : new CodePointSet().Add(limited).Limit(set));
            return negated ? new CodePointSet().Add(whole).Negate() : whole;
        }

        private CodePointSet Posix()
        {
            var close = expression.IndexOf(":]", at, StringComparison.Ordinal);
            if (close < 0) throw Unsupported("a [: that does not end");
            var name = expression[at..close];
            var negated = name.StartsWith('^');
            var set = (negated ? name[1..] : name) switch
            {
                "space" => CodePointSet.WhiteSpace(),
                "digit" => CodePointSet.Digit(),
                "word" => CodePointSet.Word(),
                "xdigit" => CodePointSet.HexDigit(),
                _ => throw Unsupported($"[:{name}:]"),
            };
            at = close + 2;
            return negated ? set.Negate() : set;
        }

        private void AddItem(CodePointSet set)
        {
            var first = ClassCodePoint(set);
            if (first < 0) return;
            // A hyphen before the closing bracket is itself.
            if (at + 1 < expression.Length && expression[at] == '-' && expression[at + 1] != ']')
            {
                at++;
                if (expression[at] == '[' || expression.AsSpan(at).StartsWith("&&")) throw Unsupported("a range that ends in a class");
                var last = ClassCodePoint(null);
                if (last < first) throw Unsupported("a range whose end is below its start");
                set.Add(first, last);
            }
            else set.Add(first, first);
        }

        /// <summary>One code point; or −1, having added a named set.</summary>
        private int ClassCodePoint(CodePointSet? set)
        {
            if (!Take('\\')) return NextCodePoint();
            if (Take('b')) return '\b';
            var named = EscapedSet(out var codePoint);
            if (codePoint < 0) (set ?? throw Unsupported("a range that ends in a set")).Add(named);
            return codePoint;
        }
    }
}
