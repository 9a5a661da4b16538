using System.Text;
using TenantLora.ChatHost.Store;

namespace TenantLora.ChatHost.Tests.Store;

public sealed class RespGuardTests
{
    [Theory]
    [InlineData("+OK\r\n:1\r\n$-1\r\n*-1\r\n*0\r\n$0\r\n\r\n-ERR no\r\n")]
    [InlineData("*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\na\r\n*9\r\n*2\r\n*2\r\n:1\r\n*1\r\n*1\r\n:2\r\n$3\r\n*9\r\r\n+OK\r\n")]
    [InlineData("$15\r\n*1\r\n*1\r\n*1\r\n*1\r\r\n:-7\r\n")]
    public void Answers_pass_however_they_are_cut(string answers)
    {
        var bytes = Encoding.Latin1.GetBytes(string.Concat(Enumerable.Repeat(answers, 20)));         // what is counted wrongly adds up
        foreach (var piece in new[] { 1, 2, 3, 7, bytes.Length })
        {
            var guard = new RespGuard();
            foreach (var some in bytes.Chunk(piece)) guard.Check(some);
        }
    }

    [Theory]
    [InlineData("*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n")]
    [InlineData("*2\r\n:1\r\n*1\r\n*1\r\n*1\r\n*1\r\n")]
    [InlineData("$2147483647\r\n")]
    [InlineData("$99999999999999999999999999\r\n")]
    [InlineData("$x\r\n")]
    [InlineData("$1-\r\n")]
    [InlineData("*65537\r\n")]
    [InlineData("%1\r\n")]
    [InlineData("!5\r\n")]
    [InlineData("\r\n")]
    [InlineData("$1\r\nab\r\n")]
    [InlineData("LINE")]
    public void What_is_no_answer_of_ours_is_refused(string answer)
    {
        var bytes = Encoding.Latin1.GetBytes(answer == "LINE" ? "+" + new string('x', 70_000) : answer + "+OK\r\n");
        foreach (var piece in new[] { 1, 3, bytes.Length })
        {
            var guard = new RespGuard();
            Assert.Throws<InvalidDataException>(() =>
            {
                foreach (var some in bytes.Chunk(piece)) guard.Check(some);
            });
        }
    }
}
