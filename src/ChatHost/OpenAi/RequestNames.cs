using System.Collections.Frozen;

namespace TenantLora.ChatHost.OpenAi;

/// <summary>
/// Every name a request body may carry, and what becomes of it. Silence is the worst answer to a field that would have changed the
/// output, so those not served are refused by name; the rest of the world's fields pass.
/// </summary>
internal static class RequestNames
{
    /// <summary>Served on both endpoints.</summary>
    private static readonly string[] Common =
    [
        "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty",
        "presence_penalty", "logit_bias", "seed", "stop", "logprobs", "n",
    ];

    public static readonly FrozenSet<string> Chat =
        Common.Concat(["messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls"]).ToFrozenSet();

    public static readonly FrozenSet<string> Completions = Common.Concat(["prompt", "best_of", "echo", "suffix"]).ToFrozenSet();

    /// <summary>Understood, and without effect on the answer.</summary>
    public static readonly FrozenSet<string> Harmless = new[]
    {
        "user", "store", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "cache_salt", "request_id", "priority",
        "return_progress", "timings_per_token", "cache_prompt", "id_slot", "keep_alive", "chat_id", "session_id", "parallel_tool_calls",
    }.ToFrozenSet();

    /// <summary>Would change the answer, and are not served.</summary>
    public static readonly FrozenSet<string> NotServed = new[]
    {
        "functions", "function_call", "modalities", "audio", "prediction", "web_search_options", "reasoning_effort", "reasoning", "thinking", "verbosity",
        "chat_template", "chat_template_kwargs", "documents", "add_generation_prompt", "continue_final_message", "guided_json", "guided_regex", "guided_choice",
        "guided_grammar", "structured_outputs", "grammar", "json_schema", "logit_processors", "logits_processors", "prompt_embeds", "input_embeds", "min_tokens", "ignore_eos",
        "stop_token_ids", "bad_words", "use_beam_search", "length_penalty", "early_stopping", "truncate_prompt_tokens", "typical_p", "tfs_z", "top_a",
        "mirostat", "mirostat_tau", "mirostat_eta", "dry_multiplier", "xtc_probability", "dynatemp_range", "samplers", "adapter_id", "adapter_source", "lora",
    }.ToFrozenSet();

    /// <summary>The served name that an unknown one was probably meant to be.</summary>
    public static string? MeantBy(string unknown, FrozenSet<string> served) =>
        served.Where(known => Distance(unknown, known) <= Math.Min(2, known.Length / 3))
            .OrderBy(known => Distance(unknown, known)).ThenBy(known => known, StringComparer.Ordinal).FirstOrDefault();

    // Levenshtein over the two-row table, case ignored; anything 3 or more apart may come out as 3.
    private static int Distance(string a, string b)
    {
        if (Math.Abs(a.Length - b.Length) > 2) return 3;
        var row = Enumerable.Range(0, b.Length + 1).ToArray();
        for (var i = 1; i <= a.Length; i++)
        {
            var diagonal = row[0];
            row[0] = i;
            for (var j = 1; j <= b.Length; j++)
            {
                var substituted = diagonal + (char.ToLowerInvariant(a[i - 1]) == b[j - 1] ? 0 : 1);
                diagonal = row[j];
                row[j] = Math.Min(substituted, 1 + Math.Min(row[j], row[j - 1]));
            }
        }
        return row[^1];
    }
}
